"""Steps of AdamW and Muon, and GRPO's loss in NumPy float64, from their papers: independent of both twins."""

import math
from collections.abc import Callable

import numpy as np

from faisca.config import GRPOConfig, ModelConfig, OptimizerConfig

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


def muon(
    weights: dict[str, Array],
    gradients: list[dict[str, Array]],
    config: OptimizerConfig,
    rate: float,
    model: ModelConfig,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The blocks' matrices and their moments after a step on each of the gradients, by singular values.

    Jordan et al. 2024, with the length of Liu et al. 2025; the other weights' gradients count for the clipping alone.
    """
    matrices = {n: v.astype(np.float64) for n, v in weights.items() if n.startswith("transformer") and v.ndim > 1}
    matrices = {n: v for n, v in matrices.items() if "router" not in n}
    first = {name: np.zeros_like(value) for name, value in matrices.items()}
    for gradient in gradients:
        norm = math.sqrt(sum(float((value**2).sum()) for value in gradient.values()))
        factor = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for name, value in matrices.items():
            g, momentum = gradient[name] * factor, config.muon_momentum
            first[name] = momentum * first[name] + (1 - momentum) * g
            ahead = momentum * first[name] + (1 - momentum) * g
            heads = np.cumsum([model.num_heads, model.kv_heads]) * model.head_width if "in_proj" in name else []
            parts = np.split(ahead, heads, axis=-2)
            step = np.concatenate([0.2 * max(p.shape[-2:]) ** 0.5 * orthogonal(p) for p in parts], axis=-2)
            matrices[name] = value - rate * step - rate * config.weight_decay * value
    return matrices, first


def orthogonal(matrix: Array) -> Array:
    """Singular values over their root sum of squares, five times through Jordan's polynomial: [..., rows, columns]."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / (np.sqrt((values**2).sum(-1, keepdims=True)) + 1e-7)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left * values[..., None, :] @ right


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
    """GRPO's loss as docs/grpo.md's sources state it; `weighing`: CISPO's weights are taken at these log-probs.

    `advantages` are [B], or [B, T] where a correction weighs each token.
    """
    counts, A = np.maximum(mask.sum(1), 1)[:, None], advantages.reshape(len(mask), -1)

    def ratio_at(at: Array) -> tuple[Array, Array]:
        log_ratio = np.where(mask > 0, at - old, 0.0)
        if config.importance == "sequence":
            log_ratio = np.broadcast_to(log_ratio.sum(1, keepdims=True) / counts, mask.shape)
        return log_ratio, np.exp(log_ratio)

    log_ratio, ratio = ratio_at(log_probs)
    if config.objective == "cispo":
        weight = np.minimum(ratio_at(log_probs if weighing is None else weighing)[1], config.cispo_cap)
        losses = -weight * A * log_probs
    elif config.objective == "sapo":
        steep = np.where(A > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
        losses = -A * 4 / steep / (1 + np.exp(-steep * (ratio - 1)))
    elif config.objective == "gmpo":
        sign = np.where(A > 0, 1.0, -1.0)  # as the paper's algorithm 1: clipped on the side that would be gained
        limit = np.where(A > 0, config.clip_high, config.clip_low)
        held = sign * np.minimum(sign * log_ratio, limit)
        losses = -A * np.exp(held.sum(1, keepdims=True) / counts)
    elif config.objective == "reinforce":
        losses = -A * log_probs
    else:
        capped = np.minimum(ratio, config.delta) if config.delta else ratio
        losses = -np.minimum(capped * A, np.clip(ratio, 1 - config.clip_low, 1 + config.clip_high) * A)
    log_rho = np.where(mask > 0, reference - log_probs, 0.0)
    k3 = (np.exp(log_rho) - log_rho - 1) * (ratio if config.kl_bias_correction else 1.0)
    losses = np.where(mask > 0, losses + config.kl_weight * k3, 0.0)
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
