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

import numpy as np
import torch
from torch import Tensor

from faisca.backend import Rollouts
from faisca.config import GRPOConfig
from faisca_torch.device import to_device
from faisca_torch.log_probs import shifted_log_probs
from faisca_torch.lora import adapter_drops
from faisca_torch.model import GPT
from faisca_torch.optimizer import Learner, Metrics, update


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
    losses, watched = [], []
    for i, (part, places_N) in enumerate(zip(parts, to_device(model, places_MN), strict=True)):
        here = _bring(model, part)
        with learner.averaging.micro_batch(last=i == len(parts) - 1):
            # What the policy thinks of the completions now, at the temperature that sampled them.
            log_probs, entropies = learner.averaging.forward(
                shifted_log_probs, model, here.tokens, places_N, config.temperature, 2 if config.entropy_weight else 1
            )
            loss, seen = policy_loss(log_probs, entropies, here, config)
            # Backward: gradients of the micro-batches add up in each parameter's `.grad`.
            loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        watched.append(seen)
    step = {name: torch.stack([seen[name] for seen in watched]) for name in watched[0]}
    numbers = {name: values.amax() if name.endswith("max") else values.sum() for name, values in step.items()}
    return update(learner=learner, numbers=numbers | {"loss": torch.stack(losses).sum()}, learning_rate=learning_rate)


def policy_loss(
    log_probs_BP: Tensor, entropies_BP: Tensor, rollouts: Rollouts[Tensor], config: GRPOConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of a micro-batch, and what a trainer watches: shares of the step, which add up, or a `_max`.

    Watched are `kl`, `ratio_mean`, `ratio_max`, `log_ratio_mean`, `log_ratio_max` (absolute), `clip_{low,high}_share`
    and `entropy`. The mask is applied with `where` before every `exp`: a masked position may hold anything.
    """
    mask_BP, A = rollouts.mask, rollouts.advantages.reshape(len(rollouts.mask), -1)  # one a completion, or one a token
    kept, zero = mask_BP > 0, torch.zeros((), device=mask_BP.device)
    counts_B1 = mask_BP.sum(1, keepdim=True).clamp(min=1)
    # How much likelier is each token now than when it was sampled?
    log_ratio = moved = torch.where(kept, log_probs_BP - rollouts.old_log_probs, zero)
    if config.importance == "sequence":  # GSPO: Zheng et al. 2025, arXiv 2507.18071
        log_ratio = (log_ratio.sum(1, keepdim=True) / counts_B1).expand_as(mask_BP)
    ratio = log_ratio.exp()
    # Make better completions likelier, but not by more than the clip allows in one go.
    match config.objective:
        case "clip":
            clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            capped = ratio.clamp(max=config.delta or math.inf)  # INTELLECT-2, arXiv 2505.07291
            losses = -torch.minimum(capped * A, clipped * A)
        case "cispo":  # MiniMax 2025, arXiv 2506.13585
            losses = -ratio.clamp(max=config.cispo_cap).detach() * A * torch.where(kept, log_probs_BP, zero)
        case "sapo":  # Gao et al. 2025, arXiv 2511.20347
            steep = torch.full_like(A, config.sapo_temperature_neg).masked_fill(A > 0, config.sapo_temperature_pos)
            losses = -A * torch.sigmoid(steep * (ratio - 1)) * 4 / steep
        case "gmpo":  # Zhao et al. 2025, arXiv 2507.20673
            held = torch.where(A > 0, log_ratio.clamp(max=config.clip_high), log_ratio.clamp(min=-config.clip_low))
            losses = -A * (held.sum(1, keepdim=True) / counts_B1).exp()
        case "reinforce":  # Williams 1992
            losses = -A * torch.where(kept, log_probs_BP, zero)
        case other:
            assert_never(other)
    # Stay near the reference: k3 is 0 where both agree, and never negative.
    log_rho = torch.where(kept, rollouts.reference_log_probs - log_probs_BP, zero)
    k3 = log_rho.exp() - log_rho - 1
    weighed = k3 * ratio if config.kl_bias_correction else k3  # DeepSeek-V3.2, arXiv 2512.02556
    losses = torch.where(kept, losses + config.kl_weight * weighed, zero)
    tokens = max(rollouts.step_tokens, 1.0)
    # Explore: an entropy bonus keeps the policy from writing one headline alone.
    entropy = torch.where(kept, entropies_BP, zero).sum() / tokens
    loss = average(losses, rollouts, config) - config.entropy_weight * entropy
    with torch.no_grad():
        watched = {
            "kl": (k3 * mask_BP).sum() / tokens,
            "ratio_mean": (ratio * mask_BP).sum() / tokens,
            "ratio_max": torch.where(kept, ratio, zero).max(),
            "log_ratio_mean": moved.abs().sum() / tokens,
            "log_ratio_max": moved.abs().max(),
            "clip_low_share": (((ratio < 1 - config.clip_low) & (A < 0)) * mask_BP).sum() / tokens,
            "clip_high_share": (((ratio > 1 + config.clip_high) & (A > 0)) * mask_BP).sum() / tokens,
            "entropy": entropy.detach(),
        }
    return loss, watched


def average(losses_BP: Tensor, rollouts: Rollouts[Tensor], config: GRPOConfig) -> Tensor:
    """The mean that `config.loss` names: over completions, tokens, a constant length, or the step's tokens.

    Those of a step's micro-batches add up to the step's; bnpo's is the mean of their means, as TRL has it of devices.
    """
    counts_B, rows = rollouts.mask.sum(1), rollouts.step_rows or len(losses_BP)
    match config.loss:
        case "grpo":
            return (losses_BP.sum(1) / counts_B.clamp(min=1)).sum() / rows
        case "bnpo":
            return losses_BP.sum() / counts_B.sum().clamp(min=1) * (len(losses_BP) / rows)
        case "dr_grpo":  # Liu et al. 2025, arXiv 2503.20783
            return losses_BP.sum() / (rows * config.max_new_tokens)
        case "dapo":  # Yu et al. 2025, arXiv 2503.14476
            return losses_BP.sum() / max(rollouts.step_tokens, 1.0)
        case other:
            assert_never(other)


def _bring(model: GPT, rollouts: Rollouts[np.ndarray]) -> Rollouts[Tensor]:
    """The rollouts on the model's device."""
    floats = (rollouts.mask, rollouts.advantages, rollouts.old_log_probs, rollouts.reference_log_probs)
    mask, advantages, old, reference = (torch.from_numpy(array).to(model.runtime.device) for array in floats)
    sizes = (rollouts.step_tokens, rollouts.step_rows)
    return Rollouts(to_device(model, rollouts.tokens), mask, advantages, old, reference, *sizes)
