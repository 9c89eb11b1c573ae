"""What a step of GRPO has come to: measures, records of its completions, its best and its worst, and warnings."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from faisca.data.prompts import Task
from faisca.rewards.advantages import mean_and_deviation
from faisca.rewards.built_in import Phrases, distinct_words, football, share
from faisca.rewards.judge import Scores
from faisca.rewards.watch import DriftWatch
from faisca.runs.log import RunLog
from faisca.system.progress_bar import Note
from faisca.training.generate import clean
from faisca.training.setup import Setup

if TYPE_CHECKING:
    from faisca.training.grpo import Completions

MEANING = (
    "no completion is better than another, so the step teaches nothing. Where this stays so, try a reward that "
    "tells completions apart, a higher --grpo.temperature, a larger --grpo.group-size or other --grpo.prompts"
)

WRITES = {
    "entropy": "entropy {:.2f}",
    "completion_length_mean": "length {:.1f}",
    "truncated_share": "cut {:.0f} %",
    "distinct_share": "distinct {:.0f} %",
    "equal_groups_share": "equal groups {:.0f} %",
}
LEARNS = {
    "ratio_max": "ratio to {:.2f}",
    "clip_low_share": "clipped low {:.1f} %",
    "clip_high_share": "high {:.1f} %",
    "rollout_mismatch_max": "sampler off by {:.2g}",
    "seconds_rollout": "rollout {:.1f} s",
    "seconds_scoring": "scoring {:.1f} s",
    "seconds_update": "update {:.1f} s",
}
"""measures of a step as the terminal has them: how the policy writes and learns"""
Extreme = dict[str, Any]
"""a completion: its `text`, the prompt included, its `reward` and its `advantage`"""


@dataclass(frozen=True)
class Round:
    """The completions of a step, row by row, rows of a group side by side, and what they are worth."""

    tasks: list[Task]
    completions: list[list[int]]
    answers: list[str]
    """the completions as texts"""
    ended: list[bool]
    """whether each came to its end"""
    scores: Scores
    advantages: np.ndarray
    group_size: int
    phrases: list[Phrases]
    """rewards that look for words"""

    @staticmethod
    def of(setup: Setup, written: "Completions", answers: list[str], scores: Scores, advantages: np.ndarray) -> "Round":
        """What was written, with its rewards."""
        ended = [ids[-1] in setup.tokenizer.ends for ids in written.completions]
        phrases = setup.reward.phrases if setup.reward else []
        group_size = setup.config.grpo.group_size
        return Round(written.tasks, written.completions, answers, ended, scores, advantages, group_size, phrases)

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Records for `completions.jsonl`, one a completion."""
        return [
            {"step": step, "prompt": task.prompt, "completion": self.answers[row], "reward": self.scores.total[row]}
            | {"rewards": {name: values[row] for name, values in self.scores.parts.items()}}
            | {"advantage": self.advantages[row], "ended": self.ended[row]}
            | ({"columns": dict(task.columns)} if task.columns else {})
            for row, task in enumerate(self.tasks)
        ]

    def shown(self, row: int) -> str:
        """A completion after its prompt, on one line."""
        task = self.tasks[row]
        before = clean(task.prompt) if isinstance(task.prompt, str) else f"{task.text} "
        return " ".join((before + self.answers[row]).split())


class Laps:
    """Seconds of the parts of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, part: str) -> None:
        """A part has ended, and the next begins."""
        now = time.perf_counter()
        self.seconds[f"seconds_{part}"], self._since = now - self._since, now


def measure_round(made: Round, updates: list[dict[str, float]]) -> dict[str, Any]:
    """What a trainer logs of a step, so that reward hacking, collapse and length bias can be seen."""
    rewards = made.scores.total
    best, worst = best_and_worst(rewards)
    watched = {name: float(np.mean([update[name] for update in updates])) for name in (updates or [{}])[0]}
    return watched | {
        "updates": len(updates) - sum(update["skipped"] for update in updates),
        "skipped": sum(update["skipped"] for update in updates),
        "ratio_max": max((update["ratio_max"] for update in updates), default=None),
        "kl": watched.get("kl"),
        **_of_rewards(made),
        **_of_texts(made),
        "sample": made.shown(best),
        "best": _extreme(made, best),
        "worst": _extreme(made, worst),
    }


def _of_rewards(made: Round) -> dict[str, Any]:
    """Means and deviations, of the sum and of each function; groups in which nothing is better than another."""
    mean, deviation = mean_and_deviation(made.scores.total)
    groups = made.scores.total.reshape(-1, made.group_size)
    measured = {"reward_mean": mean, "reward_std": deviation}
    for name, values in made.scores.parts.items():
        measured |= dict(zip((f"reward/{name}_mean", f"reward/{name}_std"), mean_and_deviation(values), strict=True))
        measured[f"reward/{name}_failed"] = made.scores.failed.get(name, 0)
    return measured | {"equal_groups_share": float(np.mean([len(set(group)) == 1 for group in groups.tolist()]))}


def _of_texts(made: Round) -> dict[str, Any]:
    """Lengths and truncation show length bias, distinct texts collapse, repeated words and keywords spam."""
    lengths, answers = np.array([len(ids) for ids in made.completions]), made.answers
    keywords = [phrases.word_share(text) for text in answers for phrases in made.phrases]
    return {
        "football_share": share(football(answers)),
        "distinct_share": len(set(answers)) / len(answers),
        "repeated_word_share": 1 - share([distinct_words(text) for text in answers]),
        "keyword_share": share(keywords) if keywords else None,
        "completion_length_mean": float(lengths.mean()),
        "completion_length_min": int(lengths.min()),
        "completion_length_max": int(lengths.max()),
        "truncated_share": 1 - share(made.ended),
    }


def best_and_worst(rewards: np.ndarray) -> tuple[int, int]:
    """The rows of the highest and the lowest reward; NaN counts only where there is nothing else."""
    known = np.zeros_like(rewards) if np.isnan(rewards).all() else rewards
    return int(np.nanargmax(known)), int(np.nanargmin(known))


def _extreme(made: Round, row: int) -> Extreme:
    reward, advantage = float(made.scores.total[row]), float(made.advantages[row])
    return {"text": made.shown(row), "reward": reward, "advantage": advantage}


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


def state_note(measured: dict[str, Any]) -> Note:
    """How the policy writes and learns, and where the time goes, for the terminal."""
    return _words(measured, WRITES), _words(measured, LEARNS)


def _words(measured: dict[str, Any], forms: dict[str, str]) -> str:
    known = {name: form for name, form in forms.items() if isinstance(measured.get(name), (int, float))}
    return " · ".join(form.format(measured[name] * (100 if "%" in form else 1)) for name, form in known.items())


class Watch:
    """Says what goes wrong in steps: rewards that teach nothing, and what `faisca.rewards.watch` knows.

    Each problem is said when it begins. A resumed stage has `done` steps in the log.
    """

    def __init__(self, most_tokens: int, log: RunLog, done: int = 0) -> None:
        self._log = log
        past = [record for record in log.records() if record["stage"] == "grpo" and "reward_mean" in record]
        self._drift = DriftWatch(most_tokens, [record for record in past if record["step"] <= done])
        self._silent = self._explained = False

    def look(self, step: int, made: Round, measured: dict[str, Any]) -> dict[str, Any]:
        """What was measured of a step, with the names of its `warnings`."""
        problem = missing_signal(made.scores.total, made.advantages)
        if problem is not None and not self._silent:
            self._log.say(f"grpo step {step}: {problem}" + ("" if self._explained else f": {MEANING}"))
            self._explained = True
        self._silent = problem is not None
        for words in self._drift.look(measured):
            self._log.say(f"grpo step {step}: {words}")
        return measured | {"warnings": self._drift.names}


def missing_signal(rewards: np.ndarray, advantages: np.ndarray) -> str | None:
    """Why nothing can be learnt from the rewards of a step; None where some differ within their group."""
    if advantages.any():
        return None
    scored = np.unique(rewards[~np.isnan(rewards)])
    if not len(scored):
        return "the reward is NaN for every completion"
    return f"the reward is {scored[0]:g} for every completion" if len(scored) == 1 else "rewards differ in no group"
