"""What is compared, and on what: a twin on a device, a model, and the tokens that both sides are given."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from faisca.backend import Backend, Runtime
from faisca.config import ModelConfig, RunConfig
from faisca.parameters import initial_parameters
from faisca.rewards.advantages import group_advantages
from faisca.streams import generator

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Side:
    """One twin on one device; `open` makes it the current one, since MLX's device is a global."""

    backend: Backend
    config: RunConfig

    def open(self, **changes: Any) -> Runtime:
        return self.backend.open_runtime(config=dataclasses.replace(self.config, **changes))


@dataclass(frozen=True, eq=False)
class Case:
    """The model that both sides compute with, and how much of it; equal to itself only, so that it can be a key."""

    model: ModelConfig
    parameters: Mapping[str, np.ndarray]
    end_of_text: int
    rows: int = 8
    length: int = 32
    steps: int = 20
    seed: int = 0
    ends: tuple[int, ...] = ()
    """more ids that end a completion"""

    @property
    def stops(self) -> tuple[int, ...]:
        """Every id that ends a completion."""
        return (self.end_of_text, *self.ends)

    def make_model(self, side: Side, **changes: Any) -> Any:
        return side.backend.make_model(config=self.model, parameters=self.parameters, runtime=side.open(**changes))

    def batch(self, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, int32 [rows, length], of a language that can be learnt."""
        tokens = chain(self.model.vocabulary_size, self.rows, self.length + 1, self.seed, step)
        return tokens[:, :-1], tokens[:, 1:]


def chain(vocabulary_size: int, rows: int, length: int, seed: int, step: int = 0) -> np.ndarray:
    """Tokens that follow from the one before three times in four, else are drawn: int32 [rows, length]."""
    random = generator(seed, "parity tokens", step)
    tokens = random.integers(vocabulary_size, size=(rows, length), dtype=np.int32)
    follows = random.random((rows, length)) < 0.75
    for t in range(1, length):
        tokens[:, t] = np.where(follows[:, t], (3 * tokens[:, t - 1] + 1) % vocabulary_size, tokens[:, t])
    return tokens


def uneven_parameters(config: ModelConfig, seed: int) -> Arrays:
    """Initial values with noise on all: where biases are 0 and norms 1, mistakes in them do not show."""
    values = initial_parameters(config, seed)
    noise = {name: generator(seed, f"noise on {name}").standard_normal(value.shape) for name, value in values.items()}
    return {name: (value + 0.1 * noise[name]).astype(np.float32) for name, value in values.items()}


def completions(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [B, T], mask [B, T-1] and advantages [B]: completions of many lengths after three tokens of prompt."""
    tokens = chain(case.model.vocabulary_size, case.rows, case.length, case.seed, step=1)
    ends = generator(case.seed, "parity lengths").integers(4, case.length + 1, case.rows)
    places = np.arange(1, case.length)
    mask = ((places >= 3) & (places < ends[:, None])).astype(np.float32)
    rewards = (np.arange(case.rows) % 3 == 0).astype(np.float64)
    return tokens, mask, group_advantages(rewards, case.rows, "group").astype(np.float32)
