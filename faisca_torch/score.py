"""The passes over a model that need no gradient: losses, logits, log-probabilities."""

import numpy as np
import torch
from torch import Tensor

from faisca.backend import check_temperature
from faisca_torch.device import to_device
from faisca_torch.losses import linear_log_probs, project, summed_loss
from faisca_torch.model import GPT


def evaluate(*, model: GPT, inputs: np.ndarray, targets: np.ndarray) -> float:
    """Summed negative log-likelihood (nats) of [B, T] targets; negative targets are left out."""
    model.eval()
    with torch.inference_mode():
        hidden_ND = model(to_device(model, inputs)).flatten(0, 1)
        return summed_loss(model, hidden_ND, to_device(model, targets), False).item()


def logits(*, model: GPT, tokens: np.ndarray) -> np.ndarray:
    """Token ids [B, T] -> logits, float32 [B, T, V]."""
    model.eval()
    with torch.inference_mode():
        hidden_ND = model(to_device(model, tokens)).flatten(0, 1)
        return project(hidden_ND, model.head).view(*tokens.shape, model.config.vocabulary_size).cpu().numpy()


def token_log_probs(*, model: GPT, tokens: np.ndarray, temperature: float, places: np.ndarray | None) -> np.ndarray:
    """Token ids [B, T] -> log-probability of each token after the first, float32 [B, T-1]; 0 outside `places`."""
    check_temperature(temperature)
    places = np.arange(tokens[:, 1:].size) if places is None else places
    if not places.size:
        return np.zeros(tokens[:, 1:].shape, np.float32)
    model.eval()
    with torch.inference_mode():
        log_probs, _ = shifted_log_probs(model, to_device(model, tokens), to_device(model, places), temperature, 0)
        return log_probs.cpu().numpy()


def shifted_log_probs(
    model: GPT, tokens_BT: Tensor, places_N: Tensor, temperature: float, with_gradients: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token after the first, and the entropy there: float32 [B, T-1] each; 0 elsewhere."""
    targets = tokens_BT[:, 1:]
    hidden_ND = model(tokens_BT[:, :-1]).flatten(0, 1).index_select(0, places_N)
    log_probs_N, entropies_N = linear_log_probs(
        hidden_ND, model.head, targets.flatten()[places_N], temperature, model.runtime.loss_chunk, with_gradients
    )
    zeros = log_probs_N.new_zeros(targets.numel())
    log_probs, entropies = (zeros.index_copy(0, places_N, found) for found in (log_probs_N, entropies_N))
    return log_probs.view(targets.shape), entropies.view(targets.shape)
