"""Rewards for GRPO, and the advantages that they turn into."""

import importlib.util
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from faisca.errors import FaiscaError

Reward = Callable[[list[str]], Sequence[float]]

FOOTBALL_WORDS = frozenset(
    "futebol benfica porto sporting bola liga campeão taça golo jogo jogador treinador "
    "fifa uefa euro messi ronaldo".split()
)


def words(text: str) -> list[str]:
    """The words of a text for matching: composed (NFC), case folded, punctuation left out."""
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())


def keyword_reward(keywords: Iterable[str]) -> Reward:
    """1.0 for a completion that has one of the keywords, else 0.0: a word, or words that follow one another."""
    phrases = [_spaced(keyword) for keyword in keywords]
    return lambda completions: [float(any(one in text for one in phrases)) for text in map(_spaced, completions)]


def _spaced(text: str) -> str:
    return f" {' '.join(words(text))} "


football = keyword_reward(FOOTBALL_WORDS)


def load_reward(name: str) -> Reward:
    """The reward that `grpo.reward` names: football, keywords:WORD,SOME PHRASE or FILE.py:FUNCTION.

    Commas stand between keywords; one of several words, as in 25 de Abril, is found where they follow one another.
    A function takes the completions of a step and returns one number each; NaN means that a
    completion cannot be scored (its advantage is 0). Raises FaiscaError for a bad name.
    """
    if name == "football":
        return football
    kind, _, rest = name.rpartition(":")
    if name.startswith("keywords:"):
        keywords = [item for item in name.removeprefix("keywords:").split(",") if item.strip()]
        if not keywords or not all(map(words, keywords)):
            raise FaiscaError(
                f"grpo.reward {name!r} names {'a keyword without' if keywords else 'no'} words: write keywords:"
                "WORD,SOME PHRASE, with commas between keywords"
            )
        return keyword_reward(keywords)
    if kind.endswith(".py"):
        return _reward_from_file(Path(os.path.expanduser(kind)), rest)
    choices = "football, keywords:WORD,SOME PHRASE or FILE.py:FUNCTION"
    raise FaiscaError(f"grpo.reward {name!r} is unknown: choose {choices}")


def score(reward: Reward, name: str, completions: list[str]) -> np.ndarray:
    """Rewards of the completions: float64 [B]. A reward that misbehaves is a FaiscaError."""
    try:
        rewards = np.asarray(list(reward(list(completions))), dtype=np.float64)  # a copy: it may change its list
    except (Exception, SystemExit) as error:  # a user's function may raise anything: say which one, and what
        raise FaiscaError(f"grpo.reward {name!r} failed: {type(error).__name__}: {error}") from error
    if rewards.shape != (len(completions),):
        raise FaiscaError(
            f"grpo.reward {name!r} returned {rewards.shape} numbers for {len(completions)} completions: "
            "return a list with one number each"
        )
    if np.isinf(rewards).any():
        raise FaiscaError(f"grpo.reward {name!r} returned an infinite number: return finite ones, or NaN to pass")
    return rewards


def mean_and_deviation(rewards: np.ndarray) -> tuple[float | None, float | None]:
    """Mean and standard deviation (Bessel-corrected) of the rewards that are no NaN; None where there are too few."""
    scored = rewards[~np.isnan(rewards)]
    return (float(scored.mean()) if len(scored) else None, float(scored.std(ddof=1)) if len(scored) > 1 else None)


def group_advantages(rewards: np.ndarray, group_size: int, scale: str) -> np.ndarray:
    """Advantages of completions against their group: float64 [B], rows of a group side by side.

    (reward − group mean) / (standard deviation + 1e-4), the deviation Bessel-corrected and taken
    over the `group`, over the `batch`, or not at all (`none`). A group of equal rewards has
    exactly 0; so has a completion whose reward is NaN, which the statistics leave out.
    """
    grouped = rewards.reshape(-1, group_size)
    centred = np.zeros_like(grouped)
    deviations = np.zeros(len(grouped))
    for i, group in enumerate(grouped):
        # NaN takes no part in the mean; equal rewards must give exactly 0, not rounding noise.
        scored = group[~np.isnan(group)]
        if len(scored) > 1 and scored.max() > scored.min():
            centred[i] = np.nan_to_num(group - scored.mean())
            deviations[i] = scored.std(ddof=1)
    if scale == "none":
        return centred.reshape(-1)
    # One deviation for the whole batch: groups with small differences are not blown up.
    if scale == "batch":
        scored = rewards[~np.isnan(rewards)]
        deviations[:] = scored.std(ddof=1) if len(scored) > 1 else 0.0
    return (centred / (deviations[:, None] + 1e-4)).reshape(-1)


def _reward_from_file(path: Path, function: str) -> Reward:
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
    return cast(Reward, getattr(module, function))


def share(values: Sequence[float]) -> float:
    """Mean of flags; NaN where there are none."""
    return math.fsum(values) / len(values) if values else math.nan
