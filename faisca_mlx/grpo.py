"""GRPO: the policy loss and its step (Shao et al. 2024; the formulas follow TRL's trainer).

With lp the log-probability of a token under the policy that is trained, old under the policy
that sampled it and ref under the frozen reference, all at the sampling temperature:
ratio = exp(lp - old), loss = -min(ratio · A, clip(ratio) · A) + β · k3, k3 = ρ - log ρ - 1 with
ρ = exp(ref - lp) (Schulman, "Approximating KL divergence", 2020). Only lp carries a gradient.
The model drops nothing here: with that, the first pass would not have ratio 1. docs/grpo.md has all formulas.

Shapes: B completions, P predicted positions (the row's tokens after the first); M micro-batches.
"""

import math
from typing import assert_never

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from faisca.backend import Rollouts
from faisca.config import GRPOConfig
from faisca_mlx.device import to_device
from faisca_mlx.log_probs import shifted_log_probs
from faisca_mlx.lora import adapter_drops
from faisca_mlx.optimizer import Learner, Metrics, update
from faisca_mlx.sums import row_sums, total


def grpo_step(
    *,
    learner: Learner,
    rollouts: Rollouts[np.ndarray],
    config: GRPOConfig,
    learning_rate: float,
    dropout_seed: int,
) -> Metrics:
    """One optimiser step on one minibatch; `policy_loss`'s watched numbers, and those of `train_step`."""
    # The model drops nothing: the policy that learns must be the one that sampled. Its adapter may, where so asked.
    model = adapter_drops(learner.model, dropout_seed)
    parts, places_MN = rollouts.micro_batches(config.micro_batch_size)
    arrays = [{name: mx.array(value) for name, value in vars(part).items() if name != "step_rows"} for part in parts]
    metrics: Metrics = learner.compiled(_step, config)(arrays, to_device(model, places_MN), mx.array(learning_rate))
    mx.eval(model.state, learner.optimizer.state, metrics)
    return metrics


def policy_loss(
    log_probs_BP: mx.array, entropies_BP: mx.array, rollouts: Rollouts[mx.array], config: GRPOConfig
) -> tuple[mx.array, dict[str, mx.array]]:
    """The scalar loss of a micro-batch, and what a trainer watches: shares of the step, which add up, or a `_max`.

    Watched are `kl`, `ratio_mean`, `ratio_max`, `log_ratio_mean`, `log_ratio_max` (absolute), `clip_{low,high}_share`
    and `entropy`. The mask is applied with `where` before every `exp`: a masked position may hold anything.
    """
    mask_BP, A = rollouts.mask, rollouts.advantages.reshape(len(rollouts.mask), -1)  # one a completion, or one a token
    kept, counts_B1 = mask_BP > 0, mx.maximum(mask_BP.sum(axis=1, keepdims=True), 1)
    # How much likelier is each token now than when it was sampled?
    log_ratio = moved = mx.where(kept, log_probs_BP - rollouts.old_log_probs, 0.0)
    if config.importance == "sequence":  # GSPO: Zheng et al. 2025, arXiv 2507.18071
        log_ratio = mx.broadcast_to(row_sums(log_ratio)[:, None] / counts_B1, mask_BP.shape)
    ratio = mx.exp(log_ratio)
    # Make better completions likelier, but not by more than the clip allows in one go.
    match config.objective:
        case "clip":
            clipped = mx.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
            capped = mx.minimum(ratio, config.delta or math.inf)  # INTELLECT-2, arXiv 2505.07291
            losses = -mx.minimum(capped * A, clipped * A)
        case "cispo":  # MiniMax 2025, arXiv 2506.13585
            weight = mx.stop_gradient(mx.minimum(ratio, config.cispo_cap))
            losses = -weight * A * mx.where(kept, log_probs_BP, 0.0)
        case "sapo":  # Gao et al. 2025, arXiv 2511.20347
            steep = mx.where(A > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
            losses = -A * mx.sigmoid(steep * (ratio - 1)) * 4 / steep
        case "gmpo":  # Zhao et al. 2025, arXiv 2507.20673
            held = mx.where(A > 0, mx.minimum(log_ratio, config.clip_high), mx.maximum(log_ratio, -config.clip_low))
            losses = -A * mx.exp(row_sums(held)[:, None] / counts_B1)
        case "reinforce":  # Williams 1992
            losses = -A * mx.where(kept, log_probs_BP, 0.0)
        case other:
            assert_never(other)
    # Stay near the reference: k3 is 0 where both agree, and never negative.
    log_rho = mx.where(kept, rollouts.reference_log_probs - log_probs_BP, 0.0)
    k3 = mx.exp(log_rho) - log_rho - 1
    weighed = k3 * ratio if config.kl_bias_correction else k3  # DeepSeek-V3.2, arXiv 2512.02556
    losses = mx.where(kept, losses + config.kl_weight * weighed, 0.0)
    tokens = mx.maximum(rollouts.step_tokens, 1)
    # Explore: an entropy bonus keeps the policy from writing one headline alone.
    entropy = total(mx.where(kept, entropies_BP, 0.0)) / tokens
    loss = average(losses, rollouts, config) - config.entropy_weight * entropy
    watched = {
        "kl": total(k3 * mask_BP) / tokens,
        "ratio_mean": total(ratio * mask_BP) / tokens,
        "ratio_max": mx.where(kept, ratio, 0.0).max(),
        "log_ratio_mean": total(mx.abs(moved)) / tokens,
        "log_ratio_max": mx.abs(moved).max(),
        "clip_low_share": (((ratio < 1 - config.clip_low) & (A < 0)) * mask_BP).sum() / tokens,
        "clip_high_share": (((ratio > 1 + config.clip_high) & (A > 0)) * mask_BP).sum() / tokens,
        "entropy": entropy,
    }
    return loss, tree_map(mx.stop_gradient, watched)


def average(losses_BP: mx.array, rollouts: Rollouts[mx.array], config: GRPOConfig) -> mx.array:
    """The mean that `config.loss` names: over completions, tokens, a constant length, or the step's tokens.

    Those of a step's micro-batches add up to the step's; bnpo's is the mean of their means, as TRL has it of devices.
    """
    counts_B, rows = rollouts.mask.sum(axis=1), rollouts.step_rows or len(losses_BP)
    match config.loss:
        case "grpo":
            return total(row_sums(losses_BP) / mx.maximum(counts_B, 1)) / rows
        case "bnpo":
            return total(losses_BP) / mx.maximum(counts_B.sum(), 1) * (len(losses_BP) / rows)
        case "dr_grpo":  # Liu et al. 2025, arXiv 2503.20783
            return total(losses_BP) / (rows * config.max_new_tokens)
        case "dapo":  # Yu et al. 2025, arXiv 2503.14476
            return total(losses_BP) / mx.maximum(rollouts.step_tokens, 1)
        case other:
            assert_never(other)


def _step(
    learner: Learner, config: GRPOConfig, arrays: list[dict[str, mx.array]], places_MN: mx.array, rate: mx.array
) -> Metrics:
    """The whole step as one expression; `arrays` are those of Rollouts, for a compiled graph takes no dataclass."""
    rows = sum(len(part["mask"]) for part in arrays)

    def loss_of(tokens_BT: mx.array, part: dict[str, mx.array], places_N: mx.array) -> tuple[mx.array, Metrics]:
        # What the policy thinks of the completions now, at the temperature that sampled them.
        scored = shifted_log_probs(
            learner.model, tokens_BT, places_N, config.temperature, 2 if config.entropy_weight else 1
        )
        return policy_loss(*scored, Rollouts(**part, step_rows=rows), config)

    loss_and_grad = nn.value_and_grad(learner.model, loss_of)
    losses: list[mx.array] = []
    watched: list[Metrics] = []
    gradients = None
    for part, places_N in zip(arrays, places_MN, strict=True):
        tokens = part["tokens"]
        if gradients is not None:  # else all micro-batches would be computed at once
            tokens = mx.depends([tokens], [losses[-1], *(value for _, value in tree_flatten(gradients))])[0]
        (loss, seen), more = loss_and_grad(tokens, part, places_N)
        gradients = more if gradients is None else tree_map(mx.add, gradients, more)
        losses.append(loss)
        watched.append(seen)
    step = {name: mx.stack([seen[name] for seen in watched]) for name in watched[0]}
    numbers = {name: values.max() if name.endswith("max") else values.sum() for name, values in step.items()}
    numbers["loss"] = mx.stack(losses).sum()
    return update(learner=learner, numbers=numbers, learning_rate=rate, gradients=gradients)
