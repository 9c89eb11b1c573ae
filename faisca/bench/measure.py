"""The rounds of `faisca bench`: every case in every process, in turns."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from faisca.bench.machine import describe_machine
from faisca.bench.preparation import measure_preparation
from faisca.bench.results import FORMAT, Results, summarise
from faisca.bench.sustained import derived_measures, measure_sustained, pause_before
from faisca.bench.work import CASES, Work
from faisca.bench.worker import SubjectSpec, Worker
from faisca.config import RunConfig
from faisca.errors import FaiscaError, VerificationError
from faisca.system.progress_bar import track
from faisca.system.tables import PlainConsole

ALL = (*CASES, "fresh", "data")
"""what can be measured"""
LOSS_TOLERANCE = 1e-4
"""largest relative difference of a baseline's loss: another order of summation, but no other model"""
CHECKED_WINDOWS = 2
CONSOLE = PlainConsole(stderr=True)

Turns = dict[str, list[Worker]]
"""each case, and who does it"""


def run_benchmark(
    work: Work, names: list[str], run: RunConfig, rounds: int, wanted: Sequence[str], sustained: float = 0.0
) -> Results:
    """Measure all subjects in turns, then each for `sustained` seconds; VerificationError where a baseline differs."""
    machine = describe_machine()  # first: the load average should be the machine's, not ours
    specs = [SubjectSpec(name, work, run) for name in names]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(spec)) for spec in specs]
        described = {worker.name: worker.ask("describe") for worker in workers}
        _check_losses(work, workers)
        offered = {worker.name: set(worker.ask("cases")) for worker in workers}
        trained = [spec for spec in specs if "pretrain" in offered[spec.name]]  # a baseline may know GRPO alone
        if sustained and trained != specs:
            untrained = ", ".join(spec.name for spec in specs if spec not in trained)
            raise FaiscaError(f"--sustained trains, and {untrained} cannot: leave it out of --peers")
        cases = [case for case in CASES if case in wanted]
        turns = {case: [worker for worker in workers if case in offered[worker.name]] for case in cases}
        expected = _warm_up(turns)
        _say(f"{rounds} rounds: about {_duration(rounds * sum(expected.values()))}")
        seconds = _measure(turns, expected, rounds)
    measured = {name: summarise(work, seconds[name]) for name in names}
    if "fresh" in wanted:
        _say("memory and the first step, each in a process of its own")
        for spec in trained:
            measured[spec.name] |= _fresh(spec)
    subjects = {name: {"computed_with": described[name], "measured": measured[name]} for name in names}
    if sustained:
        pause = pause_before(sustained)
        _say(
            f"sustained: {len(specs)} × {_duration(sustained)}, one after another, before each a pause of {pause:.0f} s"
        )
        for spec in specs:
            subjects[spec.name]["sustained"] = found = measure_sustained(spec, sustained)
            measured[spec.name] |= derived_measures(found)
    return {
        "format": FORMAT,
        "machine": machine,
        "work": work.describe(),
        "rounds": rounds,
        "subjects": subjects,
        "data_preparation": measure_preparation(rounds) if "data" in wanted else None,
    }


def _warm_up(turns: Turns) -> dict[tuple[str, str], float]:
    """What a round of a case should take in a subject, in seconds."""
    expected = {}
    with track(CONSOLE, "warming up", sum(map(len, turns.values()))) as tracker:
        for case, workers in turns.items():
            for worker in workers:
                expected[case, worker.name] = worker.ask("warm_up", case)
                tracker.update(len(expected), now=f"{worker.name} {case}")
    return expected


def _measure(
    turns: Turns, expected: dict[tuple[str, str], float], rounds: int
) -> defaultdict[str, dict[str, list[float]]]:
    """Seconds of each subject and case, one a round; a round of a case goes through all subjects."""
    seconds: defaultdict[str, dict[str, list[float]]] = defaultdict(dict)
    spent, total = 0.0, rounds * sum(expected.values())
    with track(CONSOLE, "measuring, % of the time", 100) as tracker:
        for case, workers in turns.items():
            for worker in workers * rounds:
                seconds[worker.name].setdefault(case, []).append(worker.ask("measure", case))
                spent += expected[case, worker.name]
                tracker.update(round(100 * spent / total), now=f"{worker.name} {case}")
    return seconds


def _fresh(spec: SubjectSpec) -> dict[str, Any]:
    with Worker(spec) as worker:
        found = worker.ask("fresh")
    return {name: None if value is None else {"median": value} for name, value in found.items()}


def _check_losses(work: Work, workers: list[Worker]) -> None:
    """All subjects must compute the same loss from the same weights, or there is nothing to compare."""
    inputs, targets = (ids[:CHECKED_WINDOWS] for ids in work.batch())
    losses = {worker.name: worker.ask("loss", inputs, targets) for worker in workers}
    (first, expected), *others = losses.items()
    for name, loss in others:
        if not abs(loss - expected) <= LOSS_TOLERANCE * expected:
            raise VerificationError(f"{name} computes a loss of {loss:.6f}, but {first} {expected:.6f}: not timed")


def _say(line: str) -> None:
    CONSOLE.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
