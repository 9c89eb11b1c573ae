"""AdamW's steps and GRPO's loss in NumPy float64, from their papers: independent of both twins."""

import math
from collections.abc import Callable

import numpy as np

from faisca.config import GRPOConfig, OptimizerConfig

Array = np.ndarray


def adamw(
    weights: dict[str, Array],
    gradients: list[dict[str, Array]],
    config: OptimizerConfig,
    rate: float,
    decayed: Callable[[str, tuple[int, ...]], bool],
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Weights and both moments after a step on each of the gradients (Loshchilov & Hutter 2019, algorithm 2)."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    first, second = ({name: np.zeros_like(value) for name, value in weights.items()} for _ in range(2))
    for step, gradient in enumerate(gradients, start=1):
        norm = math.sqrt(sum(float((value**2).sum()) for value in gradient.values()))
        factor = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for name, value in weights.items():
            g = gradient[name] * factor
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            root = np.sqrt(second[name] / (1 - config.beta2**step)) + config.epsilon
            decay = config.weight_decay if decayed(name, value.shape) else 0.0
            weights[name] = value - rate * (first[name] / (1 - config.beta1**step) / root + decay * value)
    return weights, first, second


def policy_loss(
    log_probs: Array,
    old: Array,
    reference: Array,
    advantages: Array,
    mask: Array,
    config: GRPOConfig,
    step_tokens: float,
    weighing: Array | None = None,
) -> float:
    """GRPO's loss as docs/parity.md's sources state it; `weighing`: CISPO's weights are taken at these log-probs."""
    at = log_probs if weighing is None or config.objective == "clip" else weighing
    counts = np.maximum(mask.sum(1), 1)[:, None]
    log_ratio = np.where(mask > 0, at - old, 0.0)
    if config.importance == "sequence":
        log_ratio = np.broadcast_to(log_ratio.sum(1, keepdims=True) / counts, mask.shape)
    ratio, A = np.exp(log_ratio), advantages[:, None]
    if config.objective == "cispo":
        losses = -np.minimum(ratio, config.cispo_cap) * A * log_probs
    else:
        losses = -np.minimum(ratio * A, np.clip(ratio, 1 - config.clip_low, 1 + config.clip_high) * A)
    log_rho = np.where(mask > 0, reference - log_probs, 0.0)
    losses = np.where(mask > 0, losses + config.kl_weight * (np.exp(log_rho) - log_rho - 1), 0.0)
    if config.loss == "grpo":
        return float((losses.sum(1, keepdims=True) / counts).mean())
    divisors = {"bnpo": mask.sum(), "dr_grpo": len(mask) * config.max_new_tokens, "dapo": step_tokens}
    return float(losses.sum() / max(divisors[config.loss], 1))


def slope(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    """The gradient of a function by central differences."""
    out = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        bump = np.zeros_like(at)
        bump[index] = step
        out[index] = (function(at + bump) - function(at - bump)) / (2 * step)
    return out
