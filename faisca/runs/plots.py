"""The charts of a run, drawn from its `metrics.jsonl`: losses of the training stages, reward and KL of GRPO.

Like the original's charts they show epochs below and tokens seen above. Figures are made without
pyplot: no window, no global state. Colours are Okabe & Ito's, which colour-blind readers tell
apart, and lines that share a panel differ in marker or dash as well.
"""

import io
import tomllib
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from faisca.runs.log import read_records
from faisca.runs.series import Records, is_number, series, smooth
from faisca.runs.summary import SUMMARY, read_summary
from faisca.system.files import write_atomically
from faisca.text import reward_title, titles_name

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
VALIDATIONS: dict[str, dict[str, Any]] = {
    "validation_loss": {"color": ORANGE, "marker": "o", "label": "validation"},
    "portugal_validation_loss": {"color": GREEN, "marker": "s", "linestyle": "--", "label": "{kind} validation"},
}
PANELS = {
    "kl": ("KL to the reference (nats per token)", ORANGE),
    "entropy": ("entropy (nats per token)", GREEN),
    "completion_length_mean": ("mean completion length (tokens)", PURPLE),
}
ROUTER_PANELS = {
    "expert_load_max": ("busiest expert (1: even)", BLUE),
    "router_entropy": ("router entropy (nats)", GREEN),
    "dropped_share": ("choices dropped", PURPLE),
}
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


def draw_charts(folder: Path) -> list[Path]:
    """Write `charts/STAGE.png` for each stage that has something to show; returns their paths.

    Raises FaiscaError where the folder has no `metrics.jsonl`, or a broken one.
    """
    records, config, paths = read_records(folder), _read_config(folder), []
    run = _run_name(folder, config)
    for stage, name in {"pretrain": "Pre-training", "sft": "Supervised fine-tuning", "grpo": "GRPO"}.items():
        of_stage, title = [record for record in records if record["stage"] == stage], f"{name} · {run}"
        with matplotlib.rc_context(STYLE):
            if stage == "grpo":
                figure = grpo_chart(of_stage, title, config.get("grpo", {}).get("reward", "football"))
            else:
                figure = training_chart(of_stage, title, config.get("sft", {}).get("url_contains", ".pt/"))
            if figure is not None:
                paths.append(save_figure(figure, folder / "charts" / f"{stage}.png"))
    return paths


def training_chart(records: Records, title: str, url_contains: str = ".pt/") -> Figure | None:
    """Losses against epochs, tokens seen above; None where no loss was measured.

    `url_contains` is what SFT asks of addresses: the second validation curve is named after it.
    """
    kind = titles_name(url_contains)
    epochs, losses = series(records, "epoch", "loss")
    validations = {key: series(records, "epoch", key) for key in VALIDATIONS}
    if not len(losses) and not any(len(values) for _, values in validations.values()):
        return None
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = _over_routers(figure, records)
    if len(losses):
        axes.plot(epochs, losses, color=BLUE, linewidth=0.8, alpha=0.35)
        label = "training, smoothed" if len(losses) > 2 else "training"
        axes.plot(epochs, smooth(losses), color=BLUE, marker="o" if len(losses) == 1 else "", label=label)
    for key, (x, values) in validations.items():
        if len(values):
            look = VALIDATIONS[key] | {"label": VALIDATIONS[key]["label"].format(kind=kind)}
            axes.plot(x, values, **look, markevery=1 + len(values) // 40)
    _from_zero(axes)
    axes.set(xlabel="epochs", ylabel="loss (nats per token)")
    axes.legend(loc="best")
    _tokens_above(axes, records)
    _set_title(figure, title, _validation_words(records))
    return figure


def grpo_chart(records: Records, title: str, reward: str = "football") -> Figure | None:
    """Reward and KL by step, entropy and completion length below them; None where there are no steps.

    `reward` is the name of the reward. Its panel is there, and says so, where nothing could be scored.
    """
    records = [record for record in records if "reward_mean" in record]
    if not records:
        return None
    measured = ["reward_mean", *(key for key in PANELS if len(series(records, "step", key)[1]))]
    halves = [[key for key in half if key in measured] for half in (("reward_mean", "kl"), tuple(PANELS)[1:])]
    rows: list[Any] = [half * (2 // len(half)) for half in halves if half]  # a panel alone fills its row
    figure = Figure(figsize=SIZE, layout="constrained")
    panels = figure.subplot_mosaic(rows, height_ratios=[3, 2][: len(rows)], sharex=True)
    for key, axes in panels.items():
        if key == "reward_mean":
            _reward_panel(axes, records, reward)
        else:
            _panel(axes, records, key)
    for key in rows[-1]:
        panels[key].set_xlabel("step")
    _set_title(figure, title, f"{_reward_words(records)} (last step)")
    return figure


def _panel(axes: Axes, records: Records, key: str) -> None:
    name, colour = (PANELS | ROUTER_PANELS)[key]
    values = _curve(axes, records, key, colour)
    axes.set_title(name)
    top = max(values.max(), 1e-3)
    axes.set_ylim(min(0.0, values.min()) - 0.04 * top, 1.1 * top)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def _over_routers(figure: Figure, records: Records) -> Axes:
    """The panel of the losses; under it, by step, those of a mixture's routers, where there are any."""
    routers = [key for key in ROUTER_PANELS if len(series(records, "step", key)[1])]
    if not routers:
        return figure.subplots()
    rows: list[Any] = [["loss"] * len(routers), routers]
    panels = figure.subplot_mosaic(rows, height_ratios=[2, 1])
    for key in routers:
        _panel(panels[key], records, key)
        panels[key].set_xlabel("step")
    losses: Axes = panels["loss"]
    return losses


def _reward_panel(axes: Axes, records: Records, reward: str) -> None:
    """The mean reward with its spread as a band, or a note that nothing could be scored."""
    name = reward_title(reward)
    axes.set_title(f"mean {name}")
    scored = [record for record in records if is_number(record.get("reward_mean"))]
    if not scored:
        axes.set(xlim=(0, records[-1]["step"]), yticks=[])
        axes.text(0.5, 0.5, "no completion could be scored", transform=axes.transAxes, ha="center")
        return
    means = _curve(axes, scored, "reward_mean", BLUE)
    if means.min() >= 0 and means.max() <= 1:
        axes.set_ylim(-0.03, 1.03)
    steps, spread = series(scored, "step", "reward_std")
    if len(spread) == len(means):
        axes.fill_between(steps, means - spread, means + spread, color=BLUE, alpha=0.12, linewidth=0)
        axes.set_title(f"mean {name} ± deviation")


def _curve(axes: Axes, records: Records, key: str, colour: str) -> np.ndarray:
    """Draw a measure by step; its values, float64 [N]."""
    steps, values = series(records, "step", key)
    axes.plot(steps, values, color=colour, marker=_marker(values))
    _from_zero(axes)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    return values


def _from_zero(axes: Axes) -> None:
    """The horizontal axis from 0 to the last point, markers at both ends whole."""
    end = axes.dataLim.xmax or 1.0
    axes.set_xlim(-0.02 * end, 1.02 * end)


def _tokens_above(axes: Axes, records: Records) -> None:
    epochs, tokens = series(records, "epoch", "tokens_seen")
    if not len(epochs) or epochs[-1] <= 0 or tokens[-1] <= 0:
        return
    rate = tokens[-1] / epochs[-1]
    top = axes.secondary_xaxis("top", functions=(lambda epoch: epoch * rate, lambda token: token / rate))
    top.set_xlabel("tokens seen")
    top.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _set_title(figure: Figure, title: str, outcome: str) -> None:
    figure.suptitle(f"{title}\n{outcome}" if outcome else title, x=0.01, ha="left", size=14, weight="bold")


def _validation_words(records: Records) -> str:
    """The last validation loss and bits per byte, those of the whole set where they were measured."""
    loss, bits = "validation loss {:.3f}", "{:.3f} bits per byte"
    for prefix, which in (("full_", "all validation titles"), ("", "last point")):
        words = [_last(records, f"{prefix}validation_loss", loss), _last(records, f"{prefix}bits_per_byte", bits)]
        if any(words):
            return f"{', '.join(filter(None, words))} ({which})"
    return ""


def _reward_words(records: Records) -> str:
    """The first and the last reward, and the last KL."""
    rewards = series(records, "step", "reward_mean")[1]
    words = [
        f"reward {rewards[0]:.2f} → {rewards[-1]:.2f}" if len(rewards) else "nothing scored",
        _last(records, "kl", "KL {:.3f}"),
    ]
    return ", ".join(filter(None, words))


def _last(records: Records, key: str, form: str) -> str:
    values = series(records, "step", key)[1]
    return form.format(values[-1]) if len(values) else ""


def _read_config(folder: Path) -> dict[str, Any]:
    """The run's config.toml; empty where there is none."""
    path = folder / "config.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _run_name(folder: Path, config: dict[str, Any]) -> str:
    """Preset and backend where the run has come to a summary, else the preset of its configuration."""
    if (folder / SUMMARY).is_file():
        summary = read_summary(folder)
        return f"{summary['preset']} on {summary['backend']}"
    return str(config.get("preset", folder.resolve().name))


def _marker(values: np.ndarray) -> str:
    return "o" if len(values) <= 40 else ""


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; returns the path."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, image.getvalue())
    return path
