"""Rung 5: AdamW's arithmetic to a millionth of the step, on the gradients that it was given itself.

Its gradients are read from the first moment, so what the twins differ by in theirs has no say, and
the learning rate is near 1, so a weight's own digits have none either.
"""

from typing import Any

import numpy as np
import pytest
from cases import Twin, make_case
from close import require_close

from faisca.backend import Learner, Rollouts
from faisca.config import GRPOConfig, OptimizerConfig
from faisca.parameters import decays
from faisca.parity.cases import Case, Side
from faisca.parity.rungs import learner_parameters

RATES = (1.0, 0.25, 0.0, 2.0)
SETTINGS: dict[str, dict[str, Any]] = {
    "Adam": {"weight_decay": 0.0},
    "decay on matrices": {"weight_decay": 0.3},
    "decay on all": {"weight_decay": 0.3, "decay": "all"},
    "other betas": {"beta1": 0.6, "beta2": 0.95, "weight_decay": 0.3},
}


def take_step(side: Side, learner: Learner, case: Case, kind: str, rate: float, step: int) -> None:
    """A step of either kind, at this rate."""
    inputs, targets = case.batch(step)
    if kind == "train":
        common = {"learning_rate": rate, "micro_batch_size": 0, "dropout_seed": step}
        metrics = side.backend.train_step(learner=learner, inputs=inputs, targets=targets, **common)
    else:
        ones = np.ones((len(inputs), inputs.shape[1] - 1), np.float32)
        advantages = np.linspace(-1, 1, len(inputs), dtype=np.float32)
        rollouts = Rollouts(inputs, ones, advantages, -4 * ones, -5 * ones, float(ones.sum()))
        metrics = side.backend.grpo_step(
            learner=learner, rollouts=rollouts, config=learner.config, learning_rate=rate, dropout_seed=0
        )
    assert side.backend.read_metrics(metrics=[metrics])[0]["skipped"] == 0


def expected_change(
    config: OptimizerConfig, rate: float, count: int, before: tuple[np.ndarray, ...], gradient: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """The weight and its second moment after step `count` (from 1), in float64 (Loshchilov & Hutter 2019)."""
    weight, first, second = (value.astype(np.float64) for value in before)
    first = config.beta1 * first + (1 - config.beta1) * gradient
    second = config.beta2 * second + (1 - config.beta2) * gradient**2
    root = np.sqrt(second / (1 - config.beta2**count)) + config.epsilon
    return weight - rate * (first / (1 - config.beta1**count) / root + decay * weight), second


@pytest.mark.parametrize("kind", ["train", "grpo"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_four_steps_at_four_rates(twin: Twin, setting: str, kind: str):
    check_steps(twin, setting, kind)


@pytest.mark.parametrize("kind", ["train", "grpo"])
def test_compiled_steps_take_the_rate_of_the_moment(stepped: Twin, kind: str):
    if stepped.compile == "on":  # the others are above
        check_steps(stepped, "other betas", kind)


def check_steps(twin: Twin, setting: str, kind: str) -> None:
    case, config = make_case(), GRPOConfig(**({"epsilon": 1e-3, "clip_norm": 1.0} | SETTINGS[setting]))
    side = twin.side
    learner = side.backend.make_learner(model=case.make_model(side), config=config)
    for count, rate in enumerate(RATES, start=1):
        weights, state = learner_parameters(side, learner), side.backend.get_optimizer_state(learner=learner)
        take_step(side, learner, case, kind, rate, count)
        found, after = learner_parameters(side, learner), side.backend.get_optimizer_state(learner=learner)
        assert after["step"] == count
        if rate == 0:
            require_close(weights, found, 0.0)
        for name, weight in weights.items():
            first, second = (state[f"{moment}.{name}"] for moment in ("first_moment", "second_moment"))
            gradient = (after[f"first_moment.{name}"].astype(np.float64) - config.beta1 * first) / (1 - config.beta1)
            decay = config.weight_decay if decays(name, weight.shape, config.decay) else 0.0
            wanted, wanted_second = expected_change(config, rate, count, (weight, first, second), gradient, decay)
            # digits of a float32: of the weight, and, in later steps, of the gradient read from two moments
            allowed = (1e-6 if count == 1 else 3e-6) * rate + 2e-7 * np.abs(weight).max()
            require_close({name: wanted}, {name: found[name]}, allowed, "absolute")
            require_close({name: wanted_second}, {name: after[f"second_moment.{name}"]}, 3e-6)


def test_a_rate_of_zero_moves_moments_and_count_only(stepped: Twin):
    case, config = make_case(), OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    learner = stepped.side.backend.make_learner(model=case.make_model(stepped.side), config=config)
    for step in range(3):
        take_step(stepped.side, learner, case, "train", 0.0, step)
    require_close(dict(case.parameters), learner_parameters(stepped.side, learner), 0.0)
    state = stepped.side.backend.get_optimizer_state(learner=learner)
    assert state["step"] == 3 and state["first_moment.out_head.weight"].any()


def test_states_are_copies_in_both_directions(twin: Twin):
    """What was given to the twin or taken from it is not changed by later steps, nor the other way round."""
    case, config, backend = make_case(), OptimizerConfig(), twin.side.backend
    learner = backend.make_learner(model=case.make_model(twin.side), config=config)
    take_step(twin.side, learner, case, "train", 1e-2, 0)
    taken = backend.get_optimizer_state(learner=learner)
    kept = {name: value.copy() for name, value in taken.items()}
    take_step(twin.side, learner, case, "train", 1e-2, 1)
    require_close(kept, taken, 0.0)
    backend.set_optimizer_state(learner=learner, state=taken)
    take_step(twin.side, learner, case, "train", 1e-2, 2)
    require_close(kept, taken, 0.0)
    now = backend.get_optimizer_state(learner=learner)
    for value in taken.values():
        value += 1
    require_close(now, backend.get_optimizer_state(learner=learner), 0.0)
