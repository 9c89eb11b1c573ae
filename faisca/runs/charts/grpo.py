"""The chart of GRPO: reward and KL, and below them whatever else was measured of the steps."""

import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faisca.runs.charts.curves import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SIZE,
    Records,
    is_number,
    last_words,
    marker,
    panel,
    series,
    set_title,
    step_axis,
)
from faisca.text import reward_title

PANELS: dict[str, tuple[str, dict[str, str], str]] = {
    "kl": ("KL to the reference (nats per token)", {"kl": ""}, ORANGE),
    "entropy": ("entropy (nats per token)", {"entropy": ""}, GREEN),
    "length": ("mean completion length (tokens)", {"completion_length_mean": ""}, PURPLE),
    "shares": (
        "shares of completions, of groups",
        {"distinct_share": "distinct", "truncated_share": "truncated", "equal_groups_share": "equal groups"},
        "",
    ),
    "words": (
        "share of words",
        {"repeated_word_share": "repeated", "keyword_share": "rewarded keywords"},
        "",
    ),
    "ratio": ("importance ratio", {"ratio_mean": "mean", "ratio_max": "largest"}, ""),
    "clipped": ("share of tokens clipped", {"clip_low_share": "low", "clip_high_share": "high"}, ""),
    "seconds": (
        "seconds of a step",
        {"seconds_rollout": "rollout", "seconds_scoring": "scoring", "seconds_update": "update"},
        "",
    ),
}
"""title, curves by measure with their names, and the colour of one alone"""
PATTERNS = {
    "functions": (r"reward/(.+)_mean", "mean reward by function"),
    "mismatch": (r"rollout_mismatch_(.+)", "sampler against trainer (nats per token)"),
}
"""panels of all measures of such names; the part in parentheses names the curve"""
ROW_HEIGHT = 2.2
"""inches of each row after the first two"""


def grpo_chart(records: Records, title: str, reward: str = "football") -> Figure | None:
    """Reward and KL by step, two panels a row of everything else below them; None where there are no steps.

    `reward` is the name of the reward. Its panel is there, and says so, where nothing could be scored.
    """
    records = [record for record in records if "reward_mean" in record]
    if not records:
        return None
    panels = _panels(records)
    keys = list(panels)
    # Reward and KL side by side, the others two a row; a panel alone fills its row.
    halves = [["reward", *keys[:1]] if keys[:1] == ["kl"] else ["reward"]]
    others = keys[keys[:1] == ["kl"] :]
    halves += [others[i : i + 2] for i in range(0, len(others), 2)]
    rows: list[Any] = [half * (2 // len(half)) for half in halves]
    size = (SIZE[0], SIZE[1] + ROW_HEIGHT * max(0, len(rows) - 2))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplot_mosaic(rows, height_ratios=[3] + [2] * (len(rows) - 1), sharex=True)
    _reward_panel(axes["reward"], records, reward)
    for key, (name, curves, colour) in panels.items():
        panel(axes[key], records, name, curves, colour)
    if "length" in axes:
        _length_band(axes["length"], records)
    for key in rows[-1]:
        axes[key].set_xlabel("step")
    set_title(figure, title, f"{_reward_words(records)} (last step)")
    return figure


def _panels(records: Records) -> dict[str, tuple[str, dict[str, str], str]]:
    """The panels that have something to show, with the curves that do."""
    measured = dict.fromkeys(name for record in records for name, value in record.items() if is_number(value))
    found = {}
    for key, (title, curves, colour) in PANELS.items():
        if there := {name: label for name, label in curves.items() if name in measured}:
            found[key] = (title, there, colour)
    for key, (pattern, title) in PATTERNS.items():
        matches = {name: match[1].replace("_", " ") for name in measured if (match := re.fullmatch(pattern, name))}
        if len(matches) > (key == "functions"):  # one function is the reward
            found[key] = (title, matches, "")
    return found


def _length_band(axes: Axes, records: Records) -> None:
    """From the shortest to the longest completion of a step."""
    (steps, least), (_, most) = (series(records, "step", f"completion_length_{name}") for name in ("min", "max"))
    if len(least) and len(least) == len(most):
        axes.fill_between(steps, least, most, color=PURPLE, alpha=0.12, linewidth=0)
        axes.set_title("completion length (tokens; min–max)")
        axes.set_ylim(0, 1.1 * most.max())


def _reward_panel(axes: Axes, records: Records, reward: str) -> None:
    """The mean reward with its spread as a band, or a note that nothing could be scored."""
    name = reward_title(reward)
    axes.set_title(f"mean {name}")
    scored = [record for record in records if is_number(record.get("reward_mean"))]
    if not scored:
        axes.set(xlim=(0, records[-1]["step"]), yticks=[])
        axes.text(0.5, 0.5, "no completion could be scored", transform=axes.transAxes, ha="center")
        return
    steps, means = series(scored, "step", "reward_mean")
    axes.plot(steps, means, color=BLUE, marker=marker(means))
    step_axis(axes)
    if means.min() >= 0 and means.max() <= 1:
        axes.set_ylim(-0.03, 1.03)
    steps, spread = series(scored, "step", "reward_std")
    if len(spread) == len(means):
        axes.fill_between(steps, means - spread, means + spread, color=BLUE, alpha=0.12, linewidth=0)
        axes.set_title(f"mean {name} ± deviation")


def _reward_words(records: Records) -> str:
    """The first and the last reward, and the last KL."""
    rewards = series(records, "step", "reward_mean")[1]
    words = [
        f"reward {rewards[0]:.2f} → {rewards[-1]:.2f}" if len(rewards) else "nothing scored",
        last_words(records, "kl", "KL {:.3f}"),
    ]
    return ", ".join(filter(None, words))
