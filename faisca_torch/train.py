"""One training step, and the passes over a model that need no gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from faisca.config import OptimizerConfig
from faisca.parameters import decays
from faisca_torch.losses import linear_cross_entropy, linear_log_probs, project
from faisca_torch.model import GPT

Metrics = dict[str, Tensor]


@dataclass
class Learner:
    """A model with its optimiser, and its forward pass, compiled where the runtime says so."""

    model: GPT
    optimizer: torch.optim.AdamW
    config: OptimizerConfig
    hidden: Callable[[Tensor], Tensor]


def make_learner(*, model: GPT, config: OptimizerConfig) -> Learner:
    """AdamW (bias-corrected, decoupled decay) with its moments at zero."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[decays(name, tuple(parameter.shape), config.decay)].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    hidden = torch.compile(model) if model.runtime.compile else model
    return Learner(model, optimizer, config, hidden)


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
    torch.manual_seed(dropout_seed)
    loss = torch.zeros((), device=learner.model.runtime.device)
    for rows in range(0, len(inputs), micro_batch_size or len(inputs)):
        part = slice(rows, rows + (micro_batch_size or len(inputs)))
        part_loss = _summed_loss(learner.hidden, learner.model, inputs[part], targets[part], True) / targets.size
        part_loss.backward()
        loss += part_loss.detach()
    return _update(learner=learner, loss=loss, learning_rate=learning_rate)


def _update(*, learner: Learner, loss: Tensor, learning_rate: float) -> Metrics:
    """Clip the gradients, take the AdamW step unless something is not finite, and clear the gradients."""
    parameters = list(learner.model.parameters())
    grad_norm = _norm([p.grad for p in parameters if p.grad is not None])
    if learner.config.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, learner.config.clip_norm, grad_norm)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate
    skipped = (~(loss.isfinite() & grad_norm.isfinite())).float()
    learner.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # the fused kernel skips on the device
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return {"loss": loss.detach(), "grad_norm": grad_norm, "skipped": skipped}


def _norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, of their rows first.

    On the CPU, torch's norm of a whole table adds one after the other in few lanes: 5e-4 off for 13 million random
    numbers, 1e-2 for equal ones. Rows are short, and `sum` adds in a cascade.
    """
    rows = [torch.linalg.vector_norm(gradient, dim=-1).flatten() for gradient in gradients]
    return torch.cat(rows).square().sum().sqrt()


def read_metrics(*, metrics: list[Metrics]) -> list[dict[str, float]]:
    """Numbers of past steps; waits for the device once."""
    if not metrics:
        return []
    rows = torch.stack([torch.stack([value.float() for value in step.values()]) for step in metrics]).tolist()
    return [dict(zip(step, row, strict=True)) for step, row in zip(metrics, rows, strict=True)]


def evaluate(*, model: GPT, inputs: np.ndarray, targets: np.ndarray) -> float:
    """Summed negative log-likelihood (nats) of [B, T] targets; negative targets are left out."""
    model.eval()
    with torch.inference_mode():
        return _summed_loss(model, model, inputs, targets, False).item()


def logits(*, model: GPT, tokens: np.ndarray) -> np.ndarray:
    """Token ids [B, T] -> logits, float32 [B, T, V]."""
    model.eval()
    with torch.inference_mode():
        hidden_ND = model(to_device(model, tokens)).flatten(0, 1)
        return project(hidden_ND, model.head_VD).view(*tokens.shape, len(model.head_VD)).cpu().numpy()


def token_log_probs(*, model: GPT, tokens: np.ndarray, temperature: float, places: np.ndarray | None) -> np.ndarray:
    """Token ids [B, T] -> log-probability of each token after the first, float32 [B, T-1]; 0 outside `places`."""
    model.eval()
    places = np.arange(tokens[:, 1:].size) if places is None else places
    with torch.inference_mode():
        log_probs, _ = shifted_log_probs(model, to_device(model, tokens), to_device(model, places), temperature)
        return log_probs.cpu().numpy()


def shifted_log_probs(model: GPT, tokens_BT: Tensor, places_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each token after the first, and the entropy there: float32 [B, T-1] each; 0 elsewhere."""
    targets = tokens_BT[:, 1:]
    hidden_ND = model(tokens_BT[:, :-1]).flatten(0, 1).index_select(0, places_N)
    log_probs_N, entropies_N = linear_log_probs(
        hidden_ND, model.head_VD, targets.flatten()[places_N], temperature, model.runtime.loss_chunk
    )
    zeros = log_probs_N.new_zeros(targets.numel())
    log_probs, entropies = (zeros.index_copy(0, places_N, found) for found in (log_probs_N, entropies_N))
    return log_probs.view(targets.shape), entropies.view(targets.shape)


def to_device(model: GPT, tokens: np.ndarray) -> Tensor:
    """Token ids as an int64 tensor on the model's device."""
    return torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).to(model.runtime.device, non_blocking=True)


def _summed_loss(
    hidden: Callable[[Tensor], Tensor],
    model: GPT,
    inputs: np.ndarray,
    targets: np.ndarray,
    with_gradients: bool,
) -> Tensor:
    hidden_ND = hidden(to_device(model, inputs)).flatten(0, 1)
    targets_N = to_device(model, targets).flatten()
    return linear_cross_entropy(hidden_ND, model.head_VD, targets_N, model.runtime.loss_chunk, with_gradients)
