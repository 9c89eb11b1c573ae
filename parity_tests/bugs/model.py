"""Bugs of the forward pass."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
BUGS: tuple[Mutation, ...] = (
    Mutation("tanh GELU for the exact one", M + "model.py", 'config.activation == "gelu_tanh"', "True", "02"),
    Mutation("exact GELU for tanh", T + "model.py", 'if config.activation == "gelu_tanh"', "if False", "02"),
    Mutation("key and value swapped", T + "model.py", "query, key, value = qkv", "query, value, key = qkv", "02"),
    Mutation(
        "heads interleaved with q, k, v",
        M + "model.py",
        "qkv.transpose(2, 0, 3, 1, 4)",
        "qkv.reshape(B, T, self.config.num_heads, 3, -1).transpose(3, 0, 2, 1, 4)",
        "02",
    ),
    Mutation(
        "output projection transposed",
        M + "model.py",
        "self.out_proj(attended_BHTK.swapaxes(1, 2).reshape(B, T, D))",
        "attended_BHTK.swapaxes(1, 2).reshape(B, T, D) @ self.out_proj.weight",
        "02",
    ),
    Mutation(
        "scores scaled by the model's width",
        M + "model.py",
        "self.config.head_dim**-0.5",
        "self.config.dim**-0.5",
        "02",
    ),
    Mutation("no mask in explicit attention", T + "model.py", ".triu(1)", ".triu(99)", "02"),
    Mutation("no causal mask", T + "model.py", "is_causal=T > 1", "is_causal=False", "02"),
    Mutation(
        "default epsilon in the norms",
        T + "model.py",
        "super().__init__(config.dim, eps=config.norm_epsilon)",
        "super().__init__(config.dim)",
        "02",
    ),
    Mutation(
        "one norm for both halves",
        T + "model.py",
        "self.feed_forward(self.norm2(x_BTD))",
        "self.feed_forward(self.norm1(x_BTD))",
        "02",
    ),
    Mutation(
        "post-norm",
        M + "model.py",
        "self.attention(self.norm1(x_BTD), cache, keys[0])",
        "self.norm1(self.attention(x_BTD, cache, keys[0]))",
        "02",
    ),
)
