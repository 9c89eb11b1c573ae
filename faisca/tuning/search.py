"""From knob to knob: each value is a duel with the best setting so far, the two timed in turns.

Knobs are taken one after the other, so a pair of settings that only pays together is not found. A duel goes
to the challenger only where its median is better by more than the noise of both.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from faisca.config import Config
from faisca.errors import FaiscaError
from faisca.parameters import count_parameters
from faisca.planning.fit import largest_rows, remedy, with_rows
from faisca.planning.load import rows_of
from faisca.text import format_bytes
from faisca.tuning.knobs import Knob, knobs
from faisca.tuning.opening import Opened
from faisca.tuning.trial import Trial, difference

ROUNDS, FEWEST = 3, 2
"""rounds of a duel; fewer where a step has as many windows as a micro-batch"""
SHORTEST_ROUND = 0.2
"""seconds: what is shorter is repeated within a round"""
HOPELESS = 1.3
"""times slower in the first round: no second one"""
LEAST_GAIN = 0.02
"""share of the time below which a difference is noise whatever the spread"""
CHECKS = 4
"""windows computed beside the rounds: warm-up, and the check of what is computed"""

Action = Callable[[], float]
Say = Callable[[str, int], None]
"""what is tried now, and how many duels are done"""


@dataclass(frozen=True)
class Result:
    """A value that was tried, or that was not and why."""

    option: str
    value: Any
    before: float | None = None
    """median seconds of the setting so far"""
    seconds: float | None = None
    """median seconds of the value"""
    noise: float | None = None
    """what the gain had to exceed, as a share"""
    verdict: str = ""
    planned: int = 0
    """bytes that were planned for what ran, both of a duel together; 0 where nothing did"""


def starting_config(opened: Opened) -> Config:
    """The configuration with micro-batches that fit the memory; FaiscaError where nothing does."""
    config = opened.config
    for stage in config.run.stages:
        rows = largest_rows(config, opened.model, opened.runtime, stage, opened.memory)
        if rows is None:
            words = remedy(config, opened.model, opened.runtime, stage, opened.memory)
            raise FaiscaError(f"{stage} does not fit {format_bytes(opened.memory)}: {words}")
        if rows < rows_of(config, stage):
            config = with_rows(config, stage, rows)
    return config


class Search:
    """The best setting so far, and what was tried on the way."""

    def __init__(self, opened: Opened, seconds: float) -> None:
        self.opened, self.deadline = opened, time.perf_counter() + seconds
        self.start = starting_config(opened)
        self.best = Trial(opened, self.start)
        self.knobs = list(knobs(self.best.config))
        self.results: list[Result] = []
        self._computed: dict[str, Any] = {}
        self._ready: dict[tuple[str, int], Action] = {}
        self.windows, self.second_a_window = self._calibrate(seconds)

    @property
    def duels(self) -> int:
        """Values that may be tried."""
        return sum(len(knob.values(self.best.config, self.opened.runtime)) for knob in self.knobs)

    def run(self, say: Say) -> Config:
        """Try every knob's values; returns the best configuration."""
        done = 0
        for knob in self.knobs:
            runtime = self.opened.backend.open_runtime(config=self.best.config.run)
            reason = knob.why_not(self.best.config, runtime)
            if reason:
                self.results.append(Result(" ".join(knob.options), "–", verdict=reason))
            for value in knob.values(self.best.config, runtime):
                say(f"{knob.options[0]} {value}", done)
                self.results.append(self._try(knob, value))
                done += 1
        return self.best.config

    def _try(self, knob: Knob, value: Any) -> Result:
        trial = replace(self.best, config=knob.set(self.best.config, value))
        result = Result(" ".join(knob.options), value)
        # Both are in memory at a time: what the challenger plans, and the other's weights and moments.
        planned = max(trial.planned, self.best.planned) + 3 * self._weights
        if planned > self.opened.memory:
            return replace(result, verdict=f"not tried: beside the other it would take {format_bytes(planned)}")
        windows = self._windows_for(trial) if knob.work == "step" else 1
        rounds = ROUNDS if windows == self.windows or knob.work != "step" else FEWEST
        expected = (2 * rounds * windows + CHECKS) * self.second_a_window
        if time.perf_counter() + expected > self.deadline:
            return replace(result, verdict=f"not measured: no time for about {expected:.0f} s")
        other = difference(trial, self._expected(knob.work), knob.work)
        if other:
            return replace(result, verdict=f"refused: {other}", planned=planned)
        mine, theirs = self._incumbent(knob.work, windows), trial.case(knob.work, windows)
        found = duel(mine, theirs, rounds, self.deadline)
        if found.taken:
            self.best, self._ready = trial, {(knob.work, windows): theirs}
        verdict = "taken" if found.taken else "slower" if found.after > found.before else "no gain beyond the noise"
        return replace(
            result, before=found.before, seconds=found.after, noise=found.noise, verdict=verdict, planned=planned
        )

    def _windows_for(self, trial: Trial) -> int:
        """Windows of a timed step: as many as fill both micro-batches where these differ."""
        return max(self.windows, trial.micro, self.best.micro) if trial.micro != self.best.micro else self.windows

    def _calibrate(self, seconds: float) -> tuple[int, float]:
        """How many windows a timed step may have, and the seconds of each: all duels shall fit the time."""
        step = self._incumbent("step", 1)
        step()
        a_window = max(step(), 1e-4)
        affordable = 0.4 * seconds / (max(self.duels, 1) * (2 * ROUNDS + CHECKS) * a_window)
        return max(1, min(int(affordable), self.best.micro)), a_window

    def _incumbent(self, work: str, windows: int) -> Action:
        """The best setting so far, ready to be timed: of one kind of work at a time, for it holds a model."""
        if (work, windows) not in self._ready:
            self._ready = {(work, windows): self.best.case(work, windows)}
        return self._ready[work, windows]

    def _expected(self, work: str) -> Any:
        """What the configuration computes as it is."""
        if work not in self._computed:
            self._computed[work] = Trial(self.opened, self.start).computed(work)
        return self._computed[work]

    @property
    def _weights(self) -> int:
        return 4 * count_parameters(self.opened.model)


@dataclass(frozen=True)
class Duel:
    """Median seconds of both, and the noise, as a share of what was before."""

    before: float
    after: float
    noise: float

    @property
    def taken(self) -> bool:
        """Whether the challenger is faster by more than the noise."""
        return self.after < self.before * (1 - self.noise)


def duel(incumbent: Action, challenger: Action, rounds: int = ROUNDS, deadline: float = math.inf) -> Duel:
    """Time two in turns, each warm; noise is the larger of their half ranges, and at least LEAST_GAIN.

    Past the deadline it ends, though not before FEWEST rounds: without a spread there is no noise to exceed.
    """
    slower = max(incumbent(), challenger(), 1e-6)
    repeats = max(1, math.ceil(SHORTEST_ROUND / slower))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(max(rounds, FEWEST)):
        for seconds, action in zip(times, (incumbent, challenger), strict=True):
            seconds.append(sum(action() for _ in range(repeats)) / repeats)
        late = time.perf_counter() > deadline and len(times[0]) >= FEWEST
        if late or times[1][0] > HOPELESS * times[0][0]:
            break
    before, after = map(statistics.median, times)
    spreads = [(max(seconds) - min(seconds)) / 2 / statistics.median(seconds) for seconds in times]
    return Duel(before, after, max(LEAST_GAIN, *spreads))
