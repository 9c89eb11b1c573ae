"""One picture of a benchmark: training, sampling, GRPO and memory, a bar for each backend and baseline."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faisca.bench.results import LESS_IS_BETTER, Results, Row, format_value, rows, work_line
from faisca.runs.plots import BLUE, GREEN, ORANGE, PURPLE, STYLE, save_figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#999999")
SHOWN = ("pretrain", "peak_resident", "rollout", "grpo_full", "generate_1", "generate_64")


def draw_chart(results: Results, path: Path) -> None:
    """Write a PNG of the measures in SHOWN that were taken."""
    columns = list(results["subjects"])
    table = {row.key: row for row in rows({name: results["subjects"][name]["measured"] for name in columns})}
    shown = [table[key] for key in SHOWN if key in table]
    if not shown:
        return
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
