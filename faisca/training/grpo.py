"""GRPO: sample headlines, score them, compare each with its group, and make the better ones likelier.

Simplified from production trainers: rollouts and updates take turns on one device, and a reward
is a function of the completed text alone. What the original got wrong and this does otherwise:
rows stop at their first end-of-text and learn it, no dropout, log-probabilities at the sampling
temperature, the completion alone is scored, right padding.
"""

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from faisca.backend import Learner, Metrics, Model, Rollouts, Sampling
from faisca.config import GRPOConfig
from faisca.runs.checkpoint import Checkpoint
from faisca.runs.state import Progress
from faisca.streams import permutation
from faisca.training.evaluate import count_completions, kl_divergence
from faisca.training.generate import complete, encode_prompt, headline
from faisca.training.rewards import football, group_advantages, mean_and_deviation, score, share
from faisca.training.rollout_report import SignalWatch, best_and_worst, notes
from faisca.training.run import Run, due
from faisca.training.schedule import learning_rate
from faisca.training.stage import begin_stage, finish_stage
from faisca.training.step_log import count_bad_step, reason_to_stop

LENGTH_STEP = 16
"""padded lengths are multiples of this: few shapes, so few compiled traces"""


@dataclass(frozen=True)
class Rollout:
    """Completions of one step, rows of a group side by side."""

    texts: list[str]
    """prompts"""
    prompts: list[list[int]]
    completions: list[list[int]]


def reinforce(run: Run, progress: Progress, model: Model, checkpoint: Checkpoint | None) -> None:
    """GRPO towards `grpo.reward`, against a frozen copy of the model as it was when the stage began."""
    config, backend = run.config.grpo, run.backend
    frozen = checkpoint.reference if checkpoint is not None else backend.get_parameters(model=model)
    assert frozen is not None
    reference = backend.make_model(config=run.model_config, parameters=frozen, runtime=run.runtime)
    learner = backend.make_learner(model=model, config=config)
    progress.total_steps = config.steps
    begin_stage(run, progress, model, learner, checkpoint, reference=frozen)
    if config.top_k:
        run.log.say(f"grpo.top_k {config.top_k} biases the importance ratio: log-probabilities know no top-k")
    signal = SignalWatch(run.log.say)
    with run.log.track("grpo", config.steps, done=progress.step) as tracker:
        while progress.step < config.steps:
            began = time.perf_counter()
            rollout = roll_out(run, model, progress.step)
            answers = [run.tokenizer.decode(ids) for ids in rollout.completions]
            rewards = score(run.reward, config.reward, answers)
            advantages = group_advantages(rewards, config.group_size, config.scale_rewards)
            rollouts = pack(rollout, advantages, run.tokenizer.end_of_text, run.model_config.context, config)
            rollouts = with_log_probs(run, rollouts, model, reference)
            rate = learning_rate(config, progress.step, config.steps)
            updates = update_policy(run, learner, rollouts, progress.step, rate)
            progress.step += 1
            progress.seconds += time.perf_counter() - began
            progress.tokens += sum(len(ids) for ids in rollout.completions)
            measured = watch(run, rollout, answers, rewards, advantages, updates)
            signal.look(progress.step, rewards, advantages)
            run.log.record(stage="grpo", step=progress.step, learning_rate=rate, **measured)
            count_bad_step(run, progress, measured["updates"] == 0 and measured["skipped"] > 0)
            shown = {"reward": measured["reward_mean"], "kl": measured["kl"]}
            extremes = notes(measured["best"], measured["worst"])
            tracker.update(progress.step, extremes, **shown, tokens_per_second=progress.tokens / progress.seconds)
            reason = reason_to_stop(run, progress)
            if reason or due(progress.step, run.config.run.checkpoint_every):
                run.save(progress, model=model, learner=learner, finished=False, reference=frozen)
            if reason:
                raise reason
    kl = partial(kl_to_reference, run, model, reference)
    finish_stage(run, progress, model, learner, reference=frozen, kl_after=kl)


def roll_out(run: Run, model: Model, step: int) -> Rollout:
    """A group of completions for each of the step's prompts."""
    config = run.config.grpo
    first = step * config.prompts_per_step
    chosen = [config.prompts[(first + i) % len(config.prompts)] for i in range(config.prompts_per_step)]
    texts = [text for text in chosen for _ in range(config.group_size)]
    prompts = [encode_prompt(run.tokenizer, text, run.model_config.context) for text in texts]
    sampling = Sampling(config.temperature, config.top_k, 1.0, config.max_new_tokens)
    seed, end = run.config.run.seed, run.tokenizer.end_of_text
    rows = complete(run.backend, model, prompts, sampling, end, seed=seed, purpose="grpo rollout", step=step)
    return Rollout(texts, prompts, list(rows))


def pack(rollout: Rollout, advantages: np.ndarray, end_of_text: int, context: int, config: GRPOConfig) -> Rollouts:
    """Rows as right-padded arrays; causal attention needs no padding mask. The log-probabilities are still zero."""
    longest = max(len(p) + len(c) for p, c in zip(rollout.prompts, rollout.completions, strict=True))
    inputs = min(-(-(longest - 1) // LENGTH_STEP) * LENGTH_STEP, context)
    tokens = np.full((len(rollout.prompts), inputs + 1), end_of_text, np.int32)
    mask = np.zeros((len(rollout.prompts), inputs), np.float32)
    for row, (prompt, completion) in enumerate(zip(rollout.prompts, rollout.completions, strict=True)):
        end = len(prompt) + len(completion)
        tokens[row, :end] = prompt + completion
        truncated = completion[-1] != end_of_text
        mask[row, len(prompt) - 1 : end - 1] = not (truncated and config.mask_truncated)
    zeros = np.zeros_like(mask)
    return Rollouts(tokens, mask, advantages.astype(np.float32), zeros, zeros, float(mask.sum()))


def with_log_probs(run: Run, rollouts: Rollouts, model: Model, reference: Model) -> Rollouts:
    """The rollouts with the log-probabilities of the policy that sampled them, and of the reference."""
    rows = np.arange(len(rollouts.tokens)).reshape(-1, run.config.grpo.minibatch_size)
    parts = [select(rollouts, part) for part in rows]
    old, ref = (np.concatenate([log_probs(run, scorer, part) for part in parts]) for scorer in (model, reference))
    return dataclasses.replace(rollouts, old_log_probs=old, reference_log_probs=ref)


def log_probs(run: Run, scorer: Model, rollouts: Rollouts) -> np.ndarray:
    """What a model thinks of the completions: float32 [B, T-1], 0 where the mask is."""
    return run.backend.token_log_probs(
        model=scorer, tokens=rollouts.tokens, temperature=run.config.grpo.temperature, places=rollouts.places
    )


def update_policy(run: Run, learner: Learner, rollouts: Rollouts, step: int, rate: float) -> list[dict[str, float]]:
    """`grpo.epochs` passes over the rollouts in minibatches; a minibatch with nothing to learn from is left out."""
    config, left = run.config.grpo, has_left_reference(rollouts)
    metrics: list[Metrics] = []
    for epoch in range(config.epochs):
        turn = step * config.epochs + epoch
        order = permutation(run.config.run.seed, "order of grpo completions", len(rollouts.tokens), turn)
        for rows in order.reshape(-1, config.minibatch_size):
            part = select(rollouts, rows)
            if has_signal(part, config, left or bool(metrics)):  # the first update leaves the reference
                metrics.append(run.backend.grpo_step(learner=learner, rollouts=part, config=config, learning_rate=rate))
    return run.backend.read_metrics(metrics=metrics)


def has_signal(rollouts: Rollouts, config: GRPOConfig, left_reference: bool) -> bool:
    """Whether there is a gradient: an advantage under the mask, or with a KL weight a policy away from its reference.

    Else it is 0 or rounding noise, and Adam would take full steps at the noise, and its momentum at 0.
    """
    counted = rollouts.mask.any(axis=1)
    return bool(rollouts.advantages[counted].any() or (config.kl_weight and left_reference and counted.any()))


def has_left_reference(rollouts: Rollouts) -> bool:
    """Whether the policy that sampled differs from the reference in any token that counts."""
    return bool(((rollouts.old_log_probs != rollouts.reference_log_probs) & (rollouts.mask > 0)).any())


def select(rollouts: Rollouts, rows: np.ndarray) -> Rollouts:
    """Some rows of the rollouts."""
    arrays = {f.name: getattr(rollouts, f.name)[rows] for f in dataclasses.fields(rollouts) if f.name != "step_tokens"}
    return Rollouts(**arrays, step_tokens=float(arrays["mask"].sum()))


def watch(
    run: Run,
    rollout: Rollout,
    answers: list[str],
    rewards: np.ndarray,
    advantages: np.ndarray,
    updates: list[dict[str, float]],
) -> dict[str, Any]:
    """What a trainer logs of a step, so that reward hacking, collapse and length bias can be seen."""
    lengths = np.array([len(ids) for ids in rollout.completions])
    ended = [ids[-1] == run.tokenizer.end_of_text for ids in rollout.completions]
    groups = rewards.reshape(-1, run.config.grpo.group_size)
    mean, deviation = mean_and_deviation(rewards)
    rows = zip(rollout.texts, rollout.completions, strict=True)
    texts = [headline(run.tokenizer, prompt, completion) for prompt, completion in rows]
    extremes = best_and_worst(texts, rewards, advantages)
    watched = {name: float(np.mean([update[name] for update in updates])) for name in (updates or [{}])[0]}
    return watched | {
        "updates": len(updates) - sum(update["skipped"] for update in updates),
        "skipped": sum(update["skipped"] for update in updates),
        "ratio_max": max((update["ratio_max"] for update in updates), default=None),
        "kl": watched.get("kl"),
        "reward_mean": mean,
        "reward_std": deviation,
        "equal_groups_share": float(np.mean([len(set(group)) == 1 for group in groups.tolist()])),
        "football_share": share(football(answers)),
        "distinct_share": len(set(answers)) / len(answers),
        "completion_length_mean": float(lengths.mean()),
        "completion_length_min": int(lengths.min()),
        "completion_length_max": int(lengths.max()),
        "truncated_share": 1 - share(ended),
        "sample": extremes["best"]["text"],
        **extremes,
    }


def kl_to_reference(run: Run, model: Model, reference: Model) -> float:
    """Masked mean k3 divergence (nats a token) of the final policy, over the completions that are counted."""
    prompts, completions = count_completions(run.bench, model)
    rollout = Rollout([], prompts, completions)
    config = dataclasses.replace(run.config.grpo, mask_truncated=False)  # a measure leaves no token out
    packed = pack(rollout, np.zeros(len(prompts)), run.tokenizer.end_of_text, run.model_config.context, config)
    return kl_divergence(log_probs(run, model, packed), log_probs(run, reference, packed), packed.mask)
