"""What only the framework can measure of the machine: how fast it multiplies matrices."""

import time
from collections.abc import Iterable

import mlx.core as mx

from faisca.backend import Runtime


def matmul_seconds(*, runtime: Runtime, products: Iterable[tuple[int, int, int, int]]) -> float:
    """Seconds that these matrix products take one after another: (batch, m, k, n), in the runtime's dtype.

    Factors of a shape are made once and their results thrown away: no optimiser, no elementwise work.
    """
    products, dtype = list(products), getattr(mx, runtime.dtype)
    factors = {(b, m, k, n): (mx.ones((b, m, k), dtype), mx.ones((b, k, n), dtype)) for b, m, k, n in products}
    mx.eval(factors.values())
    began = time.perf_counter()
    for shape in products:
        left, right = factors[shape]
        mx.async_eval(left @ right if shape[0] > 1 else left[0] @ right[0])
    mx.synchronize()
    return time.perf_counter() - began
