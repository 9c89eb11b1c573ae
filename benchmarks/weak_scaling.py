"""Simulates weak scaling up to 1,024 ranks: nothing here was run on more than two processes.

`python benchmarks/weak_scaling.py` simulates steps of data-parallel training from the numbers of `weak_scaling.json`,
and writes the chart `weak_scaling.png` and the table of `docs/scaling.md`; `--measure` first measures these numbers
with two gloo processes on this machine (`weak_scaling_gloo.py`). Every rank has the same rows, however many there are.

Simulated are ranks whose computing time varies from step to step (a gamma distribution with the measured mean and
deviation, independent between ranks), and buckets of gradients that are reduced one after the other, after the
backward pass or beside it. Left out: links that are shared or fail, ranks that are always slower, input, checkpoints.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sizes import SIZES

from faisca.bench.machine import describe_machine
from faisca.parameters import count_parameters
from faisca.planning.links import LINKS, Link
from faisca.streams import generator
from faisca.system.files import write_atomically
from faisca.tuning.devices_command import BACKWARD

ROOT = Path(__file__).parent.parent
PAGE, MEASURED = ROOT / "docs" / "scaling.md", ROOT / "benchmarks" / "weak_scaling.json"
BEGIN = "<!-- simulated: `python benchmarks/weak_scaling.py` writes this table -->"
END = "<!-- end of simulated -->"
RANKS = tuple(2**power for power in range(11))
SHOWN = (2, 8, 64, 256, 1024)
STEPS = 100
BUCKET, PIECE = 25 * 2**20, 2**17
"""bytes that are reduced at a time, as DistributedDataParallel's, and bytes that a tree sends on at a time"""
FORWARD = 1 - BACKWARD
ASSUMED_SPEED, ASSUMED_TOKENS, ASSUMED_DEVIATION = 50_000, 2048, 0.02
"""tokens a second and in a step of a faster device, and how uneven its steps are: assumed, not measured"""


@dataclass(frozen=True)
class Work:
    """A step of one rank."""

    name: str
    seconds: float
    """mean of what it computes"""
    deviation: float
    gradients: int
    """bytes that are reduced"""

    @property
    def buckets(self) -> int:
        """How many, of one size."""
        return max(1, -(-self.gradients // BUCKET))

    def computing(self, ranks: int, step: int, seed: int) -> np.ndarray:
        """Seconds of each rank in a step: float64 [ranks]; the first ranks' do not depend on how many there are."""
        if self.deviation == 0:
            return np.full(ranks, self.seconds)
        shape = (self.seconds / self.deviation) ** 2
        return generator(seed, "computing time of ranks", step).gamma(shape, self.seconds / shape, ranks)


@dataclass(frozen=True)
class Way:
    """How gradients are reduced."""

    algorithm: str
    """ring or tree"""
    overlap: bool
    """beside the backward pass, or after it"""

    @property
    def words(self) -> str:
        """Its name in chart and table."""
        return f"{self.algorithm}, {'beside' if self.overlap else 'after'} the backward pass"


WAYS = (Way("ring", False), Way("ring", True), Way("tree", True))


def ring_done(ready: np.ndarray, size: float, link: Link) -> np.ndarray:
    """When each rank has the sum of `size` bytes, over a ring (Patarasu & Yuan 2009): seconds [N], from seconds [N].

    A rank sends its next message of size / N when its last one is sent and its neighbour's has come. After N - 1
    of the 2 (N - 1) messages it has heard, through others, from all, so it only matters who was ready last.
    """
    ranks = len(ready)
    hop = link.latency + size / ranks / link.bandwidth
    return np.full(ranks, ready.max() + 2 * (ranks - 1) * hop)


def tree_done(ready: np.ndarray, size: float, link: Link) -> np.ndarray:
    """The same over two binary trees, each with half the bytes (Sanders, Speck & Träff 2009), as NCCL has them.

    A rank that is inside one tree is a leaf of the other, so its link carries all bytes once up and once down. They
    go in pieces, so that a level works on one while the next one has that before. Taken as one tree in heap order.
    """
    if len(ready) == 1:
        return ready
    pieces = max(1, round(size / PIECE))
    piece = size / pieces / link.bandwidth
    depth = np.floor(np.log2(np.arange(1, len(ready) + 1)))
    passing = depth * (link.latency + piece) + (pieces - 1) * piece  # from a rank to the root, and back
    summed = max(ready[0], (ready + passing)[1:].max())
    return summed + passing


def simulate(work: Work, link: Link, way: Way, ranks: int, steps: int = STEPS, seed: int = 0) -> float:
    """Seconds a step takes, as a mean over steps; no rank waits for another but in a reduction."""
    done_at = ring_done if way.algorithm == "ring" else tree_done
    begin, size = np.zeros(ranks), work.gradients / work.buckets
    for step in range(steps):
        computing = work.computing(ranks, step, seed)
        reduced = begin
        for bucket in range(work.buckets if ranks > 1 else 0):
            # Of the backward pass, the share after which this bucket's gradients are there.
            share = FORWARD + BACKWARD * (bucket + 1) / work.buckets if way.overlap else 1
            reduced = done_at(np.maximum(begin + share * computing, reduced), size, link)
        begin = np.maximum(begin + computing, reduced)
    return float(begin.max() / steps)


def efficiency(work: Work, link: Link, way: Way, ranks: int) -> float:
    """Of N times one rank's speed, the share that N ranks have."""
    return 1.0 if ranks == 1 else work.seconds / simulate(work, link, way, ranks)


# --- what is simulated --------------------------------------------------------------------------


def works(measured: dict[str, Any]) -> tuple[Work, Work]:
    """The step that was measured, and a larger model's on a faster device, which nobody measured."""
    step = measured["step"]
    ours = Work(f"{step['preset']} on a CPU core, as measured", step["seconds"], step["deviation"], step["gradients"])
    seconds = ASSUMED_TOKENS / ASSUMED_SPEED
    name = f"135M parameters at {ASSUMED_SPEED:,} tokens/s a device, assumed"
    gradients = 4 * count_parameters(SIZES["135M"])
    return ours, Work(name, seconds, ASSUMED_DEVIATION * seconds, gradients)


def links(measured: dict[str, Any]) -> tuple[Link, ...]:
    """The one that was measured, and those by name."""
    link = measured["link"]
    return (Link("gloo on one machine, measured", link["bandwidth"], link["latency"]), *LINKS)


def table(measured: dict[str, Any]) -> str:
    """Efficiency by ranks, in Markdown."""
    lines: list[str] = []
    for work in works(measured):
        lines += [f"### Simulated: {work.name}", "", f"| link | way | {' | '.join(f'{n:,}' for n in SHOWN)} |"]
        lines.append("| --- | --- |" + " ---: |" * len(SHOWN))
        for link in links(measured):
            for way in WAYS:
                cells = " | ".join(f"{efficiency(work, link, way, ranks):.0%}" for ranks in SHOWN)
                lines.append(f"| {link.name} | {way.words} | {cells} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def compared(measured: dict[str, Any]) -> str:
    """The two processes that were measured, beside their simulation; and how busy the machine was."""
    (ours, _), (gloo, *_), machine = works(measured), links(measured), measured["machine"]
    both, alone = measured["pair"]["seconds"], measured["step"]["seconds"]
    return (
        f"Measured with two processes: a step takes {alone:.2f} s (deviation {ours.deviation:.2f}), one that averages "
        f"its gradients {both:.2f} s,\nand {simulate(ours, gloo, WAYS[0], 2):.2f} s simulated. A message takes "
        f"{1e6 * gloo.latency:.0f} µs, and {gloo.bandwidth / 1e9:.2f} GB/s pass. "
        f"The machine has {machine['cores']} cores; load {machine['load_average']:.1f} when it was measured.\n"
    )


def page(text: str, measured: dict[str, Any]) -> str:
    """The page with its table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{compared(measured)}\n{table(measured)}\n{END}{rest.partition(END)[2]}"


def draw(measured: dict[str, Any], path: Path) -> None:
    """Efficiency by ranks: a row of panels for each step, a column for each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    panels = figure.subplots(2, len(WAYS), sharex=True, sharey=True)
    for row, work in zip(panels, works(measured), strict=True):
        for panel, way in zip(row, WAYS, strict=True):
            for link in links(measured):
                shares = [efficiency(work, link, way, ranks) for ranks in RANKS]
                panel.plot(RANKS, shares, marker="o", markersize=3, label=link.name)
            panel.set_title(f"{work.name}\n{way.words}", fontsize=8)
            panel.set_xscale("log", base=2)
            panel.set_xticks(RANKS[::2], [f"{ranks:,}" for ranks in RANKS[::2]])
            panel.set_ylim(0, 1.05)
            panel.grid(alpha=0.25)
    for panel in panels[:, 0]:
        panel.set_ylabel("efficiency of weak scaling")
    for panel in panels[-1]:
        panel.set_xlabel("ranks, simulated")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("A simulation: only two processes on one machine were measured", fontsize=11)
    figure.savefig(path, dpi=110)


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure with two processes first: some minutes")
    if parser.parse_args().measure:
        printed = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "weak_scaling_gloo.py")],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        found = {"machine": describe_machine(), **json.loads(printed)}
        write_atomically(MEASURED, (json.dumps(found, indent=2) + "\n").encode())
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), measured), encoding="utf-8")
    draw(measured, MEASURED.with_suffix(".png"))
    print(compared(measured))


if __name__ == "__main__":
    main()
