"""One training step of pre-training and fine-tuning, and what is measured of a model between steps."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from faisca_mlx.device import to_device
from faisca_mlx.experts import router_loss
from faisca_mlx.losses import project, summed_loss
from faisca_mlx.model import GPT
from faisca_mlx.optimizer import Learner, Metrics, update


def train_step(
    *,
    learner: Learner,
    inputs: np.ndarray,
    targets: np.ndarray,
    learning_rate: float,
    micro_batch_size: int,
    dropout_seed: int,
) -> Metrics:
    """One AdamW step on the mean cross-entropy of [B, T] targets that are >= 0, `micro_batch_size` rows at a time."""
    learner.model.train()
    # Dropout draws from the framework's own generator: a seed of its own for each step makes it repeatable.
    mx.random.seed(dropout_seed)
    parts = [
        to_device(learner.model, tokens).reshape(-1, micro_batch_size or len(inputs), inputs.shape[1])
        for tokens in (inputs, targets)
    ]
    # Of the whole batch, however micro-batches share them; where processes do, the mean of theirs.
    counted = max(1, learner.model.runtime.processes.mean(int((targets >= 0).sum())))
    # Arrays, for a number would be compiled in.
    metrics: Metrics = learner.compiled(_step)(*parts, mx.array(learning_rate), mx.array(float(counted)))
    # Until here nothing has been computed. One evaluation of all that the step changed, or its graph stays alive.
    mx.eval(learner.model.state, learner.optimizer.state, metrics)
    return metrics


def read_metrics(*, metrics: list[Metrics]) -> list[dict[str, float]]:
    """Numbers of past steps; waits for the device once."""
    mx.eval(metrics)
    return [{name: value.item() for name, value in step.items()} for step in metrics]


def evaluate(*, model: GPT, inputs: np.ndarray, targets: np.ndarray) -> float:
    """Summed negative log-likelihood (nats) of [B, T] targets; negative targets are left out."""
    if not inputs.size:  # MLX concatenates no empty list of chunks
        return 0.0
    model.eval()
    hidden_ND = model(to_device(model, inputs)).flatten(0, 1)
    return summed_loss(model, hidden_ND, to_device(model, targets), False).item()


def logits(*, model: GPT, tokens: np.ndarray) -> np.ndarray:
    """Token ids [B, T] -> logits, float32 [B, T, V]."""
    model.eval()
    return np.array(project(model(to_device(model, tokens)), model.head))


def _step(
    learner: Learner, inputs_MRT: mx.array, targets_MRT: mx.array, learning_rate: mx.array, counted: mx.array
) -> Metrics:
    """The whole step over M micro-batches of R rows; each waits for the gradients of the one before."""

    def loss_of(inputs: mx.array, targets: mx.array) -> tuple[mx.array, Metrics]:
        # Forward: hidden states, then the loss straight from them, never all logits.
        hidden_BTD, routed = learner.model.hidden_and_routed(inputs)
        loss = summed_loss(learner.model, hidden_BTD.flatten(0, 1), targets, True) / counted
        # If there are experts, what keeps them evenly busy: the mean over the micro-batches.
        balance, watched = router_loss(routed, learner.model.config, 1 / len(inputs_MRT))
        return loss + balance, {"loss": mx.stop_gradient(loss)} | watched

    loss_and_grad = nn.value_and_grad(learner.model, loss_of)
    metrics, gradients = Metrics(), None
    for inputs, targets in zip(inputs_MRT, targets_MRT, strict=True):
        if gradients is not None:  # else all micro-batches would be computed at once
            done = [*metrics.values(), *(value for _, value in tree_flatten(gradients))]
            inputs, targets = mx.depends([inputs, targets], done)
        (_, seen), more = loss_and_grad(inputs, targets)
        metrics = {name: value + metrics.get(name, 0) for name, value in seen.items()}
        gradients = more if gradients is None else tree_map(mx.add, gradients, more)
    return update(learner=learner, numbers=metrics, learning_rate=learning_rate, gradients=gradients)
