"""MLX as its examples do it: all logits at once, `nn.losses.cross_entropy`, no key-value cache, no micro-batches.

The blocks are our model's; loss, step and sampling are plain. It is what the original's author
tried on a Mac, without the mistakes.
"""

from collections.abc import Callable
from typing import Any

import faisca_mlx  # isort: skip  # first: it puts a fast BLAS in place before MLX is loaded
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from faisca.bench.twin import timed
from faisca.bench.work import Work
from faisca.config import RunConfig
from faisca_mlx.model import GPT, make_model

TOP_K = 30
TEMPERATURE = 0.8


class Naive:
    """The plain version."""

    def __init__(self, work: Work, device: str) -> None:
        self.work = work
        self.runtime = faisca_mlx.open_runtime(config=RunConfig(backend="mlx", device=device, compile="off"))
        self.model = self.make_model()

    def describe(self) -> dict[str, Any]:
        return {"device": self.runtime.device, "dtype": "float32"} | dict(self.runtime.details)

    def make_model(self) -> GPT:
        return make_model(config=self.work.model, parameters=self.work.parameters(), runtime=self.runtime)

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        return full_loss(self.model, mx.array(inputs), mx.array(targets)).item()

    def cases(self) -> dict[str, Callable[[], float]]:
        new_tokens = self.work.config.grpo.max_new_tokens
        return {
            "pretrain": self.training("pretrain"),
            "rollout": lambda: timed(lambda: self.sample(self.work.completions, new_tokens)),
            "generate_1": lambda: timed(lambda: self.sample(1, self.work.sampling().max_new_tokens)),
        }

    def training(self, stage: str) -> Callable[[], float]:
        config, model = getattr(self.work.config, stage), self.make_model().train()
        optimizer = optim.AdamW(config.learning_rate, weight_decay=config.weight_decay, bias_correction=True)
        inputs, targets = (mx.array(ids) for ids in self.work.batch(stage))
        loss_and_grad = nn.value_and_grad(model, full_loss)

        def step() -> None:
            loss, gradients = loss_and_grad(model, inputs, targets)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state, loss)

        return lambda: timed(step)

    def sample(self, rows: int, new_tokens: int) -> None:
        """The whole sequence again for every token, and the logits of all its positions."""
        tokens = mx.array(self.work.prompts(rows))
        for _ in range(new_tokens):
            logits = (self.model(tokens) @ self.model.head_VD.T)[:, -1] / TEMPERATURE
            lowest = mx.topk(logits, min(TOP_K, logits.shape[1]), axis=1).min(axis=1, keepdims=True)
            chosen = mx.random.categorical(mx.where(logits < lowest, -mx.inf, logits))
            tokens = mx.concatenate([tokens, chosen[:, None]], axis=1)
            mx.eval(tokens)

    def device_memory(self) -> int | None:
        return mx.get_peak_memory()


def full_loss(model: GPT, inputs: mx.array, targets: mx.array) -> mx.array:
    """Mean cross-entropy of all logits at once."""
    return nn.losses.cross_entropy(model(inputs) @ model.head_VD.T, targets, reduction="mean")


def open_baseline(work: Work, device: str) -> Naive:
    """`device` as in `faisca bench --device`."""
    return Naive(work, device)
