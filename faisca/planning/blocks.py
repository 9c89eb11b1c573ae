"""What a transformer block keeps for the backward pass, array by array.

N tokens, D model width, F feed-forward width, T tokens in a row, H heads. In bfloat16 what lies between two
products has 2 bytes a number; the residual stream and its norms keep 4.
"""

from faisca.planning.load import FLOAT, Load

MLX_STREAM = 2
"""arrays [N, D] in float32 that MLX keeps of a block: what both norms read"""
MLX_BETWEEN = 8.3
"""and as wide as a product's factor: both norms' results, queries, keys, values, their copies, and the result"""
MLX_SCORES = 1.1
"""arrays [N, H·T]: the softmax, for on the CPU MLX's fused kernel has no backward pass; with dropout three"""


def torch_block(load: Load) -> float:
    """Bytes that autograd saves of a block; exact: it is known which inputs each operation saves."""
    D, F, width = load.model.dim, load.model.hidden_dim, load.width
    norms = 2 * (FLOAT * D + 2 * FLOAT)  # their inputs, with mean and inverse deviation
    between = 2 * width * D  # their results, which the products read
    feed_forward = 2 * width * F  # before and after the activation
    masks = 2 * width * D if load.dropout else 0
    return load.tokens * (norms + between + feed_forward + masks + _torch_attention(load))


def _torch_attention(load: Load) -> float:
    """Bytes a token: queries, keys, values, the result, and the scores, of which a fused kernel keeps none."""
    D, H, T, width = load.model.dim, load.model.num_heads, load.length, load.width
    if load.explicit:
        shares = FLOAT + (width if load.narrow else 0)  # the softmax, and its copy in bfloat16
        return 4 * width * D + H * T * (FLOAT + 2 * width if load.attention_dropout else shares)
    if load.attention_dropout:  # torch's own unfused path, on the CPU in float32 even in bfloat16
        arrays = 3 * FLOAT + 2 if load.narrow else 6 * FLOAT
        return arrays * D + 3 * FLOAT * H * T
    return 4 * width * D + FLOAT * H


def mlx_block(load: Load) -> float:
    """Bytes that MLX's graph holds of a block: fitted to measured peaks, and close to the arrays that vjps read."""
    D, F, width = load.model.dim, load.model.hidden_dim, load.width
    between = width * D * (MLX_BETWEEN + (2 if load.dropout else 0))
    # GELU is four operations on [N, F], whose inputs stay; the tanh form has one more
    feed_forward = width * F * (5 if load.model.activation == "gelu_tanh" else 4)
    return load.tokens * (FLOAT * MLX_STREAM * D + between + feed_forward) + _mlx_scores(load)


def _mlx_scores(load: Load) -> float:
    """Bytes of a block's scores and what is made of them."""
    numbers = load.tokens * load.model.num_heads * load.length
    if not load.attention_dropout:
        return numbers * load.width * MLX_SCORES
    return numbers * (2.5 * FLOAT if load.narrow else 3 * FLOAT)
