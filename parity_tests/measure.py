"""How far the twins are apart, measured: the numbers behind the tolerances in docs/parity.md.

    python parity_tests/measure.py [SEEDS [RUN ...]]

Every rung of `faisca parity`, on small fresh models of every architecture, on models that this script first trains
through all three stages, and on the RUNs; under every family of kernels that this processor runs, with one thread
and with two, each in a process and with seeds of its own. Margin: what is allowed over the largest that was found.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from cases import GPT2, OPTIONS, PAIRED, TWINS, Twin, make_case
from kernels import THREADS, Kernel, environment, runnable

from faisca.config import Config
from faisca.config.files import load_preset
from faisca.parity.cases import Case, Side
from faisca.parity.command import BFLOAT16_RUNGS, in_bfloat16
from faisca.parity.command import make_case as case_of_checkpoint
from faisca.parity.differences import differences
from faisca.parity.rungs import RUNGS
from faisca.parity.sampling import agreement, settings

ARCHITECTURES: tuple[dict[str, Any], ...] = ({}, GPT2)
"""of the trained models"""
TORCH = ", torch"
"""ends the title of a rung that compares torch in bfloat16 with torch"""

Measurement = tuple[str, str, str, float]
"""side, fresh or trained, a rung's title, the largest difference"""


def trained_config(options: dict[str, Any], seed: int) -> Config:
    """`spark`, smaller and for half of its steps: a minute or two."""
    config = load_preset("spark")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **{"dim": 64, "num_layers": 2, "hidden_dim": 256} | options),
        pretrain=dataclasses.replace(config.pretrain, max_steps=240, max_validation_titles=100),
        sft=dataclasses.replace(config.sft, max_steps=120, max_validation_titles=100),
        grpo=dataclasses.replace(config.grpo, steps=20),
        sample=dataclasses.replace(config.sample, counted=20),
        run=dataclasses.replace(config.run, seed=seed),
    )


def train_models(folder: Path) -> Iterator[Path]:
    """Runs of torch on the CPU through all three stages, one for each architecture."""
    for seed, options in enumerate(ARCHITECTURES):
        print(f"training {options or 'the default architecture'}", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(sys.stderr):
            Twin("torch", "cpu").run(trained_config(options, seed), folder / str(seed))
        yield folder / str(seed)


def fresh_cases(seeds: range) -> Iterator[Case]:
    return (make_case(seed, **options) for options in OPTIONS for seed in seeds)


def trained_cases(runs: list[Path], seeds: range) -> Iterator[Case]:
    """Each stage's last checkpoint, on other tokens for each seed."""
    for run in runs:
        for checkpoint in sorted((run / "checkpoints").iterdir()):
            for seed in seeds:
                yield dataclasses.replace(case_of_checkpoint(checkpoint), seed=seed)


def distances(yardstick: Side, other: Side, case: Case) -> Iterator[tuple[str, str, float]]:
    """A side's name, a rung's title and the largest difference there, for every rung."""
    sides = [
        (RUNGS, other, ""),
        (BFLOAT16_RUNGS, in_bfloat16(other), ""),
        (BFLOAT16_RUNGS, in_bfloat16(yardstick), TORCH),
    ]
    for rungs, side, note in sides:
        for rung in rungs:
            found = differences(rung.arrays(yardstick, case), rung.arrays(side, case))
            yield rung.title + note, max(float(getattr(one, rung.measure)) for one in found)


def worker(seeds: range, runs: list[Path]) -> None:
    """In a process of its own, whose environment chose the kernels: a JSON line for each distance."""
    for kind, cases in (("fresh", fresh_cases(seeds)), ("trained", trained_cases(runs, seeds))):
        for case in cases:
            for other in PAIRED:
                for title, value in distances(TWINS[0].side, other.side, case):
                    print(json.dumps([str(other), kind, title, value]), flush=True)


def measure(kernel: Kernel, threads: int, seeds: range, runs: list[Path]) -> list[Measurement]:
    """All distances under a kernel."""
    command = [sys.executable, __file__, "--worker", str(seeds.start), str(seeds.stop), *map(str, runs)]
    done = subprocess.run(command, env=environment(kernel.environment(), threads), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{kernel}, {threads} threads: {done.stderr[-2000:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    smallest, title = min((allowed(title) / value, title) for _, _, title, value in rows if value)
    print(f"{kernel}, threads {threads}: smallest margin {smallest:.1f}, {title}", flush=True)
    return rows


def allowed(title: str) -> float:
    """The tolerance of the rung of this title."""
    return next(rung.tolerance for rung in (*RUNGS, *BFLOAT16_RUNGS) if rung.title == title.removesuffix(TORCH))


def summary(values: list[float]) -> str:
    """Median, 95 % and largest."""
    ordered = np.sort(values)
    return " | ".join(f"{one:.1e}" for one in (np.median(ordered), ordered[int(0.95 * len(ordered))], ordered[-1]))


def margin(allowed: float, largest: float) -> str:
    """How many times the largest fits in what is allowed; exact equality has no margin."""
    return f"{allowed / largest:.1f}" if largest else "equal"


def table(rows: list[Measurement], other: str) -> Iterator[str]:
    """Lines of Markdown: each rung, over all kernels and numbers of threads."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for side, kind, title, value in rows:
        if side == other:
            values[title, kind].append(value)
    yield "| rung | compared | measure | fresh: median | 95 % | largest | trained: median | 95 % | largest | allowed | margin |"  # noqa: E501
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    noted = [(rung, title) for rung in BFLOAT16_RUNGS for title in (rung.title, rung.title + TORCH)]
    for rung, title in [(rung, rung.title) for rung in RUNGS] + noted:
        fresh, trained = values[title, "fresh"], values[title, "trained"]
        yield (
            f"| {rung.number} | {title} | {rung.measure} | {summary(fresh)} | {summary(trained)} "
            f"| {rung.tolerance:.0e} | {margin(rung.tolerance, max(fresh + trained))} |"
        )


def ties(yardstick: Side, other: Side, seeds: int) -> tuple[int, int, int]:
    """Tokens drawn, rows that part at a tie, and rows that part elsewhere."""
    cases = [make_case(seed, context=72, **options) for options in OPTIONS[::5] for seed in range(seeds)]
    found = [agreement(yardstick, other, case, sampling) for case in cases for sampling in settings(60)]
    return sum(one.tokens for one in found), sum(one.ties for one in found), sum(len(one.wrong) for one in found)


def main(seeds: int, runs: list[Path]) -> None:
    found, missing = runnable()
    for kernel, reason in missing.items():
        print(f"skipped {kernel}: {reason}")
    jobs = [(kernel, threads) for kernel in found for threads in THREADS]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        runs = [*train_models(Path(folder)), *runs]
        measured = [
            pool.submit(measure, *job, range(i * seeds, (i + 1) * seeds), runs)  # each with seeds of its own
            for i, job in enumerate(jobs)
        ]
        rows = [row for one in measured for row in one.result()]
    for other in PAIRED:
        print(f"{TWINS[0]} against {other}, {len(jobs)} times: {len(OPTIONS)} fresh models, {len(runs)} trained runs")
        print(*table(rows, str(other)), sep="\n")
        print(
            "sampling: {:,} tokens, {} rows part at a tie, {} elsewhere".format(*ties(TWINS[0].side, other.side, seeds))
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(range(int(sys.argv[2]), int(sys.argv[3])), [Path(run) for run in sys.argv[4:]])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, [Path(run) for run in sys.argv[2:]])
