"""Numbers for people: ticks of axes, measures in tables."""

import math
from typing import Any

from faisca.text import clock

CLOCK = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200]
"""seconds between ticks, and then days"""


def tick_steps(low: float, high: float, wanted: int, axis: str = "value") -> list[float]:
    """About so many round numbers between two, at most twice as many."""
    decade = 10.0 ** math.floor(math.log10((high - low) / wanted))
    steps = [factor * decade for factor in (1, 2, 2.5, 5, 10)]
    if axis == "time":
        steps = [*CLOCK, *(86400.0 * days for days in (1, 2, 5, 10, 50, 100))]
    elif axis != "value":
        steps = [max(1.0, step) for step in steps if step < 1 or step == round(step)]
    step = min(steps, key=lambda size: abs((high - low) / size - wanted))
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, first + 2 * wanted + 2) if step * i <= high + 1e-9 * step]


def tick(value: float, ends: tuple[float, float], axis: str) -> str:
    """A number on an axis, as short as its neighbours let it be."""
    if axis == "time":
        return duration(value)
    if axis == "tokens":
        return engineering(value)
    if abs(value) < 1e-9 * (ends[1] - ends[0]):
        return "0"
    if abs(value) < 1e-3:
        return scientific(value)
    return f"{value:.5g}" if abs(value) < 1e4 else engineering(value)


def scientific(value: float) -> str:
    """As in 1.5e-4: three digits at most."""
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def engineering(value: float) -> str:
    """1200 as 1.2 k, 3000000 as 3 M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours and minutes."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else clock(seconds).rpartition(":")[0] + " h"


def measure(value: Any) -> str:
    """A measure as tables of points have it."""
    if not isinstance(value, (int, float)):
        return "–"
    if value != value or math.isinf(value):
        return "not finite"
    if value and abs(value) < 1e-3:
        return scientific(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
