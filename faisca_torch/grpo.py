"""GRPO: the policy loss and its step (Shao et al. 2024; the formulas follow TRL's trainer).

With lp the log-probability of a token under the policy that is trained, old under the policy
that sampled it and ref under the frozen reference, all at the sampling temperature:
ratio = exp(lp - old), loss = -min(ratio · A, clip(ratio) · A) + β · k3, k3 = ρ - log ρ - 1 with
ρ = exp(ref - lp) (Schulman, "Approximating KL divergence", 2020). Only lp carries a gradient.
No dropout here: with it, the first pass would not have ratio 1.

Shapes: B completions, P predicted positions (the row's tokens after the first).
"""

import torch
from torch import Tensor

from faisca.backend import Rollouts
from faisca.config import GRPOConfig
from faisca_torch.train import Learner, Metrics, _update, shifted_log_probs, to_device


def policy_loss(
    log_probs_BP: Tensor,
    old_BP: Tensor,
    reference_BP: Tensor,
    advantages_B: Tensor,
    mask_BP: Tensor,
    config: GRPOConfig,
    step_tokens: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss, and what a trainer watches: `kl`, `ratio_mean`, `ratio_max`, `clip_{low,high}_share`.

    The mask is applied with `where` before every `exp`: a masked position may hold anything.
    """
    kept, zero = mask_BP > 0, torch.zeros((), device=mask_BP.device)
    counts_B1 = mask_BP.sum(1, keepdim=True).clamp(min=1)
    log_ratio = torch.where(kept, log_probs_BP - old_BP, zero)
    if config.importance == "sequence":  # GSPO: Zheng et al. 2025, arXiv 2507.18071
        log_ratio = (log_ratio.sum(1, keepdim=True) / counts_B1).expand_as(mask_BP)
    ratio, A = log_ratio.exp(), advantages_B[:, None]
    if config.objective == "cispo":  # MiniMax 2025, arXiv 2506.13585
        losses = -ratio.clamp(max=config.cispo_cap).detach() * A * torch.where(kept, log_probs_BP, zero)
    else:
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        losses = -torch.minimum(ratio * A, clipped * A)
    log_rho = torch.where(kept, reference_BP - log_probs_BP, zero)
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
    return average(losses, mask_BP, config, step_tokens), watched


def average(losses_BP: Tensor, mask_BP: Tensor, config: GRPOConfig, step_tokens: float) -> Tensor:
    """The mean that `config.loss` names: over completions, tokens, a constant length, or the step's tokens."""
    if config.loss == "grpo":
        return (losses_BP.sum(1) / mask_BP.sum(1).clamp(min=1)).mean()
    if config.loss == "bnpo":
        return losses_BP.sum() / mask_BP.sum().clamp(min=1)
    if config.loss == "dr_grpo":  # Liu et al. 2025, arXiv 2503.20783
        return losses_BP.sum() / (len(losses_BP) * config.max_new_tokens)
    return losses_BP.sum() / max(step_tokens, 1.0)  # DAPO: Yu et al. 2025, arXiv 2503.14476


def grpo_step(*, learner: Learner, rollouts: Rollouts, config: GRPOConfig, learning_rate: float) -> Metrics:
    """One optimiser step on one minibatch; `policy_loss`'s watched numbers, `entropy`, and those of `train_step`."""
    model = learner.model.eval()
    mask, old, reference, advantages = (
        torch.from_numpy(array).to(model.runtime.device)
        for array in (rollouts.mask, rollouts.old_log_probs, rollouts.reference_log_probs, rollouts.advantages)
    )
    tokens, places = to_device(model, rollouts.tokens), to_device(model, rollouts.places)
    log_probs, entropies = shifted_log_probs(model, tokens, places, config.temperature)
    loss, watched = policy_loss(log_probs, old, reference, advantages, mask, config, rollouts.step_tokens)
    loss.backward()  # type: ignore[no-untyped-call]
    entropy = (entropies * mask).sum() / mask.sum().clamp(min=1)
    return watched | {"entropy": entropy} | _update(learner=learner, loss=loss, learning_rate=learning_rate)
