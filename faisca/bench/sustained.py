"""`faisca bench --sustained`: how fast training still is once the machine has become warm, and what energy it takes.

One backend after the other, each in a process of its own that only trains: a pause to cool down, then
steps without one. Rounds in turns, as for the other cases, would let each backend rest while others compute.
"""

import statistics
import time
from typing import Any

from faisca.bench.energy import Meter, open_meter
from faisca.bench.work import Work, training_tokens
from faisca.bench.worker import SubjectSpec, Worker
from faisca.errors import FaiscaError
from faisca.system.progress_bar import track
from faisca.system.tables import PlainConsole

SLICE = 1.0
"""seconds of steps behind one point of the curve, at least"""
LONGEST_PAUSE, PAUSE_SHARE = 60.0, 1 / 3
"""the pause before a backend: a third of the time that it trains, at most a minute"""
SPAN = 60.0
"""seconds at either end that are compared; half of the time where that is less"""
CONSOLE = PlainConsole(stderr=True)

Point = tuple[float, float]
"""seconds since the beginning, and tokens a second since the point before"""


def measure_sustained(spec: SubjectSpec, seconds: float) -> dict[str, Any]:
    """Pause, then train for `seconds`: the points, what `compare_ends` makes of them, and the energy."""
    pause = pause_before(seconds)
    with Worker(spec) as worker:
        device = worker.ask("describe")["device"]
        worker.ask("fresh")  # compiled, and warm, before the clock runs
        _rest(spec.name, pause)
        meter, why_not = find_meter(device)
        points = _train(worker, spec.work, seconds, meter)
    total = points[-1][0]
    tokens = sum(rate * (at - before) for (at, rate), (before, _) in zip(points, [(0.0, 0.0), *points], strict=False))
    return {
        "seconds": total,
        "pause_seconds": pause,
        "tokens_per_second": tokens / total,
        **compare_ends(points),
        "energy": {"why_not": why_not} if meter is None else _energy(meter, tokens),
        "points": points,
    }


def pause_before(seconds: float) -> float:
    """Seconds that the machine rests before a backend trains for so long."""
    return min(PAUSE_SHARE * seconds, LONGEST_PAUSE)


def find_meter(device: str) -> tuple[Meter | None, str]:
    """A meter of energy for a device, or None and the reason."""
    try:
        return open_meter(device), ""
    except FaiscaError as error:
        return None, str(error)


def compare_ends(points: list[Point]) -> dict[str, float]:
    """Median tokens/s in the `span_seconds` at either end, `first` and `last`, and by how many per cent it fell."""
    total = points[-1][0]
    span = min(SPAN, total / 2)
    first = statistics.median([rate for at, rate in points if at <= span] or [points[0][1]])
    last = statistics.median([rate for at, rate in points if at > total - span])
    return {"span_seconds": span, "first": first, "last": last, "drop_percent": 100 * (1 - last / first)}


def derived_measures(sustained: dict[str, Any]) -> dict[str, Any]:
    """What the table has of it: the speed at the end, and the energy where it was measured."""
    energy = sustained["energy"].get("joules_per_1000_tokens")
    return {"sustained": {"median": sustained["last"]}} | ({} if energy is None else {"energy": {"median": energy}})


def sustained_line(name: str, sustained: dict[str, Any]) -> str:
    """One line for the terminal: both ends, the drop, and the energy or why there is none."""
    energy = sustained["energy"]
    words = (
        f"{energy['joules_per_1000_tokens']:.3g} J per 1,000 tokens ({energy['counts']})"
        if "counts" in energy
        else f"not measured: {energy['why_not']}"
    )
    return (
        f"{name}, sustained {sustained['seconds']:.0f} s: first {sustained['span_seconds']:.0f} s "
        f"{sustained['first']:,.0f} tokens/s, last {sustained['last']:,.0f} (drop {sustained['drop_percent']:.1f} %); "
        f"energy {words}"
    )


def _rest(name: str, pause: float) -> None:
    with track(CONSOLE, f"{name}: a pause to cool down, s", max(1, round(pause))) as tracker:
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            tracker.update(round(pause - max(0.0, until - time.monotonic())))


def _train(worker: Worker, work: Work, seconds: float, meter: Meter | None) -> list[Point]:
    points: list[Point] = []
    at = 0.0
    with track(CONSOLE, f"{worker.name}: sustained, s", max(1, round(seconds))) as tracker:
        while at < seconds:
            steps, spent = worker.ask("train_for", min(SLICE, seconds / 2))
            at += spent
            points.append((round(at, 3), round(steps * training_tokens(work) / spent, 1)))
            if meter is not None:
                meter.joules()  # often enough for counters that wrap
            tracker.update(min(round(at), round(seconds)), tokens_per_second=points[-1][1])
    return points


def _energy(meter: Meter, tokens: float) -> dict[str, Any]:
    joules = meter.joules()
    return {"counts": meter.counts, "joules": joules, "joules_per_1000_tokens": 1000 * joules / tokens}
