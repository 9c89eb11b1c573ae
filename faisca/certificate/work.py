"""What a stage will compute: its model and the shapes of its steps, with random tokens that both sides are given.

A GPU computes every shape in full. The CPU need not: a batch in which a few rows stand again and
again has the loss and the gradients of these few, so the device gets each row several times, in a
random order, and the CPU gets it once.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from faisca.backend import ROWS_AT_A_TIME, Rollouts, Sampling
from faisca.config import AdaptedModel, GRPOConfig, ModelConfig, OptimizerConfig
from faisca.parameters import Parameters
from faisca.streams import generator, permutation

NO_DROPOUT = 1e-12
"""a rate at which the path with dropout is taken, and in float32 nothing is dropped"""
ENOUGH_TOKENS = 512
"""different tokens in a batch; the other rows of a larger one are copies"""
MOST_LOGITS = 2**23
"""logits that the CPU keeps to check rollouts with: 34 MB"""
LAST_PLACE = {"float32": 2.0**-23, "bfloat16": 2.0**-9}
"""how far a dtype rounds a number, as a share of it"""
EPSILON = 1e-3
"""Adam's, about as large as a gradient: at 1e-8 a weight whose gradient is rounding noise moves at random"""


@dataclass(frozen=True, eq=False)
class Work:
    """What one stage will compute."""

    stage: str
    model: ModelConfig
    """the model's, with its real vocabulary size and its dropout"""
    parameters: Mapping[str, np.ndarray]
    """the weights that the stage begins with, made uneven"""
    rows: int
    """in a micro-batch, or in a minibatch of GRPO"""
    length: int
    """tokens that a row gives the model"""
    seed: int
    grpo: GRPOConfig | None = None
    """of a stage of GRPO"""
    prompt: int = 1
    """tokens of GRPO's longest prompt, the end-of-text before it included"""

    @property
    def still_model(self) -> ModelConfig:
        """The model with its dropout's path, but nothing dropped: what two sides can be compared with."""
        rate, attention = (NO_DROPOUT if x else 0.0 for x in (self.model.dropout, self.model.attention_dropout))
        still = dataclasses.replace(self.model, dropout=rate, attention_dropout=attention)
        if not isinstance(still, AdaptedModel) or not still.adapter.dropout:
            return still
        return dataclasses.replace(still, adapter=dataclasses.replace(still.adapter, dropout=NO_DROPOUT))

    @property
    def distinct(self) -> int:
        """Rows of a batch that differ; it is made of copies of these."""
        divisors = [n for n in range(1, self.rows + 1) if self.rows % n == 0]
        return next(n for n in divisors if n == self.rows or (n > 1 and n * self.length >= ENOUGH_TOKENS))

    def on(self, device: str) -> "Work":
        """The work as a device computes it: the CPU takes fewer rows of a large micro-batch, still several chunks."""
        if device != "cpu" or self.grpo:
            return self
        fitting = [n for n in range(self.distinct, self.rows + 1, self.distinct) if self.rows % n == 0]
        rows = next(n for n in fitting if n == self.rows or (n > self.distinct and n * self.length > ENOUGH_TOKENS))
        return dataclasses.replace(self, rows=rows)

    @property
    def rate(self) -> float:
        """A learning rate that moves the weights far enough to be seen, and not far enough for chaos."""
        return min(1e-2, 0.3 / self.model.dim)

    def optimizer(self, config: OptimizerConfig) -> OptimizerConfig:
        """The stage's, with AdamW, whose first moment is the gradient; decay and clipping would blur what is wrong."""
        adam = dataclasses.replace(config, optimizer="adamw", beta1=0.0, epsilon=EPSILON)
        return dataclasses.replace(adam, clip_norm=0.0, weight_decay=0.0)

    def batch(self, step: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of different rows: int32 [rows, length], any token of the vocabulary."""
        tokens = self._tokens("training", step, rows)
        return tokens[:, :-1], tokens[:, 1:]

    def copies(self, step: int) -> np.ndarray:
        """Which of the distinct rows stands in each row of a whole batch, in a random order: int64 [rows]."""
        return permutation(self.seed, "certificate order", self.rows, step) % self.distinct

    def completions(self, step: int, length: int) -> Rollouts[np.ndarray]:
        """Completions of many lengths with advantages; their log-probabilities are still zero."""
        random = generator(self.seed, "certificate completions", step)
        tokens = self._tokens("GRPO", step, self.rows, length)
        first = min(self.prompt, length)
        ends = random.integers(first, length + 1, self.rows)
        places = np.arange(1, length + 1)
        mask = ((places >= first) & (places <= ends[:, None])).astype(np.float32)
        advantages = random.choice([-1.0, 1.0], self.rows) * random.uniform(0.5, 1.5, self.rows)
        zeros = np.zeros_like(mask)
        return Rollouts(tokens, mask, advantages.astype(np.float32), zeros, zeros, float(mask.sum()))

    def reference_noise(self, step: int, shape: tuple[int, ...]) -> np.ndarray:
        """How far the frozen reference of GRPO is from the policy, in nats: float32."""
        return generator(self.seed, "certificate reference", step).normal(0, 0.3, shape).astype(np.float32)

    def prompts(self) -> list[list[int]]:
        """Prompts of a rollout, as many rows as are sampled together."""
        assert self.grpo is not None, "only GRPO rolls out"
        rows = min(ROWS_AT_A_TIME, self.grpo.group_size * self.grpo.prompts_per_step)
        tokens = generator(self.seed, "certificate prompts").integers(
            self.model.vocabulary_size, size=(rows, self.prompt)
        )
        return [[int(token) for token in row] for row in tokens]

    def samplings(self) -> dict[str, Sampling]:
        """The ways of sampling by name: the likeliest tokens, and as GRPO does."""
        assert self.grpo is not None, "only GRPO rolls out"
        new, grpo = self.grpo.max_new_tokens, self.grpo
        return {
            "likeliest tokens": Sampling(0.0, 0, 1.0, new),
            "sampled tokens": Sampling(grpo.temperature, grpo.top_k, 1.0, new),
        }

    def checked_rows(self, rows: int, length: int) -> np.ndarray:
        """Which rows of a rollout the CPU looks at: the last, the first and two more, with all of their logits."""
        most = max(1, min(4, MOST_LOGITS // (length * self.model.vocabulary_size)))
        order = [rows - 1, 0, *permutation(self.seed, "certificate rollouts", rows).tolist()]
        return np.array(list(dict.fromkeys(order))[:most])

    def _tokens(self, purpose: str, step: int, rows: int, length: int | None = None) -> np.ndarray:
        """int32 [rows, length + 1]."""
        shape = (rows, (length or self.length) + 1)
        random = generator(self.seed, f"certificate tokens of {purpose}", step)
        return random.integers(self.model.vocabulary_size, size=shape, dtype=np.int32)


def uneven(parameters: Mapping[str, np.ndarray], seed: int) -> Parameters:
    """Weights with noise on those that are all equal: where biases are 0 and norms 1, mistakes in them do not show."""
    return {
        name: value + _noise(seed, name, value) if np.all(value == value.flat[0]) else value
        for name, value in parameters.items()
    }


def _noise(seed: int, name: str, value: np.ndarray) -> np.ndarray:
    return generator(seed, f"certificate noise on {name}").normal(0, 0.1, value.shape).astype(np.float32)


def nudged(parameters: Mapping[str, np.ndarray], dtype: str, seed: int) -> Parameters:
    """Weights moved by a last place of the dtype, up or down at random: float64."""
    moved = {}
    for name, value in parameters.items():
        up = generator(seed, f"certificate nudge of {name}").random(value.shape) < 0.5
        moved[name] = value.astype(np.float64) * (1 + np.where(up, LAST_PLACE[dtype], -LAST_PLACE[dtype]))
    return moved
