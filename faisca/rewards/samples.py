"""What a reward is told of completions, and how its function is called: as users of TRL write them.

`def reward(completions, prompts, completion_ids, **columns)`: of these names a function takes those that it has, by
keyword. A first parameter of any other name gets the completions. Where a prompt is a list of messages its completion
is one as well, [{"role": "assistant", "content": TEXT}], for functions of a user's own; ours take texts.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from faisca.data.prompts import RESERVED, Task

Function = Callable[..., Any]


@dataclass(frozen=True)
class Samples:
    """Completions, row by row, with what they answer."""

    completions: list[str]
    prompts: list[Any]
    """texts, or lists of messages"""
    completion_ids: list[list[int]]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    """further columns of the prompts' lines"""

    @staticmethod
    def of_texts(completions: list[str]) -> "Samples":
        """Completions of an empty prompt."""
        return Samples(completions, [""] * len(completions), [[] for _ in completions])

    @staticmethod
    def of_tasks(tasks: Sequence[Task], answers: list[str], completions: list[list[int]]) -> "Samples":
        """Answers, row by row, as texts and as token ids, beside what they answer."""
        columns = {name: [task.columns[name] for task in tasks] for name in tasks[0].columns}
        return Samples(answers, [task.prompt for task in tasks], completions, columns)

    def row(self, i: int) -> "Samples":
        """One completion alone."""
        columns = {name: [values[i]] for name, values in self.columns.items()}
        return Samples([self.completions[i]], [self.prompts[i]], [self.completion_ids[i]], columns)

    def offered(self, texts: bool) -> dict[str, Any]:
        """What a function may take, in lists of its own, for it may change them; completions as `texts` alone."""
        completions = [
            text if texts or isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for text, prompt in zip(self.completions, self.prompts, strict=True)
        ]
        columns = {name: list(values) for name, values in self.columns.items()}
        ids = [list(ids) for ids in self.completion_ids]
        return {"completions": completions, "prompts": list(self.prompts), "completion_ids": ids} | columns


@dataclass(frozen=True)
class Outcome:
    """What came of a call: rewards, float64 [B], or why there are none."""

    rewards: np.ndarray | None = None
    failed: str = ""
    """it raised or took too long, which may be due to a single completion"""
    unusable: str = ""
    """it returned what is no list of numbers, which no completion can be blamed for"""


def attempt(function: Function, samples: Samples, *, texts: bool) -> Outcome:
    """Call a reward; whatever it does wrong is in the outcome."""
    positional, named = arguments(function, samples.offered(texts))
    try:
        values = list(function(*positional, **named))
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        return Outcome(failed=f"failed: {type(error).__name__}: {error}")
    return _checked(values, len(samples.completions))


def arguments(function: Function, offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What to call a function with: positional values, and those by name."""
    parameters = _parameters(function)
    first = _first_of_its_own(parameters)
    everything = any(one.kind is one.VAR_KEYWORD for one in parameters)
    named = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    taken = {name: value for name, value in offered.items() if name != first and (everything or name in named)}
    if first is None:
        return [], taken
    return [offered["completions"]], {name: value for name, value in taken.items() if name != "completions"}


def missing(function: Function, columns: Iterable[str]) -> list[str]:
    """The names that a function cannot do without, and nobody gives it."""
    known = {*RESERVED, *columns}
    if column := getattr(function, "column", None):
        return [column] if column not in known else []
    parameters = _parameters(function)
    first = _first_of_its_own(parameters)
    needed = [
        one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and one.name != first
    ]
    return [name for name in needed if name not in known]


def _parameters(function: Function) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some that are written in C have none
        return [inspect.Parameter("completions", inspect.Parameter.POSITIONAL_ONLY)]


def _first_of_its_own(parameters: list[inspect.Parameter]) -> str | None:
    """The parameter that takes the completions by its place; None where they go by name."""
    kinds = {one.kind for one in parameters}
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if any(one.name == "completions" and one.kind is not one.POSITIONAL_ONLY for one in parameters):
        return None
    if not places and inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        return None
    return places[0].name if places else "*args"


def _checked(values: list[Any], rows: int) -> Outcome:
    try:
        rewards = np.asarray(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError) as error:
        return Outcome(unusable=f"failed: {type(error).__name__}: {error}")
    if rewards.shape != (rows,):
        return Outcome(
            unusable=f"returned {rewards.shape} numbers for {rows} completions: return a list with one number each"
        )
    if np.isinf(rewards).any():
        return Outcome(unusable="returned an infinite number: return finite ones, or NaN to pass")
    return Outcome(rewards)
