"""GRPO: the policy loss and its step (Shao et al. 2024; the formulas follow TRL's trainer).

With lp the log-probability of a token under the policy that is trained, old under the policy
that sampled it and ref under the frozen reference, all at the sampling temperature:
ratio = exp(lp - old), loss = -min(ratio · A, clip(ratio) · A) + β · k3, k3 = ρ - log ρ - 1 with
ρ = exp(ref - lp) (Schulman, "Approximating KL divergence", 2020). Only lp carries a gradient.
No dropout here: with it, the first pass would not have ratio 1.

Shapes: B completions, P predicted positions (the row's tokens after the first).
"""

from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from faisca.backend import Rollouts
from faisca.config import GRPOConfig
from faisca_torch.device import to_device
from faisca_torch.model import GPT
from faisca_torch.optimizer import Learner, Metrics, update
from faisca_torch.score import shifted_log_probs


def grpo_step(*, learner: Learner, rollouts: Rollouts[np.ndarray], config: GRPOConfig, learning_rate: float) -> Metrics:
    """One optimiser step on one minibatch; `policy_loss`'s watched numbers, `entropy`, and those of `train_step`."""
    # No dropout: the policy that learns must be the one that sampled.
    model = learner.model.eval()
    here = _bring(model, rollouts)
    # What the policy thinks of the completions now, at the temperature that sampled them.
    log_probs_BP, entropies_BP = shifted_log_probs(
        model, here.tokens, to_device(model, rollouts.places), config.temperature, True
    )
    loss, watched = policy_loss(log_probs_BP, here, config)
    loss.backward()  # type: ignore[no-untyped-call]
    entropy = (entropies_BP * here.mask).sum() / here.mask.sum().clamp(min=1)
    return watched | {"entropy": entropy} | update(learner=learner, loss=loss, learning_rate=learning_rate)


def policy_loss(
    log_probs_BP: Tensor, rollouts: Rollouts[Tensor], config: GRPOConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss, and what a trainer watches: `kl`, `ratio_mean`, `ratio_max`, `clip_{low,high}_share`.

    The mask is applied with `where` before every `exp`: a masked position may hold anything.
    """
    mask_BP, A = rollouts.mask, rollouts.advantages[:, None]
    kept, zero = mask_BP > 0, torch.zeros((), device=mask_BP.device)
    # How much likelier is each token now than when it was sampled?
    log_ratio = torch.where(kept, log_probs_BP - rollouts.old_log_probs, zero)
    if config.importance == "sequence":  # GSPO: Zheng et al. 2025, arXiv 2507.18071
        counts_B1 = mask_BP.sum(1, keepdim=True).clamp(min=1)
        log_ratio = (log_ratio.sum(1, keepdim=True) / counts_B1).expand_as(mask_BP)
    ratio = log_ratio.exp()
    # Make better completions likelier, but not by more than the clip allows in one go.
    match config.objective:
        case "clip":
            clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            losses = -torch.minimum(ratio * A, clipped * A)
        case "cispo":  # MiniMax 2025, arXiv 2506.13585
            losses = -ratio.clamp(max=config.cispo_cap).detach() * A * torch.where(kept, log_probs_BP, zero)
        case other:
            assert_never(other)
    # Stay near the reference: k3 is 0 where both agree, and never negative.
    log_rho = torch.where(kept, rollouts.reference_log_probs - log_probs_BP, zero)
    k3 = log_rho.exp() - log_rho - 1
    losses = torch.where(kept, losses + config.kl_weight * k3, zero)
    total = mask_BP.sum().clamp(min=1)
    with torch.no_grad():
        watched = {
            "kl": (k3 * mask_BP).sum() / total,
            "ratio_mean": (ratio * mask_BP).sum() / total,
            "ratio_max": torch.where(kept, ratio, zero).max(),
            "clip_low_share": (((ratio < 1 - config.clip_low) & (A < 0)) * mask_BP).sum() / total,
            "clip_high_share": (((ratio > 1 + config.clip_high) & (A > 0)) * mask_BP).sum() / total,
        }
    return average(losses, rollouts, config), watched


def average(losses_BP: Tensor, rollouts: Rollouts[Tensor], config: GRPOConfig) -> Tensor:
    """The mean that `config.loss` names: over completions, tokens, a constant length, or the step's tokens."""
    counts_B = rollouts.mask.sum(1)
    match config.loss:
        case "grpo":
            return (losses_BP.sum(1) / counts_B.clamp(min=1)).mean()
        case "bnpo":
            return losses_BP.sum() / counts_B.sum().clamp(min=1)
        case "dr_grpo":  # Liu et al. 2025, arXiv 2503.20783
            return losses_BP.sum() / (len(losses_BP) * config.max_new_tokens)
        case "dapo":  # Yu et al. 2025, arXiv 2503.14476
            return losses_BP.sum() / max(rollouts.step_tokens, 1.0)
        case other:
            assert_never(other)


def _bring(model: GPT, rollouts: Rollouts[np.ndarray]) -> Rollouts[Tensor]:
    """The rollouts on the model's device."""
    floats = (rollouts.mask, rollouts.advantages, rollouts.old_log_probs, rollouts.reference_log_probs)
    mask, advantages, old, reference = (torch.from_numpy(array).to(model.runtime.device) for array in floats)
    return Rollouts(to_device(model, rollouts.tokens), mask, advantages, old, reference, rollouts.step_tokens)
