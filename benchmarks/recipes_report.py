"""What the runs of `recipes.py` say: means with 95 % confidence intervals, times to a quality, a table, a chart.

Every process of a study imports this file, so the large libraries are imported where they are used.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faisca.errors import FaiscaError
from faisca.text import clock

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and half the width of its 95 % interval by Student's t; None where one seed says nothing."""

    mean: float
    half: float | None

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half or 0.0)

    def words(self, digits: int = 3) -> str:
        """As a table has it."""
        if self.half is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of independent values."""
    from scipy import stats

    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Estimate(float(array.mean()), None)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return Estimate(float(array.mean()), float(half))


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The finished runs; FaiscaError for a last line that was cut off."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if lines and not text.endswith("\n"):
        raise FaiscaError(f"{path}: its last line is cut off: remove it, and its run is trained again")
    return [json.loads(line) for line in lines]


def by_recipe(runs: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs of each recipe, the best recipe at the end of its budget first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["recipe"], []).append(run)
    return dict(sorted(groups.items(), key=lambda group: at_budget(group[1]).mean))


def check_comparable(runs: Sequence[dict[str, Any]]) -> None:
    """FaiscaError where runs were measured on different titles or had different budgets."""
    for seed in {run["seed"] for run in runs}:
        some = [run for run in runs if run["seed"] == seed]
        if len({run["facts"]["validation"] for run in some}) > 1:
            names = ", ".join(sorted({run["recipe"] for run in some}))
            raise FaiscaError(f"{names}: with seed {seed} measured on different titles: compare them apart")
    if len({(run["budget"]["kind"], run["budget"]["amount"]) for run in runs}) > 1:
        raise FaiscaError("these runs had different budgets: compare them apart")


def at_budget(runs: Sequence[dict[str, Any]], measure: str = "bits_per_byte") -> Estimate:
    """A measure at the end of the budget."""
    return estimate([run["curve"][-1][measure] for run in runs])


def seconds_to(run: dict[str, Any], quality: float) -> float | None:
    """Training seconds until so few bits per byte; between two evaluations, linear in the logarithm of time."""
    before = None
    for point in run["curve"]:
        if point["bits_per_byte"] <= quality:
            if before is None:
                return float(point["seconds"])
            share = (before["bits_per_byte"] - quality) / (before["bits_per_byte"] - point["bits_per_byte"])
            return math.exp((1 - share) * math.log(before["seconds"]) + share * math.log(point["seconds"]))
        before = point
    return None


def time_cell(runs: Sequence[dict[str, Any]], quality: float) -> str:
    """Mean time to a quality with its interval; a dash where not every seed comes so far."""
    times = [seconds_to(run, quality) for run in runs]
    reached = [time for time in times if time is not None]
    if len(reached) < len(times):
        return f"{len(reached)} of {len(times)}" if reached else "–"
    found = estimate(reached)
    return clock(found.mean) + ("" if found.half is None else f" ± {clock(found.half)}")


def table(runs: Sequence[dict[str, Any]], qualities: Sequence[float]) -> str:
    """A row a recipe, the best first, in Markdown; with times where they are the budget, and shared fairly."""
    check_comparable(runs)
    timed = _timed(runs)
    heads = ["recipe", "backend", "parameters", "vocabulary", "seeds", "bits per byte", *(["minutes"] if timed else [])]
    heads += ["steps", "M tokens", "10^12 FLOPs", *(f"time to {quality:g}" for quality in qualities if timed)]
    lines = [_row(heads), _row(["---", "---", *["---:"] * (len(heads) - 2)])]
    for name, group in by_recipe(runs).items():
        facts = group[0]["facts"]
        numbers = [f"{at_budget(group, 'seconds').mean / 60:.1f}"] if timed else []
        numbers += [
            f"{at_budget(group, 'steps').mean:,.0f}",
            f"{at_budget(group, 'tokens').mean / 1e6:.2f}",
            f"{at_budget(group, 'flops').mean / 1e12:,.1f}",
        ]
        cells = [name, facts["backend"], f"{facts['parameters']:,}", f"{facts['vocabulary']:,}", str(len(group))]
        times = [time_cell(group, quality) for quality in qualities if timed]
        lines.append(_row([*cells, at_budget(group).words(), *numbers, *times]))
    return "".join(lines)


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Bits per byte by FLOPs, and by minutes where they are the budget: a line a recipe, its band the 95 % interval."""
    from matplotlib.figure import Figure

    check_comparable(runs)
    axes = [("flops", 1e12, "10$^{12}$ FLOPs of matrix products")]
    axes = [("seconds", 60, "minutes of training"), *axes] if _timed(runs) else axes
    figure = Figure(figsize=(1.5 + 4.75 * len(axes), 4.6), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for name, group in by_recipe(runs).items():
        points = min(len(run["curve"]) for run in group)
        curves = [run["curve"][-points:] for run in group]
        found = [estimate([curve[i]["bits_per_byte"] for curve in curves]) for i in range(points)]
        for panel, (measure, unit, _) in zip(panels, axes, strict=True):
            x = [np.mean([curve[i][measure] for curve in curves]) / unit for i in range(points)]
            (line,) = panel.plot(x, [each.mean for each in found], marker="o", markersize=3, linewidth=1.4, label=name)
            panel.fill_between(x, [e.low for e in found], [e.high for e in found], color=line.get_color(), alpha=0.2)
    for panel, (_, _, title) in zip(panels, axes, strict=True):
        panel.set_xlabel(title)
        log_axis(panel)
    panels[0].set_ylabel("bits per byte, validation")
    panels[-1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def log_axis(panel: Any) -> None:
    """Logarithmic, with plain numbers: 1, 2, 5, 10 …"""
    from matplotlib.ticker import LogLocator, NullLocator

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter("{x:g}")
    panel.grid(alpha=0.25)


def _timed(runs: Sequence[dict[str, Any]]) -> bool:
    """Whether seconds were the budget: only then do runs share the machine's noise."""
    return bool(runs[0]["budget"]["kind"] == "seconds")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
