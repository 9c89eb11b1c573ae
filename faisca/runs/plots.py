"""The charts of a run, drawn from its `metrics.jsonl`: losses of the training stages, reward and KL of GRPO.

Like the original's charts they show epochs below and tokens seen above. Figures are made without
pyplot: no window, no global state. Colours are Okabe & Ito's, which colour-blind readers tell
apart, and lines that share a panel differ in marker or dash as well.
"""

import tomllib
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from faisca.runs.charts.curves import (
    BLUE,
    GREEN,
    ORANGE,
    SIZE,
    STYLE,
    Records,
    from_zero,
    last_words,
    save_figure,
    series,
    set_title,
    smooth,
)
from faisca.runs.charts.grpo import grpo_chart
from faisca.runs.charts.routers import over_routers
from faisca.runs.log import read_records
from faisca.runs.summary import SUMMARY, read_summary
from faisca.text import reward_name, titles_name

VALIDATIONS: dict[str, dict[str, Any]] = {
    "validation_loss": {"color": ORANGE, "marker": "o", "label": "validation"},
    "portugal_validation_loss": {"color": GREEN, "marker": "s", "linestyle": "--", "label": "{kind} validation"},
}


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
                reward = config.get("grpo", {}).get("reward", "football")
                figure = grpo_chart(of_stage, title, reward if isinstance(reward, str) else reward_name(reward))
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
    axes = over_routers(figure, records)
    if len(losses):
        axes.plot(epochs, losses, color=BLUE, linewidth=0.8, alpha=0.35)
        label = "training, smoothed" if len(losses) > 2 else "training"
        axes.plot(epochs, smooth(losses), color=BLUE, marker="o" if len(losses) == 1 else "", label=label)
    for key, (x, values) in validations.items():
        if len(values):
            look = VALIDATIONS[key] | {"label": VALIDATIONS[key]["label"].format(kind=kind)}
            axes.plot(x, values, **look, markevery=1 + len(values) // 40)
    from_zero(axes)
    axes.set(xlabel="epochs", ylabel="loss (nats per token)")
    axes.legend(loc="best")
    _tokens_above(axes, records)
    set_title(figure, title, _validation_words(records))
    return figure


def _tokens_above(axes: Axes, records: Records) -> None:
    epochs, tokens = series(records, "epoch", "tokens_seen")
    if not len(epochs) or epochs[-1] <= 0 or tokens[-1] <= 0:
        return
    rate = tokens[-1] / epochs[-1]
    top = axes.secondary_xaxis("top", functions=(lambda epoch: epoch * rate, lambda token: token / rate))
    top.set_xlabel("tokens seen")
    top.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _validation_words(records: Records) -> str:
    """The last validation loss and bits per byte, those of the whole set where they were measured."""
    loss, bits = "validation loss {:.3f}", "{:.3f} bits per byte"
    for prefix, which in (("full_", "all validation titles"), ("", "last point")):
        words = [
            last_words(records, f"{prefix}validation_loss", loss),
            last_words(records, f"{prefix}bits_per_byte", bits),
        ]
        if any(words):
            return f"{', '.join(filter(None, words))} ({which})"
    return ""


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
