"""What one side computes of a stage's work: losses, gradients, weights after updates, log-probabilities, rollouts.

A gradient is read out of the optimiser: with beta1 = 0, Adam's first moment is the gradient of the last
step. Each learner takes three steps in one process, the second with another shape: a compiled step that
captured its data or its weights, and buffers that another shape has left behind, show in the later ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from faisca.backend import Backend, Learner, Metrics, Model, Rollouts, Runtime
from faisca.certificate.work import Work
from faisca.config import GRPOConfig, OptimizerConfig, RunConfig, adapter_of

Arrays = dict[str, np.ndarray]
STEPS = 3
LOSSES: tuple[str, ...] = ("loss", "kl", "entropy", "ratio_mean")
"""the numbers of a step that are compared, where it has them"""


@dataclass(frozen=True)
class Observation:
    """Named arrays of one kind, in words what they are of, and for weights what they were before."""

    kind: str
    """loss, log-probabilities, gradient, weights, rollout or dropout: each has its tolerances"""
    what: str
    """as in `training step 1, 16 × 256 tokens`"""
    arrays: Arrays
    before: Arrays | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """One twin as a configuration opens it; `exact` computes in float64 where the twin can.

    MLX's device is a global: a side is opened before it computes, and its observations are taken to their end.
    """

    backend: Backend
    config: RunConfig
    exact: bool = False
    whole: bool = True
    """whether batches have their full shapes; else each of the different rows stands there once"""

    def open(self) -> Runtime:
        return self.backend.open_runtime(config=self.config)

    def make_model(self, work: Work, *, dropout: bool = False) -> Model:
        kind = np.float64 if self.exact else np.float32
        parameters = {name: value.astype(kind) for name, value in work.parameters.items()}
        config = work.model if dropout else work.still_model
        return self.backend.make_model(config=config, parameters=parameters, runtime=self.open())


def observe(side: Side, work: Work, given: list[Rollouts[np.ndarray]]) -> Iterator[Observation]:
    """Everything that is compared, one after another; the rollouts that GRPO learns from are as in `observe_policy`."""
    yield from observe_training(side, work) if work.grpo is None else observe_policy(side, work, given)


def observe_training(side: Side, work: Work) -> Iterator[Observation]:
    """Three steps on windows, and the loss without gradients."""
    model = side.make_model(work)
    inputs, targets = work.batch(STEPS, 2)
    masked = np.where(np.arange(targets.size).reshape(targets.shape) % 3 == 0, -1, targets)
    loss = np.array(side.backend.evaluate(model=model, inputs=inputs, targets=masked) / masked.size)
    yield Observation("loss", f"evaluation of {_shape(inputs)}", {"loss of an evaluation": loss})
    learner = side.backend.make_learner(model=model, config=work.optimizer(OptimizerConfig()))
    for step in range(STEPS):
        inputs, targets, micro, what = _batch(work, step, side.whole)
        metrics = side.backend.train_step(
            learner=learner,
            inputs=inputs,
            targets=targets,
            learning_rate=work.rate,
            micro_batch_size=micro,
            dropout_seed=step,
        )
        yield from _after_step(side, work, learner, metrics, f"training step {step + 1}, {what}")


def observe_policy(side: Side, work: Work, given: list[Rollouts[np.ndarray]]) -> Iterator[Observation]:
    """Log-probabilities of completions, and three updates of the policy.

    It learns from the rollouts that are `given`; the side that comes first finds none, and makes them.
    """
    assert work.grpo is not None
    model, config = side.make_model(work), _policy_config(work)
    learner = side.backend.make_learner(model=model, config=config)
    for step in range(STEPS):
        if step == len(given):
            given.append(make_rollouts(side, work, learner.model, step))
        rollouts = given[step]
        shape = f"{rollouts.mask.shape[0]} × {rollouts.mask.shape[1]} tokens"
        if step == 0:
            found = side.backend.token_log_probs(
                model=model, tokens=rollouts.tokens, temperature=config.temperature, places=rollouts.places
            )
            yield Observation("log-probabilities", f"scoring {shape}", {"log-probabilities": found * rollouts.mask})
        metrics = side.backend.grpo_step(
            learner=learner, rollouts=rollouts, config=config, learning_rate=work.rate, dropout_seed=0
        )
        yield from _after_step(side, work, learner, metrics, f"GRPO update {step + 1}, {shape}")


def make_rollouts(side: Side, work: Work, model: Model, step: int) -> Rollouts[np.ndarray]:
    """Completions for an update, with log-probabilities that put the ratio far from where it is clipped."""
    config = _policy_config(work)
    empty = work.completions(step, max(1, work.length // 2) if step == 1 else work.length)
    now = side.backend.token_log_probs(
        model=model, tokens=empty.tokens, temperature=config.temperature, places=empty.places
    ).astype(np.float32)
    old = now - np.float32(np.log(safe_ratio(config)))
    return replace(empty, old_log_probs=old, reference_log_probs=now + work.reference_noise(step, now.shape))


def safe_ratio(config: GRPOConfig) -> float:
    """An importance ratio near 1 that is far from where clipping begins: there, rounding would decide the gradient."""
    edges = np.array([1 - config.clip_low, 1 + config.clip_high, config.cispo_cap, config.delta or config.cispo_cap])
    return max((1.0, 0.95, 1.05, 0.9, 1.1), key=lambda ratio: float(np.abs(edges - ratio).min()))


def has_dropout(work: Work) -> bool:
    """Whether the stage drops anything: in GRPO, its adapter alone may."""
    adapter = adapter_of(work.model)
    drops = work.grpo is None and (work.model.dropout or work.model.attention_dropout)
    return bool(drops or (adapter and adapter.dropout))


def observe_dropout(side: Side, work: Work) -> Iterator[Observation]:
    """Whether a step's seed decides what is dropped: the same seed the same loss, another seed another one."""
    if not has_dropout(work):
        return
    model = side.make_model(work, dropout=True)
    learner = side.backend.make_learner(model=model, config=work.optimizer(work.grpo or OptimizerConfig()))
    inputs, targets = work.batch(0, work.distinct)
    step: Callable[..., Metrics] = side.backend.train_step
    given: dict[str, Any] = {"inputs": inputs, "targets": targets, "micro_batch_size": 0}
    if work.grpo:
        step = side.backend.grpo_step
        given = {"rollouts": make_rollouts(side, work, model, 0), "config": _policy_config(work)}
    metrics = [step(**given, learner=learner, learning_rate=0.0, dropout_seed=seed) for seed in (1, 1, 2)]
    one, again, other = (row["loss"] for row in side.backend.read_metrics(metrics=metrics))
    arrays = {
        "other losses with the same dropout": np.array(abs(again / one - 1)),
        "equal losses with another dropout": np.array(float(other == one)),
    }
    yield Observation("dropout", f"dropout in training, {_shape(inputs)}", arrays)


def _batch(work: Work, step: int, whole: bool) -> tuple[np.ndarray, np.ndarray, int, str]:
    """A step's data, its micro-batch size, and its shape in words; the second has two micro-batches of another size."""
    if step == 1:
        micro = max(1, work.distinct // 2)
        inputs, targets = work.batch(step, 2 * micro)
        return inputs, targets, micro, f"2 micro-batches of {micro} × {work.length} tokens"
    inputs, targets = work.batch(step, work.distinct)
    if whole:
        inputs, targets = inputs[work.copies(step)], targets[work.copies(step)]
    return inputs, targets, 0, f"{work.rows} × {work.length} tokens"


def _after_step(side: Side, work: Work, learner: Learner, metrics: Any, what: str) -> Iterator[Observation]:
    """Numbers, gradients and weights of the step just made."""
    (numbers,) = side.backend.read_metrics(metrics=[metrics])
    yield Observation("loss", what, {name: np.array(numbers[name]) for name in LOSSES if name in numbers})
    state = side.backend.get_optimizer_state(learner=learner)
    prefix = "first_moment."
    gradients = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    yield Observation("gradient", what, gradients)
    weights = side.backend.get_parameters(model=learner.model)
    yield Observation("weights", what, weights, before=dict(work.parameters))


def _policy_config(work: Work) -> GRPOConfig:
    assert work.grpo is not None
    config = work.optimizer(work.grpo)
    assert isinstance(config, GRPOConfig)
    return config


def _shape(array: np.ndarray) -> str:
    return f"{array.shape[0]} × {array.shape[1]} tokens"
