"""GRPO: the policy loss and its step (Shao et al. 2024; the formulas follow TRL's trainer).

With lp the log-probability of a token under the policy that is trained, old under the policy
that sampled it and ref under the frozen reference, all at the sampling temperature:
ratio = exp(lp - old), loss = -min(ratio · A, clip(ratio) · A) + β · k3, k3 = ρ - log ρ - 1 with
ρ = exp(ref - lp) (Schulman, "Approximating KL divergence", 2020). Only lp carries a gradient.
No dropout here: with it, the first pass would not have ratio 1.

Shapes: B completions, P predicted positions (the row's tokens after the first).
"""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from faisca.backend import Rollouts
from faisca.config import GRPOConfig
from faisca_mlx.losses import _row_sums, _total
from faisca_mlx.train import Learner, Metrics, _compiled, _update, shifted_log_probs, to_device


def policy_loss(
    log_probs_BP: mx.array,
    old_BP: mx.array,
    reference_BP: mx.array,
    advantages_B: mx.array,
    mask_BP: mx.array,
    config: GRPOConfig,
    step_tokens: mx.array,
) -> tuple[mx.array, dict[str, mx.array]]:
    """The scalar loss, and what a trainer watches: `kl`, `ratio_mean`, `ratio_max`, `clip_{low,high}_share`.

    The mask is applied with `where` before every `exp`: a masked position may hold anything.
    """
    kept = mask_BP > 0
    counts_B1 = mx.maximum(mask_BP.sum(axis=1, keepdims=True), 1)
    log_ratio = mx.where(kept, log_probs_BP - old_BP, 0.0)
    if config.importance == "sequence":  # GSPO: Zheng et al. 2025, arXiv 2507.18071
        log_ratio = mx.broadcast_to(_row_sums(log_ratio)[:, None] / counts_B1, mask_BP.shape)
    ratio, A = mx.exp(log_ratio), advantages_B[:, None]
    if config.objective == "cispo":  # MiniMax 2025, arXiv 2506.13585
        weight = mx.stop_gradient(mx.minimum(ratio, config.cispo_cap))
        losses = -weight * A * mx.where(kept, log_probs_BP, 0.0)
    else:
        clipped = mx.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
        losses = -mx.minimum(ratio * A, clipped * A)
    log_rho = mx.where(kept, reference_BP - log_probs_BP, 0.0)
    k3 = mx.exp(log_rho) - log_rho - 1
    losses = mx.where(kept, losses + config.kl_weight * k3, 0.0)
    total = mx.maximum(mask_BP.sum(), 1)
    watched = {
        "kl": _total(k3 * mask_BP) / total,
        "ratio_mean": _total(ratio * mask_BP) / total,
        "ratio_max": mx.where(kept, ratio, 0.0).max(),
        "clip_low_share": (((ratio < 1 - config.clip_low) & (A < 0)) * mask_BP).sum() / total,
        "clip_high_share": (((ratio > 1 + config.clip_high) & (A > 0)) * mask_BP).sum() / total,
    }
    return average(losses, mask_BP, config, step_tokens), tree_map(mx.stop_gradient, watched)


def average(losses_BP: mx.array, mask_BP: mx.array, config: GRPOConfig, step_tokens: mx.array) -> mx.array:
    """The mean that `config.loss` names: over completions, tokens, a constant length, or the step's tokens."""
    if config.loss == "grpo":
        return _total(_row_sums(losses_BP) / mx.maximum(mask_BP.sum(axis=1), 1)) / len(losses_BP)
    if config.loss == "bnpo":
        return _total(losses_BP) / mx.maximum(mask_BP.sum(), 1)
    if config.loss == "dr_grpo":  # Liu et al. 2025, arXiv 2503.20783
        return _total(losses_BP) / (len(losses_BP) * config.max_new_tokens)
    return _total(losses_BP) / mx.maximum(step_tokens, 1)  # DAPO: Yu et al. 2025, arXiv 2503.14476


def grpo_step(*, learner: Learner, rollouts: Rollouts, config: GRPOConfig, learning_rate: float) -> Metrics:
    """One optimiser step on one minibatch; `policy_loss`'s watched numbers, `entropy`, and those of `train_step`."""
    model = learner.model.eval()
    if config not in learner.policy_steps:
        learner.policy_steps[config] = _compiled(learner, partial(_step, learner, config))
    tokens, places = to_device(model, rollouts.tokens), to_device(model, rollouts.places)
    others = (
        mx.array(value)
        for value in (
            rollouts.mask,
            rollouts.advantages,
            rollouts.old_log_probs,
            rollouts.reference_log_probs,
            rollouts.step_tokens,
            learning_rate,
        )
    )
    metrics = learner.policy_steps[config](tokens, places, *others)
    mx.eval(model.state, learner.optimizer.state, metrics)
    return metrics


def _step(
    learner: Learner,
    config: GRPOConfig,
    tokens_BT: mx.array,
    places_N: mx.array,
    mask_BP: mx.array,
    advantages_B: mx.array,
    old_BP: mx.array,
    reference_BP: mx.array,
    step_tokens: mx.array,
    learning_rate: mx.array,
) -> Metrics:
    def loss_of(tokens_BT: mx.array) -> tuple[mx.array, Metrics]:
        log_probs, entropies = shifted_log_probs(learner.model, tokens_BT, places_N, config.temperature)
        loss, watched = policy_loss(log_probs, old_BP, reference_BP, advantages_B, mask_BP, config, step_tokens)
        entropy = _total(entropies * mask_BP) / mx.maximum(mask_BP.sum(), 1)
        return loss, watched | {"entropy": entropy}

    (loss, watched), gradients = nn.value_and_grad(learner.model, loss_of)(tokens_BT)
    return watched | _update(learner=learner, loss=loss, gradients=gradients, learning_rate=learning_rate)
