"""One training step of pre-training and fine-tuning, and what is measured of a model between steps."""

import numpy as np
import torch

from faisca_torch.device import to_device
from faisca_torch.experts import router_loss
from faisca_torch.losses import project, summed_loss
from faisca_torch.model import GPT
from faisca_torch.optimizer import Learner, Metrics, update


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
    model = learner.model.train()
    forward = learner.compiled(model.hidden_and_routed)
    # Dropout draws from the framework's own generator: a seed of its own for each step makes it repeatable.
    torch.manual_seed(dropout_seed)
    # Of the whole batch, however micro-batches share them; where processes do, the mean of theirs.
    counted = max(1, model.runtime.processes.mean(int((targets >= 0).sum())))
    numbers, size = Metrics(), micro_batch_size or len(inputs)
    for rows in range(0, len(inputs), size):
        part = slice(rows, rows + size)
        with learner.averaging.micro_batch(last=part.stop >= len(inputs)):
            # Forward: hidden states, then the loss straight from them, never all logits.
            hidden_BTD, routed = learner.averaging.forward(forward, to_device(model, inputs[part]))
            loss = summed_loss(model, hidden_BTD.flatten(0, 1), to_device(model, targets[part]), True) / counted
            # If there are experts, what keeps them evenly busy: the mean over the micro-batches.
            balance, watched = router_loss(routed, model.config, len(hidden_BTD) / len(inputs))
            # Backward: gradients of the micro-batches add up in each parameter's `.grad`.
            (loss + balance).backward()
        numbers = {name: value + numbers.get(name, 0) for name, value in (watched | {"loss": loss.detach()}).items()}
    return update(learner=learner, numbers=numbers, learning_rate=learning_rate)


def read_metrics(*, metrics: list[Metrics]) -> list[dict[str, float]]:
    """Numbers of past steps; waits for the device once."""
    if not metrics:
        return []
    rows = torch.stack([torch.stack([value.float() for value in step.values()]) for step in metrics]).tolist()
    return [dict(zip(step, row, strict=True)) for step, row in zip(metrics, rows, strict=True)]


def evaluate(*, model: GPT, inputs: np.ndarray, targets: np.ndarray) -> float:
    """Summed negative log-likelihood (nats) of [B, T] targets; negative targets are left out."""
    model.eval()
    with torch.no_grad():
        hidden_ND = model(to_device(model, inputs)).flatten(0, 1)
        return summed_loss(model, hidden_ND, to_device(model, targets), False).item()


def logits(*, model: GPT, tokens: np.ndarray) -> np.ndarray:
    """Token ids [B, T] -> logits, float32 [B, T, V]."""
    model.eval()
    with torch.no_grad():
        hidden_ND = model(to_device(model, tokens)).flatten(0, 1)
        return project(hidden_ND, model.head).view(*tokens.shape, model.config.vocabulary_size).cpu().numpy()
