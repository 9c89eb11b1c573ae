"""GRPO's update: advantages, what policy and reference think of the completions, and passes over them in minibatches.

A completion's tokens were drawn by a sampler with a cache, and are learnt by a trainer that reads whole rows. In
float32 both find the same log-probabilities but for rounding, so the sampler's are the old ones and a pass over the
model is spared. In bfloat16 they differ, and the loss is corrected for it.
"""

import dataclasses

import numpy as np

from faisca.backend import Learner, Metrics, Model, Rollouts
from faisca.config import GRPOConfig
from faisca.group import Processes
from faisca.rewards.advantages import group_advantages
from faisca.streams import integer_seed, permutation
from faisca.training.setup import Setup

ROUNDING = 1e-4
"""nats by which two passes over the same weights may differ in a token"""


def advantages_of(rewards: np.ndarray, config: GRPOConfig) -> np.ndarray:
    """How much better each completion is than what `grpo.baseline` names: float64 [B], rows of a group side by side."""
    if config.baseline == "none":
        return np.asarray(np.nan_to_num(rewards))
    advantages = group_advantages(rewards, config.group_size, config.scale_rewards)
    if config.baseline == "group":
        return advantages
    # Leave one out (RLOO: Ahmadian et al. 2024, arXiv 2402.14740): r - mean of the other n - 1 is n / (n - 1) times
    # r - mean of all n.
    n = np.repeat((~np.isnan(rewards)).reshape(-1, config.group_size).sum(1), config.group_size)
    return np.asarray(advantages * n / np.maximum(n - 1, 1))


def correction_of(setup: Setup) -> tuple[str, str]:
    """What `grpo.rollout_correction` is here, off, token or sequence, and in words why."""
    chosen, dtype = setup.config.grpo.rollout_correction, setup.runtime.dtype
    if chosen == "auto":
        chosen = "token" if dtype == "bfloat16" else "off"
    if chosen != "off":
        return chosen, f"{chosen}: sampler and trainer round differently in {dtype}, so completions are weighed"
    spared = "the sampler's log-probabilities are the trainer's but for rounding, which spares a pass"
    return chosen, f"off: in {dtype} {spared}" if dtype == "float32" else "off: nothing weighs what the sampler rounds"


def with_log_probs(
    setup: Setup, rollouts: Rollouts[np.ndarray], model: Model, reference: Model
) -> Rollouts[np.ndarray]:
    """The rollouts with the log-probabilities of the policy that sampled them, and of the reference.

    Old ones that the sampler noted stay where they are the trainer's; else they weigh the advantages.
    """
    config, sampled = setup.config.grpo, rollouts.old_log_probs
    ref = log_probs_of_all(setup, reference, rollouts)
    rollouts, (correction, _) = dataclasses.replace(rollouts, reference_log_probs=ref), correction_of(setup)
    if sampled.any() and correction == "off" and setup.runtime.dtype == "float32":
        return rollouts
    old = log_probs_of_all(setup, model, rollouts)
    rollouts = dataclasses.replace(rollouts, old_log_probs=old)
    return rollouts if correction == "off" or not sampled.any() else corrected(rollouts, sampled, correction, config)


def corrected(
    rollouts: Rollouts[np.ndarray], sampled: np.ndarray, correction: str, config: GRPOConfig
) -> Rollouts[np.ndarray]:
    """Advantages times the truncated importance weight min(exp(old - sampled), cap), of a token or of the sequence.

    As TRL's `vllm_importance_sampling_correction` (token_truncate, sequence_truncate); Yao et al. 2025.
    """
    gaps = np.where(rollouts.mask > 0, rollouts.old_log_probs - sampled, 0)
    if correction == "sequence":
        gaps = gaps.sum(1, keepdims=True)
    weights = np.minimum(np.exp(gaps), config.rollout_correction_cap)
    return dataclasses.replace(rollouts, advantages=rollouts.advantages[:, None] * weights)


def rollout_mismatch(
    sampled: Rollouts[np.ndarray], rollouts: Rollouts[np.ndarray], updates: list[dict[str, float]], drops: bool = False
) -> dict[str, float | None]:
    """By how many nats a token the sampler's log-probabilities differ from the trainer's: mean and max.

    Where the sampler's are the old ones, the first update compares its minibatch before it changes a weight; not if
    its adapter `drops`: then they differ by that, and None says so.
    """
    if rollouts.old_log_probs is sampled.old_log_probs:
        first = updates[0] if updates and not drops else {}
        return {f"rollout_mismatch_{name}": first.get(f"log_ratio_{name}") for name in ("mean", "max")}
    gaps = np.abs(rollouts.old_log_probs - sampled.old_log_probs)[rollouts.mask > 0]
    mean, largest = (float(gaps.mean()), float(gaps.max())) if gaps.size else (None, None)
    return {"rollout_mismatch_mean": mean, "rollout_mismatch_max": largest}


def log_probs_of_all(setup: Setup, scorer: Model, rollouts: Rollouts[np.ndarray]) -> np.ndarray:
    """As `log_probs`, of neighbouring rows by each process; all of them get all rows."""
    config, processes = setup.config.grpo, setup.processes
    mine = select_rows(rollouts, processes.part(len(rollouts.tokens)))
    # In micro-batches, as in the updates: memory stays bounded.
    parts, _ = mine.micro_batches(config.micro_batch_size or config.minibatch_size)
    found = np.concatenate([log_probs(setup, scorer, part) for part in parts])
    return np.concatenate(processes.gather(found))


def log_probs(setup: Setup, scorer: Model, rollouts: Rollouts[np.ndarray]) -> np.ndarray:
    """What a model thinks of the completions: float32 [B, T-1]; what the mask leaves out does not count."""
    return setup.backend.token_log_probs(
        model=scorer, tokens=rollouts.tokens, temperature=setup.config.grpo.temperature, places=rollouts.places
    )


def update_policy(
    setup: Setup, learner: Learner, rollouts: Rollouts[np.ndarray], step: int, rate: float
) -> list[dict[str, float]]:
    """`grpo.epochs` passes over the rollouts in minibatches; a minibatch with nothing to learn from is left out."""
    backend, config, left = setup.backend, setup.config.grpo, has_left_reference(rollouts)
    metrics: list[Metrics] = []
    for epoch in range(config.epochs):
        # Another order in every pass, from the seed alone.
        turn = step * config.epochs + epoch
        order = permutation(setup.seed, "order of grpo completions", len(rollouts.tokens), turn)
        for number, rows in enumerate(order.reshape(-1, config.minibatch_size)):
            part = select_rows(rollouts, rows)
            if has_signal(part, config, left or bool(metrics)):  # the first update leaves the reference
                purpose = setup.processes.purpose(f"dropout in grpo, epoch {epoch}, minibatch {number}")
                made = backend.grpo_step(
                    learner=learner,
                    rollouts=share_of(part, setup.processes),
                    config=config,
                    learning_rate=rate,
                    dropout_seed=integer_seed(setup.seed, purpose, step),
                )
                metrics.append(made)
    return backend.read_metrics(metrics=metrics)


def share_of(rollouts: Rollouts[np.ndarray], processes: Processes) -> Rollouts[np.ndarray]:
    """A process's rows of a minibatch, and its share of the tokens that losses are means over."""
    mine = select_rows(rollouts, processes.part(len(rollouts.tokens)))
    return dataclasses.replace(mine, step_tokens=rollouts.step_tokens / processes.size)


def has_signal(rollouts: Rollouts[np.ndarray], config: GRPOConfig, left_reference: bool) -> bool:
    """Whether there is a gradient: an advantage under the mask, an entropy bonus, or a policy away from its reference.

    Without either, the gradient is 0 or rounding noise. Adam divides by its size: it would take full steps along the
    noise, and at 0 go on with its momentum.
    """
    counted = rollouts.mask.any(axis=1)
    pulled = config.entropy_weight or (config.kl_weight and left_reference)
    return bool(rollouts.advantages[counted].any() or (pulled and counted.any()))


def has_left_reference(rollouts: Rollouts[np.ndarray]) -> bool:
    """Whether the policy that sampled differs from the reference, by more than rounding, in any token that counts."""
    gaps = np.abs(rollouts.old_log_probs - rollouts.reference_log_probs)
    return bool(((gaps > ROUNDING) & (rollouts.mask > 0)).any())


def select_rows(rollouts: Rollouts[np.ndarray], rows: np.ndarray | slice) -> Rollouts[np.ndarray]:
    """Some rows of the rollouts."""
    arrays = {name: value[rows] for name, value in vars(rollouts).items() if not name.startswith("step_")}
    return Rollouts(**arrays, step_tokens=float(arrays["mask"].sum()))
