"""The passes over a model that need no gradient: losses, logits."""

import numpy as np

from faisca_mlx.device import to_device
from faisca_mlx.losses import project, summed_loss
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
