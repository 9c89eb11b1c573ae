"""How the cost of a training step grows: with batch, context, vocabulary, width, and the loss's chunk.

`python benchmarks/scaling.py --out benchmarks/scaling` writes a JSON file and a chart.
Around one base point one number is changed at a time; every point is measured in a process of its
own, so that its peak memory is its own.
"""

import dataclasses
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure

from faisca.bench.machine import describe_machine
from faisca.bench.work import Work, make_work, training_tokens
from faisca.bench.worker import SubjectSpec, Worker
from faisca.config import RunConfig

BASE = {"batch": 8, "context": 128, "vocabulary": 8192, "width": 128, "chunk": 0}
AXES = {
    "batch": (2, 4, 8, 16, 32),
    "context": (32, 64, 128, 256, 512),
    "vocabulary": (1024, 4096, 16384, 50257),
    "width": (64, 128, 256, 512),
    "chunk": (32, 128, 512, 2048),
}
SECONDS_A_POINT = 6.0
"""roughly, on two cores: most of it starts the process"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the scaling curves."""

    out: Path
    """the results, without suffix: .json and .png are written"""
    backends: tuple[str, ...] = ("torch", "mlx")
    """torch, mlx or both"""
    axes: tuple[str, ...] = tuple(AXES)
    """which numbers to change"""
    rounds: int = 3
    """steps timed at each point"""


def work_at(point: dict[str, int]) -> Work:
    """The spark preset with the sizes of a point."""
    work = make_work("spark", quick=False)
    sizes = {"context": point["context"], "dim": point["width"], "hidden_dim": 4 * point["width"]}
    config = replace(
        work.config,
        model=replace(work.config.model, **sizes),
        data=replace(work.config.data, window=point["context"], stride=point["context"]),
        pretrain=replace(work.config.pretrain, batch_size=point["batch"]),
    )
    model = replace(config.model, vocabulary_size=point["vocabulary"])
    return dataclasses.replace(work, config=config, model=model)


def measure(backend: str, point: dict[str, int], rounds: int) -> dict[str, Any]:
    """Tokens a second and peak memory of a training step."""
    work = work_at(point)
    with Worker(SubjectSpec(backend, work, RunConfig(loss_chunk=point["chunk"]))) as worker:
        memory = worker.ask("fresh")
        seconds = [worker.ask("training_seconds") for _ in range(rounds + 1)][1:]
    rate = training_tokens(work) / statistics.median(seconds)
    return {"tokens_per_second": rate, "rounds": seconds} | memory


def draw(curves: list[dict[str, Any]], path: Path) -> None:
    """Tokens/s above, memory below, a column an axis."""
    axes = list(dict.fromkeys(curve["axis"] for curve in curves))
    figure = Figure(figsize=(3.2 * len(axes), 5.5), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False, sharex="col")
    for column, axis in enumerate(axes):
        for curve in (curve for curve in curves if curve["axis"] == axis):
            x = [point["at"] for point in curve["points"]]
            for row, key, unit in ((0, "tokens_per_second", 1), (1, "peak_resident", 1e9)):
                y = [point[key] / unit for point in curve["points"]]
                panels[row][column].plot(x, y, marker="o", label=curve["backend"])
                panels[row][column].grid(alpha=0.25)
        panels[0][column].set_xscale("log", base=2)
        panels[0][column].set_title(axis)
        panels[1][column].set_xticks(x, [f"{value:,}" for value in x], rotation=45)
        panels[1][column].minorticks_off()
    for panel in panels.flat:
        panel.set_ylim(0, 1.08 * panel.dataLim.ymax)
    panels[0][0].set_ylabel("tokens/s")
    panels[1][0].set_ylabel("peak memory, resident (GB)")
    panels[0][-1].legend(frameon=False, loc="center right")
    figure.savefig(path, dpi=120)


def main(options: Options) -> None:
    """Measure all points, backends in turns at each."""
    count = sum(len(AXES[axis]) for axis in options.axes) * len(options.backends)
    print(f"{count} points: about {count * SECONDS_A_POINT / 60:.0f} min on two cores")
    machine = describe_machine()
    curves = [{"axis": axis, "backend": name, "points": []} for axis in options.axes for name in options.backends]
    for axis in options.axes:
        for value in AXES[axis]:
            for curve in (curve for curve in curves if curve["axis"] == axis):
                measured = measure(curve["backend"], BASE | {axis: value}, options.rounds)
                curve["points"].append({"at": value} | measured)
                rate, peak = measured["tokens_per_second"], measured["peak_resident"] / 1e9
                print(f"{axis:10} {value:6} {curve['backend']:5} {rate:10,.0f} tokens/s {peak:6.2f} GB", flush=True)
    results = {"machine": machine, "base": BASE, "curves": curves}
    options.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(curves, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Options))
