"""What people see of a GRPO step: its best and worst completion, and a warning where rewards say nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from faisca.system.progress_bar import Note

MEANING = (
    "no completion is better than another, so the step teaches nothing. Where this stays so, try a reward that "
    "tells completions apart, a higher --grpo.temperature, a larger --grpo.group-size or other --grpo.prompts"
)

Extreme = dict[str, Any]
"""a completion: its `text`, the prompt included, its `reward` and its `advantage`"""


def best_and_worst(texts: Sequence[str], rewards: np.ndarray, advantages: np.ndarray) -> dict[str, Extreme]:
    """The completions of the highest and the lowest reward; NaN counts only where there is nothing else."""
    known = np.zeros_like(rewards) if np.isnan(rewards).all() else rewards
    rows = {"best": int(np.nanargmax(known)), "worst": int(np.nanargmin(known))}
    return {
        name: {"text": texts[row], "reward": float(rewards[row]), "advantage": float(advantages[row])}
        for name, row in rows.items()
    }


def notes(best: Extreme, worst: Extreme) -> list[Note]:
    """Lines for the terminal: the best and the worst, or one of them where all are alike."""
    if best["reward"] != best["reward"]:
        return [("no completion could be scored, as", best["text"])]
    if best["reward"] == worst["reward"]:
        return [(f"all have reward {best['reward']:.2f}, as", best["text"])]
    return [
        (f"{name:5}  reward {extreme['reward']:.2f}  advantage {extreme['advantage']:+.2f}", extreme["text"])
        for name, extreme in (("best", best), ("worst", worst))
    ]


class SignalWatch:
    """Says that the rewards of a whole step teach nothing: at the first of consecutive such steps, once with advice."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._silent = self._explained = False

    def look(self, step: int, rewards: np.ndarray, advantages: np.ndarray) -> None:
        """Take the rewards and advantages of a step."""
        problem = missing_signal(rewards, advantages)
        if problem is not None and not self._silent:
            self._say(f"grpo step {step}: {problem}" + ("" if self._explained else f": {MEANING}"))
            self._explained = True
        self._silent = problem is not None


def missing_signal(rewards: np.ndarray, advantages: np.ndarray) -> str | None:
    """Why nothing can be learnt from the rewards of a step; None where some differ within their group."""
    if advantages.any():
        return None
    scored = np.unique(rewards[~np.isnan(rewards)])
    if not len(scored):
        return "the reward is NaN for every completion"
    return f"the reward is {scored[0]:g} for every completion" if len(scored) == 1 else "rewards differ in no group"
