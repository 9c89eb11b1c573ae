"""Bugs of what Llama's family has: what ports between its implementations get wrong."""

from bugs.mutation import Mutation

T, M, ROTATION = "faisca_torch/model.py", "faisca_mlx/model.py", "faisca/rotation.py"
L, K = "faisca_torch/losses.py", "faisca_mlx/losses.py"
CACHED = "faisca_mlx/cache.py"
TURNED = """        if rotation is not None:
            query_BHTK, key_BGTK = rotate(query_BHTK, rotation), rotate(key_BGTK, rotation)
"""
NORMED = """        if self.config.qk_norm and self.config.qk_norm_over == "head":
            query_BHTK, key_BGTK = self.query_norm(query_BHTK), self.key_norm(key_BGTK)
"""
BUGS: tuple[Mutation, ...] = (
    # bigrams
    Mutation(
        "torch: bigrams with their tokens exchanged",
        T,
        "first_V[tokens_before(tokens_BT, cache)] ^ second_V[tokens_BT]",
        "second_V[tokens_before(tokens_BT, cache)] ^ first_V[tokens_BT]",
        "02",
    ),
    Mutation(
        "MLX: a bigram sees the next token",
        CACHED,
        "[last_B1, tokens_BT[:, :-1]]",
        "[tokens_BT[:, 1:], last_B1]",
        "02",
    ),
    Mutation(
        "torch: the cache forgets the token before",
        T,
        "cache.length, cache.last_B1 = end, tokens_BT[:, -1:]",
        "cache.length = end",
        "07",
    ),
    Mutation(
        "MLX: the tokens before of the wrong rows", CACHED, "self.last_B1[kept]", "self.last_B1[: len(rows)]", "07"
    ),
    Mutation("bigrams by their low bits", "faisca/bigrams.py", "% 2**32 >> DROPPED_BITS", "% 2**32 >> 1", "02"),
    # rotation
    Mutation(
        "torch: neighbours turned, as in the paper, where weights have halves",
        T,
        "x_BHTK.chunk(2, dim=-1)",
        "(x_BHTK[..., 0::2], x_BHTK[..., 1::2])",
        "02",
    ),
    Mutation("MLX: turned the other way", M, "right * cos_TJ + left * sin_TJ", "right * cos_TJ - left * sin_TJ", "02"),
    Mutation(
        "torch: keys are not turned",
        T,
        "rotate(query_BHTK, rotation), rotate(key_BGTK, rotation)",
        "rotate(query_BHTK, rotation), key_BGTK",
        "02",
    ),
    Mutation(
        "torch: rotation begins anew after the cache",
        T,
        "(self.rotation[0][start:end], self.rotation[1][start:end])",
        "(self.rotation[0][: end - start], self.rotation[1][: end - start])",
        "07",
    ),
    Mutation(
        "MLX: keys are turned again when they leave the cache",
        M,
        "cache.append(self.layer, key_BGTK, value_BGTK)\n",
        "cache.append(self.layer, key_BGTK, value_BGTK)\n"
        "            if rotation is not None and x_BTD.shape[1] == 1:\n"
        "                key_BGTK = rotate(key_BGTK, rotation)\n",
        "07",
    ),
    Mutation("MLX: queries and keys normalised after they are turned", M, NORMED + TURNED, TURNED + NORMED, "02"),
    Mutation("rotation's base fixed", ROTATION, "config.rope_base**-pairs", "10_000.0**-pairs", "02"),
    Mutation(
        "rotation over the model's width",
        ROTATION,
        "np.arange(0, config.head_width, 2) / config.head_width",
        "np.arange(0, config.head_width, 2) / config.dim",
        "02",
    ),
    Mutation("all wavelengths stretched", ROTATION, "(high - low), 0, 1)", "(high - low), 0, 0)", "02"),
    Mutation("short wavelengths stretched", ROTATION, "(turns - low) / (high", "(high - turns) / (high", "02"),
    Mutation(
        "angles in float32",
        ROTATION,
        "np.arange(config.context)[:, None] * frequencies(config)",
        "np.arange(config.context, dtype=np.float32)[:, None] * frequencies(config).astype(np.float32)",
        "tests/test_rotation.py",
    ),
    # norms
    Mutation(
        "torch: epsilon outside the root",
        T,
        "normed = F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)",
        "normed = x / (x.square().mean(-1, keepdim=True).sqrt() + self.epsilon) * self.weight",
        "02",
    ),
    Mutation("MLX: one added to the weight", M, "rms_norm(x, self.weight,", "rms_norm(x, 1 + self.weight,", "02"),
    Mutation(
        "torch: queries and keys normalised over all heads",
        T,
        "self.query_norm(query_BHTK), self.key_norm(key_BGTK)",
        "(norm.weight * x * (x.square().mean((1, 3), keepdim=True) + norm.epsilon).rsqrt()\n"
        "                for norm, x in ((self.query_norm, query_BHTK), (self.key_norm, key_BGTK)))",
        "02",
    ),
    Mutation("MLX: one norm for queries and keys", M, "self.key_norm(key_BGTK)", "self.query_norm(key_BGTK)", "02"),
    Mutation(
        "torch: the residual stream rounded before it is normalised",
        T,
        "x = x.float() if self.narrow else x",
        "x = x.bfloat16().float() if self.narrow else x",
        "10",
    ),
    # grouped queries
    Mutation(
        "torch: key heads repeated one after the other",
        T,
        "heads.repeat_interleave(shared_by, dim=1)",
        "heads.repeat(1, shared_by, 1, 1)",
        "02",
    ),
    Mutation(
        "MLX: key heads repeated one after the other",
        M,
        "mx.repeat(heads, H // G, axis=1)",
        "mx.tile(heads, (1, H // G, 1, 1))",
        "02",
    ),
    Mutation(
        "MLX: keys and values before the queries",
        M,
        "query_BHTK, key_BGTK, value_BGTK = mx.split(all_heads, [H, H + G], axis=1)",
        "key_BGTK, value_BGTK, query_BHTK = mx.split(all_heads, [G, 2 * G], axis=1)",
        "02",
    ),
    # feed-forward
    Mutation(
        "torch: gate and up swapped",
        T,
        "F.silu(self.gate(x_BTD, *groups)) * up",
        "F.silu(up) * self.gate(x_BTD, *groups)",
        "02",
    ),
    Mutation(
        "MLX: a sigmoid for the gate's SiLU",
        M,
        "nn.silu(self.gate(x_BTD, *groups))",
        "mx.sigmoid(self.gate(x_BTD, *groups))",
        "02",
    ),
    Mutation("MLX: ReLU without its square", M, "nn.relu(up).square()", "nn.relu(up)", "02"),
    # the soft cap
    Mutation("torch: a soft cap that is not scaled back", L, "logits_nV.mul_(soft_cap), 1 -", "logits_nV, 1 -", "02"),
    Mutation("torch: a soft cap without a slope", L, "1 - (logits_nV / soft_cap).square_()", "None", "04"),
    Mutation("MLX: a soft cap without a slope", K, "1 - tanh_nV.square()", "None", "04"),
    Mutation(
        "MLX: samplers pass over the soft cap",
        K,
        "head.weight_VD), head.soft_cap)[0]",
        "head.weight_VD), 0.0)[0]",
        "02",
    ),
    # heads, and what is recomputed
    Mutation(
        "MLX: a tied head that no gradient reaches",
        M,
        "self.token_embedding.weight if self.config.tie_embeddings",
        "mx.stop_gradient(self.token_embedding.weight) if self.config.tie_embeddings",
        "04",
    ),
    Mutation(
        "torch: recomputed blocks are not turned",
        T,
        "checkpoint(block, x_BTD, rotation,",
        "checkpoint(block, x_BTD, None,",
        "04",
    ),
)
