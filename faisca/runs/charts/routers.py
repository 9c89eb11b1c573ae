"""Panels of a mixture's routers, under those of the losses."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faisca.runs.charts.curves import BLUE, GREEN, PURPLE, Records, panel, series

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
        title, colour = PANELS[key]
        panel(panels[key], records, title, {key: ""}, colour)
        panels[key].set_xlabel("step")
    losses: Axes = panels["loss"]
    return losses
