"""GRPO: sample headlines, score them, compare each with its group, and make the better ones likelier.

Simplified from production trainers: rollouts and updates take turns on one device, and a reward
is a function of the completed text alone. What the original got wrong and this does otherwise:
rows stop at their first end-of-text and learn it, no dropout, log-probabilities at the sampling
temperature, the completion alone is scored, right padding.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np

from faisca.backend import Learner, Metrics, Model, Rollouts
from faisca.config import GRPOConfig
from faisca.data.prompts import Task
from faisca.rewards.advantages import group_advantages
from faisca.rewards.samples import Samples
from faisca.runs.checkpoint import Checkpoint
from faisca.runs.state import Progress
from faisca.streams import permutation, uniforms
from faisca.training.evaluate import count_completions, kl_divergence
from faisca.training.generate import complete, encode_prompt, rollout_sampling
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


def reinforce(run: Run, progress: Progress, model: Model, checkpoint: Checkpoint | None) -> None:
    """GRPO towards `grpo.reward`, against a frozen copy of the model as it was when the stage began."""
    setup, config, backend = run.setup, run.config.grpo, run.setup.backend
    assert setup.reward is not None, "a run that trains has loaded its reward"
    # The reference is the model as the stage began, also where a checkpoint resumes it.
    frozen = checkpoint.reference if checkpoint is not None else backend.get_parameters(model=model)
    assert frozen is not None, "a checkpoint of GRPO has its reference"
    reference = setup.make_model(frozen, frozen=True)
    progress.total_steps = config.steps
    stage = Stage(run, progress, model, backend.make_learner(model=model, config=config), frozen)
    stage.begin(checkpoint)
    if config.top_k:
        run.log.say(f"grpo.top_k {config.top_k} biases the importance ratio: log-probabilities know no top-k")
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
                scores = setup.reward.score(Samples.of_tasks(written.tasks, answers, written.completions))
            advantages = group_advantages(scores.total, config.group_size, config.scale_rewards)
            laps.end("scoring")
            # Remember what policy and reference think of the completions before any update changes the policy.
            rollouts = with_log_probs(setup, pack(setup, written, advantages), model, reference)
            # Learn: some passes over the completions, in minibatches.
            rate = learning_rate(config, stage.step, config.steps)
            updates = update_policy(setup, stage.learner, rollouts, stage.step, rate)
            laps.end("update")
            # Tell: what a trainer watches, and a warning where rewards teach nothing or what nobody wanted.
            made = Round.of(setup, written, answers, scores, advantages)
            measured = watch.look(stage.step + 1, made, measure_round(made, updates)) | laps.seconds
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
    asked = (setup, model, prompts, rollout_sampling(config), draws)
    return Completions(tasks, prompts, list(complete(*asked, config.rollout_batch)))


def pack(setup: Setup, written: Completions, advantages: np.ndarray, *, whole: bool = False) -> Rollouts[np.ndarray]:
    """Rows as right-padded arrays; causal attention needs no padding mask. The log-probabilities are still zero.

    The mask leaves out completions that never ended where `mask_truncated` asks for it, unless `whole`.
    """
    end_of_text, mask_truncated = setup.tokenizer.end_of_text, setup.config.grpo.mask_truncated and not whole
    # Padding is on the right, where no real token looks; what it holds does not matter, as the mask leaves it out.
    longest = max(len(p) + len(c) for p, c in zip(written.prompts, written.completions, strict=True))
    inputs = min(-(-(longest - 1) // LENGTH_STEP) * LENGTH_STEP, setup.model_config.context)
    tokens = np.full((len(written.prompts), inputs + 1), end_of_text, np.int32)
    mask = np.zeros((len(written.prompts), inputs), np.float32)
    for row, (prompt, completion) in enumerate(zip(written.prompts, written.completions, strict=True)):
        end = len(prompt) + len(completion)
        tokens[row, :end] = prompt + completion
        # Position t predicts token t + 1, so the completion is counted from the last token of its prompt on.
        truncated = completion[-1] not in setup.tokenizer.ends
        mask[row, len(prompt) - 1 : end - 1] = not (truncated and mask_truncated)
    zeros = np.zeros_like(mask)
    return Rollouts(tokens, mask, advantages.astype(np.float32), zeros, zeros, float(mask.sum()))


def with_log_probs(
    setup: Setup, rollouts: Rollouts[np.ndarray], model: Model, reference: Model
) -> Rollouts[np.ndarray]:
    """The rollouts with the log-probabilities of the policy that sampled them, and of the reference."""
    # In minibatches, as in the updates: memory stays bounded.
    rows = np.arange(len(rollouts.tokens)).reshape(-1, setup.config.grpo.minibatch_size)
    parts = [select_rows(rollouts, part) for part in rows]
    old, ref = (np.concatenate([log_probs(setup, scorer, part) for part in parts]) for scorer in (model, reference))
    return dataclasses.replace(rollouts, old_log_probs=old, reference_log_probs=ref)


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
        for rows in order.reshape(-1, config.minibatch_size):
            part = select_rows(rollouts, rows)
            if has_signal(part, config, left or bool(metrics)):  # the first update leaves the reference
                metrics.append(backend.grpo_step(learner=learner, rollouts=part, config=config, learning_rate=rate))
    return backend.read_metrics(metrics=metrics)


def has_signal(rollouts: Rollouts[np.ndarray], config: GRPOConfig, left_reference: bool) -> bool:
    """Whether there is a gradient: an advantage under the mask, or with a KL weight a policy away from its reference.

    Without either, the gradient is 0 or rounding noise. Adam divides by its size: it would take full steps along the
    noise, and at 0 go on with its momentum.
    """
    counted = rollouts.mask.any(axis=1)
    return bool(rollouts.advantages[counted].any() or (config.kl_weight and left_reference and counted.any()))


def has_left_reference(rollouts: Rollouts[np.ndarray]) -> bool:
    """Whether the policy that sampled differs from the reference in any token that counts."""
    return bool(((rollouts.old_log_probs != rollouts.reference_log_probs) & (rollouts.mask > 0)).any())


def select_rows(rollouts: Rollouts[np.ndarray], rows: np.ndarray) -> Rollouts[np.ndarray]:
    """Some rows of the rollouts."""
    arrays = {f.name: getattr(rollouts, f.name)[rows] for f in dataclasses.fields(rollouts) if f.name != "step_tokens"}
    return Rollouts(**arrays, step_tokens=float(arrays["mask"].sum()))


def kl_to_reference(setup: Setup, model: Model, reference: Model) -> float:
    """Masked mean k3 divergence (nats a token) of the final policy, over the completions that are counted."""
    prompts, completions = count_completions(setup, model)
    packed = pack(setup, Completions([], prompts, completions), np.zeros(len(prompts)), whole=True)
    return kl_divergence(log_probs(setup, model, packed), log_probs(setup, reference, packed), packed.mask)
