"""Bugs of the forward pass."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
BUGS: tuple[Mutation, ...] = (
    Mutation("tanh GELU for the exact one", M + "model.py", "nn.gelu(up)", "nn.gelu_approx(up)", "02"),
    Mutation("exact GELU for tanh", T + "model.py", ', approximate="tanh"', "", "02"),
    Mutation(
        "key and value swapped",
        T + "model.py",
        "key_BGTK, value_BGTK = all_heads",
        "value_BGTK, key_BGTK = all_heads",
        "02",
    ),
    Mutation(
        "heads interleaved with q, k, v",
        M + "model.py",
        "mx.split(all_heads, [H, H + G], axis=1)",
        "(all_heads[:, i :: 3] for i in range(3)) if H == G else mx.split(all_heads, [H, H + G], axis=1)",
        "02",
    ),
    Mutation(
        "output projection transposed",
        M + "model.py",
        "self.out_proj(attended_BHTK.swapaxes(1, 2).flatten(2))",
        "attended_BHTK.swapaxes(1, 2).flatten(2) @ self.out_proj.weight",
        "02",
    ),
    Mutation(
        "scores scaled by the model's width",
        M + "model.py",
        "scale=K**-0.5",
        "scale=self.config.dim**-0.5",
        "02",
    ),
    Mutation("no mask in explicit attention", T + "model.py", ".triu(1)", ".triu(99)", "02"),
    Mutation("no causal mask", T + "model.py", "is_causal=T > 1", "is_causal=False", "02"),
    Mutation(
        "default epsilon in the norms",
        T + "model.py",
        "self.epsilon = config.norm_epsilon",
        "self.epsilon = 1e-5",
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
        "self.attention(self.norm1(x_BTD), rotation, cache, keys[0])",
        "self.norm1(self.attention(x_BTD, rotation, cache, keys[0]))",
        "02",
    ),
)
