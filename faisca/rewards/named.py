"""From the name of a reward to its function."""

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import cast

from faisca.errors import FaiscaError
from faisca.rewards.built_in import Exact, Length, Pattern, Phrases, distinct, football
from faisca.rewards.samples import Function

CHOICES = (
    "football, keywords:WORD,SOME PHRASE, regex:PATTERN, length:LEAST-MOST, distinct, exact:COLUMN or FILE.py:FUNCTION"
)


def load_reward(name: str) -> Function:
    """The reward that `grpo.reward` names. FaiscaError for a bad name, or a file that cannot be run.

    Commas stand between keywords; one of several words, as in 25 de Abril, is found where they follow one another.
    A function of a file's returns one number a completion; NaN means that it cannot be scored.
    """
    kind, colon, rest = name.partition(":")
    match kind:
        case "football" if not colon:
            return football
        case "distinct" if not colon:
            return distinct
        case "keywords" if colon:
            return _keywords(name, rest)
        case "regex" if rest:
            return _pattern(name, rest)
        case "length" if colon:
            return _length(name, rest)
        case "exact" if rest:
            return Exact(rest)
    path, _, function = name.rpartition(":")
    if is_file(name):
        return _from_file(Path(os.path.expanduser(path)), function)
    raise FaiscaError(f"grpo.reward {name!r} is unknown: choose {CHOICES}")


def is_file(name: str) -> bool:
    """Whether a reward is a function of a user's file."""
    return name.rpartition(":")[0].endswith(".py")


def labels(names: Sequence[str]) -> list[str]:
    """What metrics call rewards: the function of a file, else the kind; a second one of a name is NAME_2."""
    found: list[str] = []
    for name in names:
        label = name.rpartition(":")[2] if is_file(name) else name.partition(":")[0]
        numbered = (label if number == 1 else f"{label}_{number}" for number in count(1))
        found.append(next(one for one in numbered if one not in found))
    return found


def _keywords(name: str, listed: str) -> Phrases:
    keywords = [item for item in listed.split(",") if item.strip()]
    if not keywords or not all(re.search(r"\w", keyword) for keyword in keywords):
        raise FaiscaError(
            f"grpo.reward {name!r} names {'a keyword without' if keywords else 'no'} words: write keywords:"
            "WORD,SOME PHRASE, with commas between keywords"
        )
    return Phrases(keywords)


def _pattern(name: str, pattern: str) -> Pattern:
    try:
        return Pattern(re.compile(pattern))
    except re.error as error:
        raise FaiscaError(f"grpo.reward {name!r} is no regular expression ({error}): mend it") from error


def _length(name: str, window: str) -> Length:
    bounds = re.fullmatch(r"(\d+)-(\d+)", window)
    if not bounds or not 0 < int(bounds[2]) >= int(bounds[1]):
        raise FaiscaError(f"grpo.reward {name!r} is no window of characters: write length:20-90")
    return Length(int(bounds[1]), int(bounds[2]))


def _from_file(path: Path, function: str) -> Function:
    if not path.is_file():
        raise FaiscaError(f"grpo.reward file {path} does not exist: name a Python file, as in my_reward.py:score")
    spec = importlib.util.spec_from_file_location(f"faisca_reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look for it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        raise FaiscaError(f"grpo.reward file {path} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, function, None)):
        public = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise FaiscaError(f"{path} has no function {function!r}: it has {', '.join(public) or 'none'}")
    return cast(Function, getattr(module, function))
