"""What may go wrong while rewards rise, each told from the last steps beside the first ones, with its remedy.

Thresholds are wide: a healthy run, in which rewards rise and texts become somewhat alike, says nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW = 5
"""steps of which means are compared: the first ones, and the last"""
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Means:
    """Means of a measure over the first steps of a stage and over the last."""

    first: float
    last: float


def means(records: Records, name: str) -> Means | None:
    """None where either window has no number."""
    windows = [
        [float(r[name]) for r in some if isinstance(r.get(name), (int, float)) and np.isfinite(r[name])]
        for some in (records[:WINDOW], records[-WINDOW:])
    ]
    return Means(*(float(np.mean(values)) for values in windows)) if all(windows) else None


def spam(records: Records, _: int) -> str | None:
    """A word again and again, or little but the words that are rewarded."""
    for name, most, what in (
        ("repeated_word_share", 0.35, "of a completion's words repeat another of its words"),
        ("keyword_share", 0.6, "of a completion's words are those that the reward looks for"),
    ):
        found = means(records, name)
        if found and found.last > most and found.last > found.first + 0.15:
            return (
                f"keyword spam: {found.last:.0%} {what}, {found.first:.0%} at the beginning: add the rewards distinct, "
                "which repeated words lower, and length:LEAST-MOST, or raise --grpo.kl-weight"
            )
    return None


def length_bias(records: Records, most_tokens: int) -> str | None:
    """Completions become as long, or as short, as they can while the reward rises."""
    length, reward = means(records, "completion_length_mean"), means(records, "reward_mean")
    if length is None or reward is None or reward.last <= reward.first:
        return None
    words = f"while the reward rose, completions went from {length.first:.1f} to {length.last:.1f} tokens"
    if length.last > 0.9 * most_tokens and length.first < 0.75 * most_tokens:
        return (
            f"length bias: {words}, and grpo.max_new_tokens is {most_tokens}: add a reward length:LEAST-MOST, or "
            "--grpo.mask-truncated, which learns nothing from completions without an end"
        )
    if length.last < max(1.5, 0.3 * length.first) and length.first > 3:
        return f"length bias: {words}: add a reward length:LEAST-MOST"
    return None


def collapse(records: Records, _: int) -> str | None:
    """The policy writes ever the same."""
    for name, share, what in (
        ("entropy", 0.15, "the entropy of a token went from {:.2f} to {:.2f} nats"),
        ("distinct_share", 0.25, "distinct completions went from {:.0%} to {:.0%}"),
    ):
        found = means(records, name)
        if found and found.first > 0 and found.last < share * found.first:
            return (
                f"entropy collapse: {what.format(found.first, found.last)}: where more than one answer is good, raise "
                "--grpo.kl-weight, --grpo.entropy-weight or --grpo.temperature, lower --grpo.learning-rate, or add the "
                "reward distinct"
            )
    return None


CHECKS: dict[str, Callable[[Records, int], str | None]] = {
    "keyword spam": spam,
    "length bias": length_bias,
    "entropy collapse": collapse,
}


class DriftWatch:
    """Looks at each step's measures beside those before it; `past` are the records of a resumed stage."""

    def __init__(self, most_tokens: int, past: Records = ()) -> None:
        self._most_tokens = most_tokens
        self._records = list(past)
        self.names: list[str] = list(past[-1].get("warnings", ())) if past else []
        """what is wrong now"""

    def look(self, measured: Mapping[str, Any]) -> list[str]:
        """Words for what has begun to go wrong with this step."""
        self._records.append(measured)
        if len(self._records) < 2 * WINDOW:
            return []
        found = {name: check(self._records, self._most_tokens) for name, check in CHECKS.items()}
        begun = [words for name, words in found.items() if words and name not in self.names]
        self.names = [name for name, words in found.items() if words]
        return begun
