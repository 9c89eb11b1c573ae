"""One picture of a benchmark: training, sampling, GRPO and memory, a bar for each backend and baseline."""

import statistics
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from faisca.bench.results import LESS_IS_BETTER, Results, Row, format_value, rows, work_line
from faisca.runs.charts.curves import BLUE, GREEN, ORANGE, PURPLE, STYLE, save_figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#999999")
SMOOTHED = 9
"""points whose median makes one of the thick line"""
SHOWN = ("pretrain", "peak_resident", "rollout", "grpo_full", "generate_1", "generate_64")


def draw_chart(results: Results, path: Path) -> Path | None:
    """Write a PNG of the measures in SHOWN that were taken; None, and no file, where none was."""
    columns = list(results["subjects"])
    table = {row.key: row for row in rows({name: results["subjects"][name]["measured"] for name in columns})}
    shown = [table[key] for key in SHOWN if key in table]
    if not shown:
        return None
    style: Any = STYLE | {"font.size": 10, "axes.titlesize": 10}
    with matplotlib.rc_context(style):
        lines = -(-len(shown) // 2)
        figure = Figure(figsize=(9, 0.5 + lines * (0.6 + 0.24 * len(columns))), layout="constrained")
        panels = figure.subplots(lines, min(2, len(shown)), squeeze=False).flatten()
        for axes, row in zip(panels, shown, strict=False):
            _bars(axes, row, columns)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        figure.suptitle(
            f"{results['machine']['processor']} · {work_line(results)}", x=0.01, ha="left", size=13, weight="bold"
        )
        save_figure(figure, path)
    return path


def draw_sustained(results: Results, path: Path) -> Path:
    """Write a PNG of training's tokens/s over time: thin what each second had, thick the median of SMOOTHED points."""
    style: Any = STYLE | {"font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        for (name, subject), colour in zip(results["subjects"].items(), cycle(COLOURS), strict=False):
            times, rates = zip(*subject["sustained"]["points"], strict=True)
            axes.plot(times, rates, color=colour, alpha=0.3, linewidth=1)
            drop = subject["sustained"]["drop_percent"]
            axes.plot(times, _smooth(rates), color=colour, label=f"{name}, drop {drop:.1f} %")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds")
        axes.yaxis.set_major_formatter(EngFormatter())
        axes.set_title(f"training tokens/s · {results['machine']['processor']} · {work_line(results)}")
        axes.legend(loc="lower right")
        save_figure(figure, path)
    return path


def _smooth(rates: Sequence[float]) -> list[float]:
    half = SMOOTHED // 2
    return [statistics.median(rates[max(0, i - half) : i + half + 1]) for i in range(len(rates))]


def _bars(axes: Axes, row: Row, columns: list[str]) -> None:
    names = [name for name in columns if name in row.values]
    values = [row.values[name] for name in names]
    errors = [row.spreads.get(name, 0.0) * row.values[name] for name in names]
    colours = [COLOURS[columns.index(name) % len(COLOURS)] for name in names]
    bars = axes.barh(names, values, color=colours, xerr=errors, error_kw={"elinewidth": 1, "ecolor": "#444444"})
    axes.bar_label(bars, [format_value(value, row.unit) for value in values], padding=6, fontsize=9)
    better = "less is better" if row.unit in LESS_IS_BETTER else "tokens/s, more is better"
    axes.set_title(f"{row.title} ({better})")
    ends = [value + error for value, error in zip(values, errors, strict=True)]
    axes.set_xlim(0, max(ends) * 1.35)  # labels stand after the error bars
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
