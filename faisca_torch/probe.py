"""What only the framework can measure of the machine: how fast it multiplies matrices."""

import time
from collections.abc import Iterable

import torch

from faisca.backend import Runtime


def matmul_seconds(*, runtime: Runtime, products: Iterable[tuple[int, int, int, int]]) -> float:
    """Seconds that these matrix products take one after another: (batch, m, k, n), in the runtime's dtype.

    Factors of a shape are made once and their results thrown away: no optimiser, no elementwise work.
    """
    products, dtype = list(products), getattr(torch, runtime.dtype)
    factors = {
        (b, m, k, n): (
            torch.ones(b, m, k, dtype=dtype, device=runtime.device),
            torch.ones(b, k, n, dtype=dtype, device=runtime.device),
            torch.empty(b, m, n, dtype=dtype, device=runtime.device),
        )
        for b, m, k, n in products
    }
    _wait(runtime)
    began = time.perf_counter()
    for shape in products:
        left, right, out = factors[shape]
        torch.bmm(left, right, out=out) if shape[0] > 1 else torch.mm(left[0], right[0], out=out[0])
    _wait(runtime)
    return time.perf_counter() - began


def _wait(runtime: Runtime) -> None:
    if runtime.device != "cpu":
        getattr(torch, runtime.device).synchronize()
