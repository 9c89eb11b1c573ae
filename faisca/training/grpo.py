"""GRPO: sample headlines, score them, compare each with its group, and make the better ones likelier.

Simplified from production trainers: rollouts and updates take turns on one device, and a reward
is a function of the completed text alone. What the original got wrong and this does otherwise:
rows stop at their first end-of-text and learn it, no dropout of the model, log-probabilities at the sampling
temperature, the completion alone is scored, right padding.
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from faisca.backend import Model, Rollouts
from faisca.config import adapter_of
from faisca.data.prompts import Task
from faisca.rewards.samples import Samples
from faisca.runs.checkpoint import Checkpoint
from faisca.runs.state import Progress
from faisca.streams import uniforms
from faisca.training.evaluate import count_completions, kl_divergence
from faisca.training.generate import complete_together, encode_prompt, rollout_sampling
from faisca.training.grpo_update import (
    advantages_of,
    correction_of,
    log_probs,
    rollout_mismatch,
    update_policy,
    with_log_probs,
)
from faisca.training.rollout_report import Laps, Round, Watch, measure_round
from faisca.training.run import Run
from faisca.training.schedule import learning_rate
from faisca.training.setup import Setup
from faisca.training.stage import Stage
from faisca.training.start import note_data

LENGTH_STEP = 16
"""padded lengths are multiples of this: few shapes, so few compiled traces"""


@dataclass(frozen=True)
class Completions:
    """What the policy wrote in one step, rows of a group side by side."""

    tasks: list[Task]
    prompts: list[list[int]]
    completions: list[list[int]]
    log_probs: np.ndarray | None = field(default=None, compare=False)
    """float32 [B, max_new_tokens], what the sampler had of each token; None where it was not asked"""


def reinforce(run: Run, progress: Progress, model: Model, checkpoint: Checkpoint | None) -> None:
    """GRPO towards `grpo.reward`, against a frozen copy of the model as it was when the stage began."""
    setup, config, backend = run.setup, run.config.grpo, run.setup.backend
    assert setup.reward is not None, "a run that trains has loaded its reward"
    # The reference is the model as the stage began, also where a checkpoint resumes it; of an adapter, its base.
    frozen = None
    if adapter_of(setup.model_config):
        reference = backend.base_of(model=model)
    else:
        frozen = checkpoint.reference if checkpoint is not None else backend.get_parameters(model=model)
        assert frozen is not None, "a checkpoint of GRPO has its reference"
        reference = setup.make_model(frozen, frozen=True)
    progress.total_steps = config.steps
    stage = Stage(run, progress, model, backend.make_learner(model=model, config=config), frozen)
    stage.begin(checkpoint)
    if config.top_k:
        run.log.say(f"grpo.top_k {config.top_k} biases the importance ratio: log-probabilities know no top-k")
    run.log.say(f"grpo.rollout_correction {config.rollout_correction}: {correction_of(setup)[1]}")
    note_data(progress, setup.tasks.sha256, run.log.say)
    watch = Watch(config.max_new_tokens, run.log, stage.step)
    with stage.under_way():
        while stage.step < config.steps:
            laps = Laps()
            # Roll out: the policy writes a group of completions for each prompt of the step.
            written = roll_out(setup, model, stage.step)
            answers = list(map(setup.tokenizer.decode, written.completions, written.prompts))
            laps.end("rollout")
            # Judge: a completion's advantage is its reward against those of its group.
            with stage.nothing_lost():
                scores = setup.score(Samples.of_tasks(written.tasks, answers, written.completions))
            advantages = advantages_of(scores.total, config)
            laps.end("scoring")
            # Remember what policy and reference think of the completions before any update changes the policy.
            packed = pack(setup, written, advantages)
            rollouts = with_log_probs(setup, packed, model, reference)
            # Learn: some passes over the completions, in minibatches.
            rate = learning_rate(config, stage.step, config.steps)
            updates = update_policy(setup, stage.learner, rollouts, stage.step, rate)
            laps.end("update")
            # Tell: what a trainer watches, and a warning where rewards teach nothing or what nobody wanted.
            made = Round.of(setup, written, answers, scores, advantages)
            measured = watch.look(stage.step + 1, made, measure_round(made, updates)) | laps.seconds
            measured |= rollout_mismatch(packed, rollouts, updates, drops=config.lora_dropout > 0)
            if config.save_completions:
                run.log.record_completions(made.rows(stage.step + 1))
            tokens = sum(len(ids) for ids in written.completions)
            failed = measured["updates"] == 0 and measured["skipped"] > 0
            stage.note_round(measured, tokens=tokens, failed=failed, learning_rate=rate)
            stage.checkpoint_or_stop()
    stage.finish(kl_after=partial(kl_to_reference, setup, model, reference))


def roll_out(setup: Setup, model: Model, step: int) -> Completions:
    """A group of completions for each of the step's prompts, which take turns."""
    config = setup.config.grpo
    # Prompts take turns over the steps, and each is repeated for its group.
    chosen = setup.tasks.chosen(step * config.prompts_per_step, config.prompts_per_step, setup.seed)
    encoded = [encode_prompt(setup.tokenizer, task.prompt, setup.model_config.context) for task in chosen]
    tasks = [task for task in chosen for _ in range(config.group_size)]
    prompts = [ids for ids in encoded for _ in range(config.group_size)]
    draws = uniforms(setup.seed, "grpo rollout", step=step, rows=len(prompts), columns=config.max_new_tokens)
    log_probs = np.zeros_like(draws)
    completions = complete_together(setup, model, prompts, rollout_sampling(config), draws, log_probs)
    return Completions(tasks, prompts, completions, log_probs)


def pack(setup: Setup, written: Completions, advantages: np.ndarray, *, whole: bool = False) -> Rollouts[np.ndarray]:
    """Rows as right-padded arrays; causal attention needs no padding mask. Old log-probabilities are the sampler's.

    The mask leaves out completions that never ended where `mask_truncated` asks for it, unless `whole`.
    """
    end_of_text, mask_truncated = setup.tokenizer.end_of_text, setup.config.grpo.mask_truncated and not whole
    # Padding is on the right, where no real token looks; what it holds does not matter, as the mask leaves it out.
    longest = max(len(p) + len(c) for p, c in zip(written.prompts, written.completions, strict=True))
    inputs = min(-(-(longest - 1) // LENGTH_STEP) * LENGTH_STEP, setup.model_config.context)
    tokens = np.full((len(written.prompts), inputs + 1), end_of_text, np.int32)
    mask, sampled, unknown = (np.zeros((len(written.prompts), inputs), np.float32) for _ in range(3))
    for row, (prompt, completion) in enumerate(zip(written.prompts, written.completions, strict=True)):
        end = len(prompt) + len(completion)
        tokens[row, :end] = prompt + completion
        # Position t predicts token t + 1, so the completion is counted from the last token of its prompt on.
        truncated = completion[-1] not in setup.tokenizer.ends
        mask[row, len(prompt) - 1 : end - 1] = not (truncated and mask_truncated)
        if written.log_probs is not None:
            sampled[row, len(prompt) - 1 : end - 1] = written.log_probs[row, : len(completion)]
    return Rollouts(tokens, mask, advantages.astype(np.float32), sampled, unknown, float(mask.sum()))


def kl_to_reference(setup: Setup, model: Model, reference: Model) -> float:
    """Masked mean k3 divergence (nats a token) of the final policy, over the completions that are counted."""
    prompts, completions = count_completions(setup, model)
    packed = pack(setup, Completions([], prompts, completions), np.zeros(len(prompts)), whole=True)
    return kl_divergence(log_probs(setup, model, packed), log_probs(setup, reference, packed), packed.mask)
