"""Rung 5: one AdamW step, and a few, in every setting: weights and both moments."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from cases import Twin, make_case
from close import require_close
from reference import Reference
from reference_steps import adamw

from faisca.config import OptimizerConfig
from faisca.parameters import decays
from faisca.parity.cases import Case, Side
from faisca.parity.rungs import learner_parameters, train
from faisca.training.schedule import learning_rate

SETTINGS: dict[str, dict[str, Any]] = {
    "plain Adam": {"weight_decay": 0.0, "clip_norm": 0.0},
    "clipped": {"weight_decay": 0.0, "clip_norm": 0.05},
    "not reaching the clip": {"weight_decay": 0.0, "clip_norm": 1e3},
    "decay on matrices": {"weight_decay": 0.5, "clip_norm": 0.0},
    "decay on all": {"weight_decay": 0.5, "decay": "all", "clip_norm": 0.0},
    "other betas": {"beta1": 0.5, "beta2": 0.9, "weight_decay": 0.1, "clip_norm": 0.1},
    "large epsilon": {"epsilon": 1e-2, "weight_decay": 0.0, "clip_norm": 0.0},
}


def outcome(
    side: Side, case: Case, config: OptimizerConfig, micro_batch_size: int = 0, **changes: Any
) -> dict[str, np.ndarray]:
    """Weights and moments after the case's steps, at `config.learning_rate` throughout."""
    learner, _ = train(side, case, config, steps=case.steps, micro_batch_size=micro_batch_size, **changes)
    state = side.backend.get_optimizer_state(learner=learner)
    return {f"weight.{name}": value for name, value in learner_parameters(side, learner).items()} | state


def make_config(setting: str) -> OptimizerConfig:
    # epsilon 1e-4: with 1e-8, weights whose gradient is rounding noise would move by noise (docs/parity.md)
    return OptimizerConfig(**({"epsilon": 1e-4, "warmup_steps": 0, "schedule": "constant"} | SETTINGS[setting]))


def compare_moments(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
    """A second moment squares the gradient, so that its relative error is twice the first's."""
    for moment, tolerance in (("first_moment.", 1e-5), ("second_moment.", 2e-5)):
        one, two = ({n: value for n, value in side.items() if n.startswith(moment)} for side in (expected, found))
        require_close(one, two, tolerance, "norm")


@pytest.mark.parametrize("micro_batch_size", [0, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_one_step_against_the_reference(twin: Twin, setting: str, micro_batch_size: int):
    case, config = make_case(steps=1, rows=6), make_config(setting)
    inputs, targets = case.batch()
    gradient = Reference(case.model, case.parameters).backward(
        inputs, targets, np.full(targets.shape, -1 / targets.size)
    )
    decayed = lambda name, shape: config.weight_decay > 0 and decays(name, shape, config.decay)  # noqa: E731
    weights, first, second = adamw(case.parameters, [gradient], config, config.learning_rate, decayed)
    expected = {f"weight.{name}": value for name, value in weights.items()}
    expected |= {f"first_moment.{name}": value for name, value in first.items()}
    expected |= {f"second_moment.{name}": value for name, value in second.items()}
    found = outcome(twin.side, case, config, micro_batch_size)
    assert found.pop("step") == 1
    require_close(expected, {name: found[name] for name in expected}, 1e-6, "absolute")
    compare_moments(expected, found)


@pytest.mark.parametrize("micro_batch_size", [0, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_three_steps_between_twins(yardstick: Side, other: Twin, setting: str, micro_batch_size: int):
    compare_three_steps(yardstick, other.side, make_config(setting), micro_batch_size)


def test_three_steps_of_compiled_twins(yardstick: Side, either_trained: Twin):
    """One setting, where each takes seconds to compile."""
    compare_three_steps(yardstick, either_trained.side, make_config("other betas"), micro_batch_size=2)


def compare_three_steps(one: Side, two: Side, config: OptimizerConfig, micro_batch_size: int) -> None:
    expected, found = (outcome(side, make_case(steps=3), config, micro_batch_size) for side in (one, two))
    require_close(expected, found, 2e-6, "absolute")
    compare_moments(expected, found)


def test_micro_batches_change_nothing(twin: Twin):
    case, config = make_case(steps=2, rows=6), make_config("clipped")
    whole, parts = (outcome(twin.side, case, config, size) for size in (0, 2))
    require_close(whole, parts, 1e-6, "absolute")


def test_a_restored_state_goes_on_as_if_never_stopped(twin: Twin):
    side, case, config = twin.side, make_case(steps=1), make_config("other betas")
    learner, _ = train(side, case, config, steps=1)
    state = side.backend.get_optimizer_state(learner=learner)
    again = dataclasses.replace(case, parameters=learner_parameters(side, learner))
    resumed, _ = train(side, again, config, steps=1, state=state)
    inputs, targets = case.batch()
    step = {"inputs": inputs, "targets": targets, "learning_rate": learning_rate(config, 0, 1)}
    side.backend.train_step(learner=learner, **step, micro_batch_size=0, dropout_seed=0)
    require_close(learner_parameters(side, learner), learner_parameters(side, resumed), 0.0)
    ours, theirs = (side.backend.get_optimizer_state(learner=one) for one in (learner, resumed))
    assert ours["step"] == theirs["step"] == 2 and ours["step"].dtype == np.int64
    require_close(ours, theirs, 0.0)


def test_the_first_step_moves_by_the_learning_rate(twin: Twin):
    """Bias correction: without it, the first step would be three times as large (docs/parity.md)."""
    case, config = make_case(steps=1), dataclasses.replace(make_config("plain Adam"), epsilon=1e-12)
    learner, _ = train(twin.side, case, config, steps=1)
    moved = np.abs(learner_parameters(twin.side, learner)["out_head.weight"] - case.parameters["out_head.weight"])
    assert np.median(moved) == pytest.approx(config.learning_rate, rel=1e-3)


def test_the_norm_is_reported_before_clipping(twin: Twin):
    case = make_case(steps=1)
    inputs, targets = case.batch()
    reference = Reference(case.model, case.parameters)
    gradient = reference.backward(inputs, targets, np.full(targets.shape, -1 / targets.size))
    norm = np.sqrt(sum((value**2).sum() for value in gradient.values()))
    for setting in ("plain Adam", "clipped"):
        _, (metrics,) = train(twin.side, case, make_config(setting), steps=1)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["loss"] == pytest.approx(reference.losses(inputs, targets).mean(), rel=1e-6)
        assert metrics["skipped"] == 0


def test_what_is_not_finite_changes_nothing(twin: Twin):
    """The step is skipped, in weights, moments and count; the next one is as if it had not been."""
    case, config, side = make_case(steps=1), make_config("clipped"), twin.side
    broken = {name: value.copy() for name, value in case.parameters.items()}
    broken["final_layer_norm.bias"][0] = np.inf
    learner, (metrics,) = train(side, dataclasses.replace(case, parameters=broken), config, steps=1)
    assert metrics["skipped"] == 1
    require_close(broken, learner_parameters(side, learner), 0.0)
    state = side.backend.get_optimizer_state(learner=learner)
    assert state["step"] == 0 and not any(value.any() for value in state.values())


def test_the_norm_of_large_tables_is_exact(twin: Twin):
    """Squares added one by one in float32, as MLX would, are 1e-3 off here."""
    case = make_case(vocabulary_size=50_257, dim=16, num_layers=1, rows=64, length=32, steps=1)
    learner, (metrics,) = train(twin.side, case, OptimizerConfig(beta1=0.0, clip_norm=0.0), steps=1)
    state = twin.side.backend.get_optimizer_state(learner=learner)
    gradients = [value.astype(np.float64) for name, value in state.items() if name.startswith("first_moment.")]
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)


def test_the_loss_of_many_tokens_is_exact(twin: Twin):
    case = make_case(rows=256, length=32, steps=1, dim=8)
    inputs, targets = case.batch()
    losses = Reference(case.model, case.parameters).losses(inputs, targets)
    _, (metrics,) = train(twin.side, case, OptimizerConfig(), steps=1)
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    total = twin.side.backend.evaluate(model=case.make_model(twin.side), inputs=inputs, targets=targets)
    assert total == pytest.approx(losses.sum(), rel=1e-6)
