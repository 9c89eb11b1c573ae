"""Panels of a mixture's routers, under those of the losses."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from faisca.runs.charts.curves import BLUE, GREEN, PURPLE, Records, from_zero, marker, series

PANELS = {
    "expert_load_max": ("busiest expert (1: even)", BLUE),
    "router_entropy": ("router entropy (nats)", GREEN),
    "dropped_share": ("choices dropped", PURPLE),
}


def over_routers(figure: Figure, records: Records) -> Axes:
    """The panel of the losses; under it, by step, those of a mixture's routers, where there are any."""
    routers = [key for key in PANELS if len(series(records, "step", key)[1])]
    if not routers:
        return figure.subplots()
    rows: list[Any] = [["loss"] * len(routers), routers]
    panels = figure.subplot_mosaic(rows, height_ratios=[2, 1])
    for key in routers:
        _panel(panels[key], records, key)
    losses: Axes = panels["loss"]
    return losses


def _panel(axes: Axes, records: Records, key: str) -> None:
    (title, colour), (steps, values) = PANELS[key], series(records, "step", key)
    axes.plot(steps, values, color=colour, marker=marker(values))
    from_zero(axes)
    axes.set(title=title, xlabel="step")
    top = max(values.max(), 1e-3)
    axes.set_ylim(min(0.0, values.min()) - 0.04 * top, 1.1 * top)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
