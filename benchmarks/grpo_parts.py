"""Where the time of a whole GRPO step goes, and how much of it is matrix products.

`python benchmarks/grpo_parts.py --backend torch` times a step with full rows part by part, as training does it,
and beside each part the matrix products that it is made of, alone. What products take nobody can save
without better products; the rest is softmax, sampling, norms, the optimiser and Python.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from faisca.bench.products import grpo_products
from faisca.bench.twin import TwinSubject
from faisca.bench.work import make_work
from faisca.config import RunConfig
from faisca.config.sections import BackendName


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    backend: BackendName = "torch"
    """torch or mlx: each needs a process of its own"""
    preset: str = "faisca"
    """whose sizes to measure"""
    quick: bool = False
    """smaller batches and lengths"""
    rounds: int = 3
    """times that each part is timed, after one that warms up"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """where to compute"""


def median(seconds: Iterable[float]) -> float:
    """In milliseconds."""
    return 1000 * statistics.median(seconds)


def main(options: Options) -> None:
    """Measure, and print a line for each part."""
    work = make_work(options.preset, quick=options.quick)
    subject = TwinSubject(options.backend, work, RunConfig(device=options.device))
    products = grpo_products(work, subject.runtime.loss_chunk)
    alone = {part: subject.products(found) for part, found in products.items()}
    step, seconds, floor = (
        subject.grpo_round(),
        defaultdict[str, list[float]](list),
        defaultdict[str, list[float]](list),
    )
    for turn in range(options.rounds + 1):
        for part, spent in step().items():
            taken = alone[part]()
            if turn:  # the first warms up
                seconds[part].append(spent)
                floor[part].append(taken)
    print("; ".join(f"{name} {value}" for name, value in subject.describe().items()))
    seconds["whole step"], floor["whole step"] = (
        [sum(turns) for turns in zip(*found.values(), strict=True)] for found in (seconds, floor)
    )
    table = Table("", "ms", "products alone, ms", "share", "GFLOP", box=box.SIMPLE_HEAD)
    products["whole step"] = [product for found in products.values() for product in found]
    for part, found in seconds.items():
        whole, least = median(found), median(floor[part])
        shown = (f"{least:,.0f}", f"{100 * least / whole:.0f} %") if products[part] else ("–", "–")
        flops = sum(2e-9 * b * m * k * n for b, m, k, n in products[part])
        table.add_row(part, f"{whole:,.0f}", *shown, f"{flops:,.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
