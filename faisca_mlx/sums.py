"""Long sums, to float32's last digits on every processor."""

import mlx.core as mx

BLOCK = 16
"""numbers that are added one after the other, at most"""


def total(values: mx.array) -> mx.array:
    """The sum of all numbers: a scalar."""
    return row_sums(values.flatten())


def row_sums(values: mx.array) -> mx.array:
    """Sums over the last axis, [..., n] -> [...], added in blocks of blocks.

    MLX on the CPU adds one after the other, in few lanes, and so do some BLAS in a product with ones: 4e-4 off for
    50,257 equal numbers, 0.1 for ten million. Here each number passes ceil(log16 n) sums of at most 16, so that
    the error is at most 15 u ceil(log16 n) of the sum of magnitudes (u = 2^-24): 5.4e-6 for ten million.
    """
    while (size := values.shape[-1]) > BLOCK:
        whole = size - size % BLOCK
        blocks = values[..., :whole].reshape(*values.shape[:-1], -1, BLOCK).sum(axis=-1)
        rest = [values[..., whole:].sum(axis=-1, keepdims=True)] if size > whole else []
        values = mx.concatenate([blocks, *rest], axis=-1)
    return values.sum(axis=-1)
