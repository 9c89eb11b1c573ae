"""Several rewards as one: their weighted sum, and what each of them said.

NaN of one function leaves it out of a completion's sum, as in TRL; only where all of them are NaN is the sum. A call
that fails is made again for each completion alone, so that only those that it fails for have no reward: they are
counted, and said to be. A function that fails for every completion of a step is a FaiscaError.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from faisca.errors import FaiscaError
from faisca.rewards.built_in import Phrases
from faisca.rewards.named import is_file, labels, load_reward
from faisca.rewards.samples import Function, Outcome, Samples, attempt, missing
from faisca.rewards.workers import Job, Workers


@dataclass(frozen=True)
class Scores:
    """What completions are worth."""

    total: np.ndarray
    """weighted sums, float64 [B]; NaN where nothing could be scored"""
    parts: dict[str, np.ndarray]
    """by reward, as it returned them: float64 [B]"""
    failed: dict[str, int]
    """completions that a reward raised or took too long for; what is 0 is left out"""


class Judge:
    """The rewards of these names, weighted (1 each where no weights are given).

    `workers` processes compute them, 0 none: but a `timeout` (seconds for a call) needs one, for only a process can
    be ended. Rewards are the same with any number. Close it at the end.
    """

    say: Callable[[str], None]
    """where failures are told"""

    def __init__(
        self, names: Sequence[str], weights: Sequence[float] = (), *, workers: int = 0, timeout: float = 0.0
    ) -> None:
        self.names, self.labels = tuple(names), labels(names)
        self._weights = np.array(weights or [1.0] * len(self.names))
        self._functions: list[Function] = [load_reward(name) for name in names]
        self._count, self._timeout = workers or int(timeout > 0), timeout
        self._workers: Workers | None = None
        self.say = lambda text: print(text, file=sys.stderr)

    def check(self, columns: Iterable[str], where: str) -> None:
        """FaiscaError where a function needs what is not among the columns of `where`."""
        known = sorted(columns)
        for name, function in zip(self.names, self._functions, strict=True):
            for absent in missing(function, known):
                raise FaiscaError(
                    f"grpo.reward {name!r} asks for {absent!r}, but {where} has "
                    f"{'columns ' + ', '.join(known) if known else 'no columns'}: add it to every line"
                )

    @property
    def phrases(self) -> list[Phrases]:
        """The rewards that look for words."""
        return [function for function in self._functions if isinstance(function, Phrases)]

    def score(self, samples: Samples) -> Scores:
        """What the completions are worth. FaiscaError names a reward that returns no numbers, or always fails."""
        outcomes = self._perform([(i, samples) for i in range(len(self.names))])
        parts, failed = dict[str, np.ndarray](), dict[str, int]()
        for i, outcome in enumerate(outcomes):
            rewards, many = self._one_by_one(i, samples, outcome) if outcome.failed else (self._usable(i, outcome), 0)
            parts[self.labels[i]] = rewards
            failed |= {self.labels[i]: many} if many else {}
        return Scores(weighted_sum(np.stack(list(parts.values())), self._weights), parts, failed)

    def close(self) -> None:
        """End the processes, if there are any."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _one_by_one(self, i: int, samples: Samples, failure: Outcome) -> tuple[np.ndarray, int]:
        """Rewards of each completion alone, NaN for those that fail, and how many did."""
        rows = len(samples.completions)
        outcomes = self._perform([(i, samples.row(row)) for row in range(rows)]) if rows > 1 else [failure]
        problems = [outcome.failed or outcome.unusable for outcome in outcomes]
        bad = [problem for problem in problems if problem]
        if len(bad) == rows:
            raise FaiscaError(f"grpo.reward {self.names[i]!r} {bad[0]}")
        if bad:
            self.say(
                f"grpo.reward {self.names[i]!r} has no number for {len(bad)} of {rows} completions; the first: {bad[0]}"
            )
        values = [np.nan if outcome.rewards is None else outcome.rewards[0] for outcome in outcomes]
        return np.array(values), len(bad)

    def _usable(self, i: int, outcome: Outcome) -> np.ndarray:
        if outcome.rewards is None:
            raise FaiscaError(f"grpo.reward {self.names[i]!r} {outcome.unusable}")
        return outcome.rewards

    def _perform(self, jobs: list[Job]) -> list[Outcome]:
        if not self._count:
            return [attempt(self._functions[i], some, texts=not is_file(self.names[i])) for i, some in jobs]
        if self._workers is None:
            self._workers = Workers(self.names, self._count, self._timeout)
        return self._workers.perform(jobs)


def weighted_sum(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of [functions, B] rewards over functions: float64 [B]; NaN is left out, and is the sum of NaN alone."""
    total: np.ndarray = np.nansum(weights[:, None] * parts, axis=0)
    return np.where(np.isnan(parts).all(axis=0), np.nan, total)
