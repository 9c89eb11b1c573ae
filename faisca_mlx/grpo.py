"""GRPO: the policy loss and its step (Shao et al. 2024; the formulas follow TRL's trainer).

With lp the log-probability of a token under the policy that is trained, old under the policy
that sampled it and ref under the frozen reference, all at the sampling temperature:
ratio = exp(lp - old), loss = -min(ratio · A, clip(ratio) · A) + β · k3, k3 = ρ - log ρ - 1 with
ρ = exp(ref - lp) (Schulman, "Approximating KL divergence", 2020). Only lp carries a gradient.
No dropout here: with it, the first pass would not have ratio 1.

Shapes: B completions, P predicted positions (the row's tokens after the first).
"""

from typing import assert_never

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from faisca.backend import Rollouts
from faisca.config import GRPOConfig
from faisca_mlx.device import to_device
from faisca_mlx.optimizer import Learner, Metrics, update
from faisca_mlx.score import shifted_log_probs
from faisca_mlx.sums import row_sums, total


def grpo_step(*, learner: Learner, rollouts: Rollouts[np.ndarray], config: GRPOConfig, learning_rate: float) -> Metrics:
    """One optimiser step on one minibatch; `policy_loss`'s watched numbers, `entropy`, and those of `train_step`."""
    # No dropout: the policy that learns must be the one that sampled.
    model = learner.model.eval()
    arrays = {name: mx.array(value) for name, value in vars(rollouts).items()}
    metrics: Metrics = learner.compiled(_step, config)(
        arrays, to_device(model, rollouts.places), mx.array(learning_rate)
    )
    mx.eval(model.state, learner.optimizer.state, metrics)
    return metrics


def policy_loss(
    log_probs_BP: mx.array, rollouts: Rollouts[mx.array], config: GRPOConfig
) -> tuple[mx.array, dict[str, mx.array]]:
    """The scalar loss, and what a trainer watches: `kl`, `ratio_mean`, `ratio_max`, `clip_{low,high}_share`.

    The mask is applied with `where` before every `exp`: a masked position may hold anything.
    """
    mask_BP, A = rollouts.mask, rollouts.advantages[:, None]
    kept = mask_BP > 0
    # How much likelier is each token now than when it was sampled?
    log_ratio = mx.where(kept, log_probs_BP - rollouts.old_log_probs, 0.0)
    if config.importance == "sequence":  # GSPO: Zheng et al. 2025, arXiv 2507.18071
        counts_B1 = mx.maximum(mask_BP.sum(axis=1, keepdims=True), 1)
        log_ratio = mx.broadcast_to(row_sums(log_ratio)[:, None] / counts_B1, mask_BP.shape)
    ratio = mx.exp(log_ratio)
    # Make better completions likelier, but not by more than the clip allows in one go.
    match config.objective:
        case "clip":
            clipped = mx.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
            losses = -mx.minimum(ratio * A, clipped * A)
        case "cispo":  # MiniMax 2025, arXiv 2506.13585
            weight = mx.stop_gradient(mx.minimum(ratio, config.cispo_cap))
            losses = -weight * A * mx.where(kept, log_probs_BP, 0.0)
        case other:
            assert_never(other)
    # Stay near the reference: k3 is 0 where both agree, and never negative.
    log_rho = mx.where(kept, rollouts.reference_log_probs - log_probs_BP, 0.0)
    k3 = mx.exp(log_rho) - log_rho - 1
    losses = mx.where(kept, losses + config.kl_weight * k3, 0.0)
    tokens = mx.maximum(mask_BP.sum(), 1)
    watched = {
        "kl": total(k3 * mask_BP) / tokens,
        "ratio_mean": total(ratio * mask_BP) / tokens,
        "ratio_max": mx.where(kept, ratio, 0.0).max(),
        "clip_low_share": (((ratio < 1 - config.clip_low) & (A < 0)) * mask_BP).sum() / tokens,
        "clip_high_share": (((ratio > 1 + config.clip_high) & (A > 0)) * mask_BP).sum() / tokens,
    }
    return average(losses, rollouts, config), tree_map(mx.stop_gradient, watched)


def average(losses_BP: mx.array, rollouts: Rollouts[mx.array], config: GRPOConfig) -> mx.array:
    """The mean that `config.loss` names: over completions, tokens, a constant length, or the step's tokens."""
    counts_B = rollouts.mask.sum(axis=1)
    match config.loss:
        case "grpo":
            return total(row_sums(losses_BP) / mx.maximum(counts_B, 1)) / len(losses_BP)
        case "bnpo":
            return total(losses_BP) / mx.maximum(counts_B.sum(), 1)
        case "dr_grpo":  # Liu et al. 2025, arXiv 2503.20783
            return total(losses_BP) / (len(losses_BP) * config.max_new_tokens)
        case "dapo":  # Yu et al. 2025, arXiv 2503.14476
            return total(losses_BP) / mx.maximum(rollouts.step_tokens, 1)
        case other:
            assert_never(other)


def _step(
    learner: Learner, config: GRPOConfig, arrays: dict[str, mx.array], places_N: mx.array, learning_rate: mx.array
) -> Metrics:
    """The whole step as one expression; `arrays` are those of Rollouts, for a compiled graph takes no dataclass."""
    rollouts = Rollouts(**arrays)

    def loss_of(tokens_BT: mx.array) -> tuple[mx.array, Metrics]:
        # What the policy thinks of the completions now, at the temperature that sampled them.
        log_probs_BP, entropies_BP = shifted_log_probs(learner.model, tokens_BT, places_N, config.temperature, True)
        loss, watched = policy_loss(log_probs_BP, rollouts, config)
        return loss, watched | {"entropy": total(entropies_BP * rollouts.mask) / mx.maximum(rollouts.mask.sum(), 1)}

    (loss, watched), gradients = nn.value_and_grad(learner.model, loss_of)(rollouts.tokens)
    return watched | update(learner=learner, loss=loss, learning_rate=learning_rate, gradients=gradients)
