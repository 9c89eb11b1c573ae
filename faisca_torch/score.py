"""The passes over a model that need no gradient: losses, logits."""

import numpy as np
import torch

from faisca_torch.device import to_device
from faisca_torch.losses import project, summed_loss
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
