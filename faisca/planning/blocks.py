"""What a transformer block keeps for the backward pass, array by array.

N tokens, D model width, F feed-forward width, T tokens in a row, H query heads, G heads of keys and values, K head
width. In bfloat16 what lies between two products has 2 bytes a number; the residual stream and its norms keep 4.
"""

from faisca.config import plain
from faisca.parameters import adapter_parts, in_block, parameter_shapes
from faisca.planning.load import FLOAT, Load

TORCH_ACTIVATION = {"gelu": 2, "gelu_tanh": 2, "relu2": 2, "swiglu": 4}
"""arrays [N, F]: what the activation reads and what `down` reads; a gate, its SiLU, and what that multiplies"""

MLX_STREAM = 2
"""arrays [N, D] in float32 that MLX keeps of a block: what both norms read"""
MLX_ATTENDED = 3.3
"""arrays [N, H·K] as wide as a product's factor: scaled queries, what is attended to, and its copy"""
MLX_HEAD_NORMS = 1.3
"""times the queries and keys, in float32: what their norms read, and what the norms' weights multiply"""
MLX_ACTIVATION = {"gelu": 4, "gelu_tanh": 5, "relu2": 3.3, "swiglu": 5}
"""arrays [N, F]: GELU is four operations whose inputs stay; the tanh form has one more; a gate is a second input"""
MLX_SCORES = 1.1
"""arrays [N, H·T]: the softmax, for on the CPU MLX's fused kernel has no backward pass; with dropout three"""


def torch_block(load: Load) -> float:
    """Bytes that autograd saves of a block; exact: it is known which inputs each operation saves."""
    D, width = load.model.dim, load.width
    # Their inputs, with mean and inverse deviation; RMSNorm is some operations, and keeps what its weight multiplies.
    multiplied = 0 if load.adapter else D  # a frozen weight asks for nothing
    norm = FLOAT * (D + multiplied + 1 if load.model.norm == "rms" else D + 2)
    feed_forward = TORCH_ACTIVATION[load.model.activation] * width * load.hidden
    feed_forward += 2 * width * load.rows_of_experts  # what experts read, and what their weights multiply
    feed_forward += _torch_router(load)
    masks = 2 * width * D if load.dropout else 0
    results = 2 * width * D  # of both norms, which the products read
    copied = load.changed and not (
        load.explicit or load.attention_dropout
    )  # else what attention hands on is kept anyway
    adapter = adapter_numbers(load, load.queries if copied else 0) * width
    return load.tokens * (2 * norm + results + feed_forward + masks + _torch_attention(load) + adapter)


def adapter_numbers(load: Load, attended: int) -> float:
    """Numbers a token that an adapter adds to what a block keeps, or spares; `attended`: those counted of attention.

    What a frozen matrix reads is kept for its adapter alone: once, or with dropout for each part, and a mask beside it.
    B reads `rank` numbers a part.
    """
    if load.adapter is None:
        return 0
    read: dict[str, tuple[int, int]] = {}
    parts = adapter_parts(load.model)
    for name, shape in parameter_shapes(plain(load.model)).items():
        if name.startswith("transformer_blocks.0.") and in_block(name, shape):
            module = name.removesuffix(".weight")
            times = load.model.experts_per_token if len(shape) == 3 else 1
            source = module.replace(".gate", ".up")  # both read the same
            adapted = sum(part is not None for part, _ in parts.get(module, ())) + read.get(source, (0, 0))[1]
            read[source] = times * shape[-1], adapted
    total = 0.0
    for source, (numbers, adapted) in read.items():
        rows = load.model.experts_per_token if ".experts." in source else 1
        counted = attended if source.endswith("out_proj") else numbers
        kept = 2 * numbers * adapted if load.adapter.dropout else counted * min(adapted, 1)
        total += kept - counted + rows * load.adapter.rank * adapted
    if load.adapter.dora:  # what m multiplies
        layers = len(parts) // load.model.num_layers
        total += sum(rows for own in list(parts.values())[:layers] for part, rows in own if part)
    return total


def _torch_router(load: Load) -> float:
    """Bytes a token: what softmax and losses keep of logits, a copy in float32, and the places of its choices."""
    model = load.model
    if not model.num_experts:
        return 0
    copy = FLOAT * model.dim if load.narrow else 0
    return FLOAT * model.num_experts * (2 if load.policy else 7) + 36 * model.experts_per_token + copy


def _torch_attention(load: Load) -> float:
    """Bytes a token: queries, keys, values, the result, and the scores, of which a fused kernel keeps none."""
    HK, scores, width = load.queries, load.model.num_heads * load.length, load.width
    if load.explicit:  # keys and values are repeated for their queries
        shares = FLOAT + (width if load.narrow else 0)  # the softmax, and its copy in bfloat16
        shares = FLOAT + 2 * width if load.attention_dropout else shares
        return 4 * width * HK + shares * scores + _torch_head_norms(load, product_kept=False)
    if load.attention_dropout:  # torch's own unfused path, on the CPU in float32 even in bfloat16
        arrays, shares = (3 * FLOAT + 2, 3 * FLOAT) if load.narrow else (7 * FLOAT, 2.25 * FLOAT)
        return arrays * HK + shares * scores + _torch_head_norms(load, product_kept=False)
    fused = width * (load.projected + HK) + FLOAT * load.model.num_heads
    if load.changed:  # they are new arrays, beside the product's; the kernel's result is copied for the next one
        fused += width * (load.changed + HK)
    return fused + _torch_head_norms(load, product_kept=True)


def _torch_head_norms(load: Load, product_kept: bool) -> float:
    """Bytes a token of the norms of queries and keys: what they read, unless it is kept anyway, and as in a block's."""
    if not load.model.qk_norm:
        return 0
    product_kept = product_kept and load.model.qk_norm_over == "head"  # of all heads, what is normed is a new product
    read = FLOAT * load.changed if load.narrow else (0 if product_kept else FLOAT * load.projected)
    multiplied = 0 if load.adapter else load.changed
    return read + FLOAT * (multiplied + load.model.num_heads + load.model.kv_heads)


def mlx_block(load: Load) -> float:
    """Bytes that MLX's graph holds of a block: fitted to measured peaks, and close to the arrays that vjps read."""
    D, HK, width = load.model.dim, load.queries, load.width
    # Both norms' results, queries, keys, values, what is made anew of them, the scaled and the attended, with copies.
    between = (2 + (2 if load.dropout else 0)) * D + load.projected + load.changed + MLX_ATTENDED * HK
    head_norms = MLX_HEAD_NORMS * FLOAT * load.changed if load.model.qk_norm else 0
    between += load.projected if load.model.qk_norm_over == "all" else 0  # what is normed is put together anew
    feed_forward = MLX_ACTIVATION[load.model.activation] * width * load.hidden
    # What experts read, and what their weights multiply: those are float32, and so is then a copy of that.
    feed_forward += (2 * width + (FLOAT if load.narrow else 0)) * load.rows_of_experts
    stream = FLOAT * MLX_STREAM * D
    adapter = width * adapter_numbers(load, HK)
    return load.tokens * (stream + width * between + head_norms + feed_forward + adapter) + _mlx_scores(load)


def _mlx_scores(load: Load) -> float:
    """Bytes of a block's scores and what is made of them."""
    numbers = load.tokens * load.model.num_heads * load.length
    if not load.attention_dropout:
        return numbers * load.width * MLX_SCORES
    return numbers * (2.5 * FLOAT if load.narrow else 3 * FLOAT)
