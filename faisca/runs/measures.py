"""What is measured of a model: the same before and after every stage."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Measures:
    """A model at one moment. `summary.json` has each of these twice a stage: NAME_before and NAME_after."""

    validation_loss: float
    """mean nats a token on validation titles"""
    bits_per_byte: float
    """the same loss for each byte of text, which compares models with different tokenizers"""
    portugal_validation_loss: float
    """mean nats a token on the validation titles of SFT"""
    football_share: float
    """share of the counted completions that mention football"""
    distinct_share: float
    """distinct completions, as a share of those that are counted"""
    samples: list[str]
    """a few headlines"""
    reward: float | None = None
    """mean of `grpo.reward` over the counted completions; None where no completion can be scored"""
    reward_std: float | None = None
    """its standard deviation"""


def before_and_after(before: Measures, after: Measures) -> dict[str, Any]:
    """The entries of `summary.json` for two moments."""
    moments = {"before": asdict(before), "after": asdict(after)}
    return {f"{name}_{when}": measured[name] for name in asdict(before) for when, measured in moments.items()}


def measures_after(entry: Mapping[str, Any]) -> Measures | None:
    """The model after a stage, from its entry in `summary.json`; None where an older version measured less."""
    names = [field.name for field in fields(Measures)]
    if any(f"{name}_after" not in entry for name in names):
        return None
    return Measures(**{name: entry[f"{name}_after"] for name in names})
