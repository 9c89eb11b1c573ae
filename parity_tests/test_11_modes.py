"""Rung 11: dropout is active in training steps and nowhere else, whatever the model did just before."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import Twin, make_case
from close import require_close

from faisca.backend import Model, Rollouts, Sampling
from faisca.config import GRPOConfig, OptimizerConfig
from faisca.parity.cases import Case
from faisca.parity.rungs import learner_parameters
from faisca.parity.sampling import make_prompts
from faisca.streams import uniforms

PLAIN, DROPPING = make_case(), make_case(dropout=0.5, attention_dropout=0.5)
INPUTS, TARGETS = PLAIN.batch()


def samples(twin: Twin, model: Model) -> np.ndarray:
    columns = twin.side.backend.generate(
        model=model,
        prompts=make_prompts(PLAIN, 8, 5),
        uniforms=uniforms(0, "modes", step=0, rows=8, columns=9),
        sampling=Sampling(1.0, 0, 1.0, 9),
        end_of_text=(0,),
        log_probs=None,
    )
    return np.stack(list(columns), axis=1)


LOOKS: dict[str, Callable[[Twin, Model], Any]] = {
    "evaluate": lambda twin, model: twin.side.backend.evaluate(model=model, inputs=INPUTS, targets=TARGETS),
    "logits": lambda twin, model: twin.side.backend.logits(model=model, tokens=INPUTS),
    "token_log_probs": lambda twin, model: twin.side.backend.token_log_probs(
        model=model, tokens=INPUTS, temperature=0.7, places=None
    ),
    "log-probabilities of places": lambda twin, model: twin.side.backend.token_log_probs(
        model=model, tokens=INPUTS, temperature=1.0, places=np.arange(0, 64, 3, dtype=np.int32)
    ),
    "generate": samples,
}


def train(twin: Twin, learner: Any, seed: int = 1, rate: float = 0.0) -> dict[str, float]:
    step = twin.side.backend.train_step(
        learner=learner, inputs=INPUTS, targets=TARGETS, learning_rate=rate, micro_batch_size=2, dropout_seed=seed
    )
    return twin.side.backend.read_metrics(metrics=[step])[0]


@functools.cache  # compiled steps take seconds to make
def learner_of(twin: Twin, case: Case, recomputed: bool) -> Any:
    model = case.make_model(twin.side, gradient_checkpointing=recomputed)
    return twin.side.backend.make_learner(model=model, config=OptimizerConfig(epsilon=1e-4))


@pytest.mark.parametrize("recomputed", [False, True], ids=["plain", "recomputed"])
@pytest.mark.parametrize("look", LOOKS)
def test_absent_right_after_a_training_step(stepped: Twin, look: str, recomputed: bool):
    """A rate of 0 leaves the weights: all that is seen is what a model without dropout shows."""
    learner = learner_of(stepped, DROPPING, recomputed)
    plain = PLAIN.make_model(stepped.side)
    assert train(stepped, learner)["loss"] != pytest.approx(LOOKS["evaluate"](stepped, plain) / TARGETS.size, rel=1e-3)
    expected, found = (np.asarray(LOOKS[look](stepped, model)) for model in (plain, learner.model))
    require_close({look: expected}, {look: found}, 0.0)


@pytest.mark.parametrize("look", LOOKS)
def test_training_goes_on_as_if_nobody_had_looked(stepped: Twin, look: str):
    learner, metrics, weights = learner_of(stepped, DROPPING, False), [], []
    backend = stepped.side.backend
    start = backend.get_optimizer_state(learner=backend.make_learner(model=learner.model, config=learner.config))
    for looking in (False, True):
        backend.set_optimizer_state(learner=learner, state=start)
        before = backend.get_parameters(model=learner.model)
        metrics.append([])
        for seed in range(3):
            metrics[-1].append(train(stepped, learner, seed))
            if looking:
                LOOKS[look](stepped, learner.model)
        weights.append(backend.get_optimizer_state(learner=learner))
        require_close(before, backend.get_parameters(model=learner.model), 0.0)
    assert metrics[0] == metrics[1] and metrics[0][0]["loss"] != metrics[0][1]["loss"]
    require_close(*weights, 0.0)


def test_absent_in_a_policy_step_right_after_a_training_step(stepped: Twin):
    backend, config, results = stepped.side.backend, GRPOConfig(epsilon=1e-4), []
    ones = np.ones((4, 19), np.float32)
    advantages = np.array([1, -1, 0.5, -0.5], np.float32)
    rollouts = Rollouts(INPUTS, ones, advantages, -4 * ones, -5 * ones, 76.0)
    for case in (PLAIN, DROPPING):
        learner = backend.make_learner(model=case.make_model(stepped.side), config=config)
        fresh = backend.get_optimizer_state(learner=learner)
        if case is DROPPING:
            train(stepped, learner)
            backend.set_optimizer_state(learner=learner, state=fresh)
        step = backend.grpo_step(learner=learner, rollouts=rollouts, config=config, learning_rate=1e-2, dropout_seed=0)
        results.append((backend.read_metrics(metrics=[step]), learner_parameters(stepped.side, learner)))
    assert results[0][0] == results[1][0]
    require_close(results[0][1], results[1][1], 0.0)


def test_a_training_step_right_after_a_policy_step_drops(stepped: Twin):
    """The reference, and a policy that was pre-trained with dropout, are in evaluation mode; training is not."""
    learner = learner_of(stepped, DROPPING, False)
    before, config = train(stepped, learner, seed=5)["loss"], GRPOConfig()
    ones = np.ones((4, 19), np.float32)
    rollouts = Rollouts(INPUTS, ones, ones[:, 0], -4 * ones, -5 * ones, 76.0)
    stepped.side.backend.grpo_step(learner=learner, rollouts=rollouts, config=config, learning_rate=0.0, dropout_seed=0)
    assert train(stepped, learner, seed=5)["loss"] == before
