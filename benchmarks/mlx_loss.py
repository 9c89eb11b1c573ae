"""MLX's two cross-entropies on this device: seconds, peak memory and how far each is from float64.

`python benchmarks/mlx_loss.py` measures loss and gradients with the fused kernel inside each chunk and
with explicit exponentials. A GPU takes the first by itself and a CPU the second (`faisca_mlx/device.py`,
`_choose_loss`): on a Mac this says whether that is right there.
"""

import statistics
import time
from dataclasses import dataclass

import faisca_mlx  # isort: skip  # first, for its fast BLAS
import mlx.core as mx
import numpy as np
import tyro

from faisca.config import RunConfig
from faisca_mlx.losses import Head, linear_cross_entropy


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    rows: int = 2048
    """positions whose loss is computed"""
    width: int = 128
    """of hidden states and head"""
    vocabulary: int = 50_257
    """tokens of the head"""
    chunks: tuple[int, ...] = (128, 512, 2048)
    """rows of logits alive at a time"""
    rounds: int = 5
    """times that each is timed, in turns"""
    dtype: str = "float32"
    """float32 or bfloat16: of hidden states"""
    device: str = "auto"
    """auto, cpu or gpu"""


def exact_loss(hidden: np.ndarray, head: np.ndarray, targets: np.ndarray) -> float:
    """The summed loss in float64, of the numbers that MLX is given."""
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    peak = logits.max(axis=1)
    sums = np.log(np.exp(logits - peak[:, None]).sum(axis=1)) + peak
    return float((sums - logits[np.arange(len(targets)), targets]).sum())


def measure(arrays: tuple[mx.array, ...], chunk: int, fused: bool) -> tuple[float, int, float]:
    """Seconds of loss and gradients, peak bytes beyond what is held, and the loss."""
    hidden, head, targets = arrays

    def loss_of(hidden: mx.array, head: mx.array) -> mx.array:
        return linear_cross_entropy(hidden, Head(head), targets, chunk, True, fused)

    held = mx.get_active_memory()
    mx.reset_peak_memory()
    began = time.perf_counter()
    loss, gradients = mx.value_and_grad(loss_of, (0, 1))(hidden, head)
    mx.eval(loss, gradients)
    return time.perf_counter() - began, mx.get_peak_memory() - held, loss.item()


def main(options: Options) -> None:
    """Measure, and print a line for each chunk size and loss."""
    runtime = faisca_mlx.open_runtime(config=RunConfig(device=options.device))
    random, dtype = np.random.default_rng(0), getattr(mx, options.dtype)
    hidden = mx.array(random.standard_normal((options.rows, options.width)), mx.float32).astype(dtype)
    head = mx.array(random.standard_normal((options.vocabulary, options.width)) / options.width**0.5, mx.float32)
    targets = mx.array(random.integers(options.vocabulary, size=options.rows), mx.int32)
    mx.eval(hidden, head, targets)
    rounded = (np.array(array.astype(dtype).astype(mx.float32)) for array in (hidden, head))
    exact = exact_loss(*rounded, np.array(targets))
    print("; ".join(f"{name} {value}" for name, value in runtime.details.items()))
    print(f"{options.rows} rows, vocabulary {options.vocabulary:,}, width {options.width}, {options.dtype}")
    for chunk in options.chunks:
        found: dict[bool, list[tuple[float, int, float]]] = {False: [], True: []}
        for turn in range(2 * (options.rounds + 1)):  # the first round warms up
            found[turn % 2 == 1].append(measure((hidden, head, targets), chunk, turn % 2 == 1))
        for fused, (_, *timed) in found.items():
            seconds, peak, loss = (statistics.median(column) for column in zip(*timed, strict=True))
            print(
                f"chunk {chunk:5} {'fused' if fused else 'explicit':8} {1000 * seconds:9.1f} ms  {peak / 1e6:8.1f} MB  "
                f"off by {abs(loss / exact - 1):.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Options))
