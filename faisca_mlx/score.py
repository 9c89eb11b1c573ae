"""The passes over a model that need no gradient: losses, logits, log-probabilities."""

import mlx.core as mx
import numpy as np

from faisca.backend import check_temperature
from faisca_mlx.device import to_device
from faisca_mlx.losses import linear_log_probs, project, summed_loss
from faisca_mlx.model import GPT


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


def token_log_probs(*, model: GPT, tokens: np.ndarray, temperature: float, places: np.ndarray | None) -> np.ndarray:
    """Token ids [B, T] -> log-probability of each token after the first, float32 [B, T-1]; 0 outside `places`."""
    check_temperature(temperature)
    places = np.arange(tokens[:, 1:].size) if places is None else places
    if not places.size:
        return np.zeros(tokens[:, 1:].shape, np.float32)
    model.eval()
    log_probs, _ = shifted_log_probs(model, to_device(model, tokens), to_device(model, places), temperature, 0)
    return np.array(log_probs)


def shifted_log_probs(
    model: GPT, tokens_BT: mx.array, places_N: mx.array, temperature: float, with_gradients: int
) -> tuple[mx.array, mx.array]:
    """Log-probability of each token after the first, and the entropy there: float32 [B, T-1] each; 0 elsewhere."""
    targets = tokens_BT[:, 1:]
    hidden_ND = model(tokens_BT[:, :-1]).flatten(0, 1)[places_N]
    log_probs_N, entropies_N = linear_log_probs(
        hidden_ND, model.head, targets.flatten()[places_N], temperature, model.runtime.loss_chunk, with_gradients
    )
    zeros = mx.zeros(targets.size)
    log_probs, entropies = (zeros.at[places_N].add(found) for found in (log_probs_N, entropies_N))
    return log_probs.reshape(targets.shape), entropies.reshape(targets.shape)
