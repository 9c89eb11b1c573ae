"""One training step, and the passes over a model that need no gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from faisca.config import OptimizerConfig
from faisca.parameters import decays
from faisca_mlx.losses import _total, linear_cross_entropy, linear_log_probs, project
from faisca_mlx.model import GPT

Metrics = dict[str, mx.array]


@dataclass
class Learner:
    """A model with its optimiser, and its steps, compiled where the runtime says so."""

    model: GPT
    optimizer: optim.Adam
    config: OptimizerConfig
    step: Callable[..., Metrics]
    policy_steps: dict[Any, Callable[..., Metrics]]
    """GRPO's steps by configuration; `grpo.py` fills it"""


def make_learner(*, model: GPT, config: OptimizerConfig) -> Learner:
    """AdamW (bias-corrected, decoupled decay) with its moments at zero."""
    optimizer = _Adam(config.learning_rate, betas=[config.beta1, config.beta2], eps=config.epsilon)
    optimizer.init(model.trainable_parameters())
    learner = Learner(model, optimizer, config, lambda: {}, {})
    learner.step = _compiled(learner, partial(_step, learner))
    return learner


def _compiled(learner: Learner, step: Callable[..., Metrics]) -> Callable[..., Metrics]:
    """The step as one graph, if the runtime compiles: all the state that it reads or writes is declared."""
    if not learner.model.runtime.compile:
        return step
    state = [learner.model.state, learner.optimizer.state, mx.random.state]
    return mx.compile(step, inputs=state, outputs=state)


def train_step(
    *,
    learner: Learner,
    inputs: np.ndarray,
    targets: np.ndarray,
    learning_rate: float,
    micro_batch_size: int,
    dropout_seed: int,
) -> Metrics:
    """One AdamW step on the mean cross-entropy of [B, T] windows, `micro_batch_size` rows at a time.

    Returns `loss` (nats), `grad_norm` (before clipping) and `skipped` (1 where either was not
    finite, and weights and moments stayed as they were), still on the device.
    """
    learner.model.train()
    mx.random.seed(dropout_seed)
    parts = [
        to_device(learner.model, tokens).reshape(-1, micro_batch_size or len(inputs), inputs.shape[1])
        for tokens in (inputs, targets)
    ]
    metrics = learner.step(*parts, mx.array(learning_rate))  # a Python number would be compiled in
    mx.eval(learner.model.state, learner.optimizer.state, metrics)
    return metrics


def _update(*, learner: Learner, loss: mx.array, gradients: Any, learning_rate: mx.array) -> Metrics:
    """Clip the gradients, and take the AdamW step unless something is not finite."""
    model, optimizer, config = learner.model, learner.optimizer, learner.config
    clipped, grad_norm = _clip(gradients, config.clip_norm)
    finite = mx.isfinite(loss) & mx.isfinite(grad_norm)
    old_weights, old_state = model.trainable_parameters(), tree_map(lambda value: value, optimizer.state)
    optimizer.learning_rate = learning_rate
    new_weights = optimizer.apply_gradients(clipped, _decayed(old_weights, config, learning_rate))
    model.update(tree_map(partial(mx.where, finite), new_weights, old_weights))
    optimizer.state.update(tree_map(partial(mx.where, finite), optimizer.state, old_state))
    return {"loss": loss, "grad_norm": grad_norm, "skipped": 1 - finite.astype(mx.float32)}


def read_metrics(*, metrics: list[Metrics]) -> list[dict[str, float]]:
    """Numbers of past steps; waits for the device once."""
    mx.eval(metrics)
    return [{name: value.item() for name, value in step.items()} for step in metrics]


def evaluate(*, model: GPT, inputs: np.ndarray, targets: np.ndarray) -> float:
    """Summed negative log-likelihood (nats) of [B, T] targets; negative targets are left out."""
    model.eval()
    return _summed_loss(model, to_device(model, inputs), to_device(model, targets), with_gradients=False).item()


def logits(*, model: GPT, tokens: np.ndarray) -> np.ndarray:
    """Token ids [B, T] -> logits, float32 [B, T, V]."""
    model.eval()
    return np.array(project(model(to_device(model, tokens)), model.head_VD))


def token_log_probs(*, model: GPT, tokens: np.ndarray, temperature: float, places: np.ndarray | None) -> np.ndarray:
    """Token ids [B, T] -> log-probability of each token after the first, float32 [B, T-1]; 0 outside `places`."""
    if not tokens[:, 1:].size:  # nothing is predicted, and MLX scatters no empty arrays
        return np.zeros(tokens[:, 1:].shape, np.float32)
    model.eval()
    places = np.arange(tokens[:, 1:].size) if places is None else places
    return np.array(shifted_log_probs(model, to_device(model, tokens), to_device(model, places), temperature)[0])


def shifted_log_probs(
    model: GPT, tokens_BT: mx.array, places_N: mx.array, temperature: float
) -> tuple[mx.array, mx.array]:
    """Log-probability of each token after the first, and the entropy there: float32 [B, T-1] each; 0 elsewhere."""
    targets = tokens_BT[:, 1:]
    hidden_ND = model(tokens_BT[:, :-1]).flatten(0, 1)[places_N]
    log_probs_N, entropies_N = linear_log_probs(
        hidden_ND, model.head_VD, targets.flatten()[places_N], temperature, model.runtime.loss_chunk
    )
    zeros = mx.zeros(targets.size)
    log_probs, entropies = (zeros.at[places_N].add(found) for found in (log_probs_N, entropies_N))
    return log_probs.reshape(targets.shape), entropies.reshape(targets.shape)


def to_device(model: GPT, tokens: np.ndarray) -> mx.array:
    """Token ids as an int32 array; MLX's memory is the device's."""
    return mx.array(np.asarray(tokens, dtype=np.int32))


def _step(learner: Learner, inputs_MRT: mx.array, targets_MRT: mx.array, learning_rate: mx.array) -> Metrics:
    """The whole step over M micro-batches of R rows; each waits for the gradients of the one before."""
    loss_of = partial(_summed_loss, learner.model, with_gradients=True)
    loss_and_grad = nn.value_and_grad(learner.model, loss_of)
    total, gradients = mx.array(0.0), None
    for inputs, targets in zip(inputs_MRT, targets_MRT, strict=True):
        if gradients is not None:
            done = [total, *(value for _, value in tree_flatten(gradients))]
            inputs, targets = mx.depends([inputs, targets], done)
        loss, more = loss_and_grad(inputs, targets)
        total = total + loss
        gradients = more if gradients is None else tree_map(mx.add, gradients, more)
    gradients = tree_map(lambda gradient: gradient / targets_MRT.size, gradients)
    return _update(learner=learner, loss=total / targets_MRT.size, gradients=gradients, learning_rate=learning_rate)


def _summed_loss(model: GPT, inputs: mx.array, targets: mx.array, with_gradients: bool) -> mx.array:
    hidden_ND = model(inputs).flatten(0, 1)
    return linear_cross_entropy(hidden_ND, model.head_VD, targets.flatten(), model.runtime.loss_chunk, with_gradients)


def _clip(gradients: Any, largest: float) -> tuple[Any, mx.array]:
    """Gradients scaled to a norm of at most `largest` (0: as they are), and the norm that they had.

    MLX's `clip_grad_norm` adds up a table number by number in float32, which on the CPU makes the
    norm 0.4 % too small for a vocabulary of 50,257.
    """
    squares = [_total(gradient.square()) for _, gradient in tree_flatten(gradients)]
    norm = mx.sqrt(_total(mx.stack(squares)))
    if not largest:
        return gradients, norm
    return tree_map(lambda gradient: gradient * mx.minimum(largest / (norm + 1e-6), 1.0), gradients), norm


class _Adam(optim.Adam):
    """Adam with bias correction (Kingma & Ba 2015), which MLX's own leaves out unless it is asked.

    MLX's own also computes 1 - beta ** step in float32, 1e-5 off in the first steps, and training
    amplifies that a thousandfold.
    """

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta1, beta2 = self.betas
        state["m"] = beta1 * state["m"] + (1 - beta1) * gradient
        state["v"] = beta2 * state["v"] + (1 - beta2) * mx.square(gradient)
        rate = self.learning_rate / _correction(beta1, self.step)
        root = mx.sqrt(state["v"]) * mx.rsqrt(_correction(beta2, self.step))
        return parameter - rate * state["m"] / (root + self.eps)


def _correction(beta: float, step: mx.array) -> mx.array:
    """1 - beta ** step, to the last digits of a float32."""
    return -mx.expm1(step.astype(mx.float32) * (math.log(beta) if beta else -math.inf))


def _decayed(weights: Any, config: OptimizerConfig, learning_rate: mx.array) -> Any:
    """Weights after decoupled decay, which MLX's AdamW would apply to all of them."""

    def decay(name: str, weight: mx.array) -> mx.array:
        applies = config.weight_decay and decays(name, weight.shape, config.decay)
        return weight * (1 - learning_rate * config.weight_decay) if applies else weight

    return tree_map_with_path(decay, weights)
