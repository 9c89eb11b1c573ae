"""What the charts share: their look, and points, curves and titles from records."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from faisca.system.files import write_atomically

Records = list[dict[str, Any]]

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, YELLOW, BLACK = "#56B4E9", "#E69F00", "#000000"
LOOKS = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"), (SKY, "-"), (YELLOW, "--"), (BLACK, "-.")]
"""of the curves in one panel, in turn"""
STYLE: Any = {
    "font.size": 12,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}
SIZE, DPI = (9, 5), 160
"""inches, and dots an inch: 1440 × 800"""


def series(records: Records, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The points of the records that have numbers for both: two float64 arrays [N]."""
    both = [record for record in records if is_number(record.get(x)) and is_number(record.get(y))]
    return np.array([r[x] for r in both], np.float64), np.array([r[y] for r in both], np.float64)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twentieth of the points: float64 [N]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    left = np.minimum(i, math.ceil(len(values) / 40))
    right = np.minimum(left, i[::-1])  # no further right than left: a steep start must not be dragged down
    smoothed: np.ndarray = (sums[i + right + 1] - sums[i - left]) / (left + right + 1)
    return smoothed


def from_zero(axes: Axes) -> None:
    """The horizontal axis from 0 to the last point, markers at both ends whole."""
    end = axes.dataLim.xmax or 1.0
    axes.set_xlim(-0.02 * end, 1.02 * end)


def set_title(figure: Figure, title: str, outcome: str) -> None:
    figure.suptitle(f"{title}\n{outcome}" if outcome else title, x=0.01, ha="left", size=14, weight="bold")


def last_words(records: Records, key: str, form: str) -> str:
    values = series(records, "step", key)[1]
    return form.format(values[-1]) if len(values) else ""


def marker(values: np.ndarray, curves: int = 1) -> str:
    """Points that are few are marked, and a single one always is."""
    return "o" if len(values) == 1 or (len(values) <= 40 and curves == 1) else ""


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; returns the path."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, image.getvalue())
    return path


def panel(axes: Axes, records: Records, title: str, curves: dict[str, str], colour: str) -> None:
    """Measures by step, from 0; `curves` has their names, or nothing for one alone, and `colour` is that one's."""
    axes.set_title(title)
    drawn = []
    for (name, label), look in zip(curves.items(), LOOKS * len(curves), strict=False):
        steps, values = series(records, "step", name)
        axes.plot(
            steps, values, color=colour or look[0], linestyle=look[1], marker=marker(values, len(curves)), label=label
        )
        drawn.append(values)
    step_axis(axes)
    values = np.concatenate(drawn)
    top, low = values.max() if values.max() > 1e-9 else 1e-3, min(0.0, values.min())
    named = any(curves.values())
    # Names stand above the highest point, where no curve is.
    room = 1.25 + 0.2 * math.ceil(len(curves) / 3) if named else 1.1
    axes.set_ylim(low - 0.04 * (top - low), low + room * (top - low))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")  # a power of ten above the axis would hit the title
    if named:
        axes.legend(loc="upper left", ncols=3, fontsize=11, borderaxespad=0.1, columnspacing=1.0, handlelength=1.6)


def step_axis(axes: Axes) -> None:
    """Steps from 0, in whole numbers."""
    from_zero(axes)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
