"""Rung 6: 200 training steps on real windows stay together, under a written curve.

Measured over 8 runs of AdamW, and with Muon no more (docs/parity.md): the losses stay within 9e-7 of each other,
relatively, at every step, the gradient norms within 3.4e-6; neither grows. The weights are furthest apart, for
how far they have moved, after the first steps: there Adam divides small gradients by their own size.
"""

import functools
from typing import Any

import numpy as np
import pytest
from cases import GPT2, LLAMA, Twin, model_config
from close import require_close

from faisca.config import OptimizerConfig
from faisca.data.tokenizer import Tokenizer
from faisca.data.windows import Windows, evaluation_batches, target_bytes, training_batch
from faisca.parameters import initial_parameters
from faisca.parity.rungs import EPSILON
from faisca.training.schedule import learning_rate

RECIPE = LLAMA | {"zero_outputs": True, "tie_embeddings": True, "initial_range": 0.02}
TRAININGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "GPT-2": (GPT2, {}),
    "Llama": (LLAMA, {}),
    "bigrams": (LLAMA | {"bigram_rows": 300}, {}),
    "Llama, Muon": (LLAMA, {"optimizer": "muon", "muon_learning_rate": 0.02}),
    "a recipe": (RECIPE | {"qk_norm": True}, {"optimizer": "muon", "schedule": "wsd"}),
}
"""options of the model and of the optimiser"""
STEPS, LOOKS = 200, (0, 1, 4, 19, 49, 99, 199)
LOSS, NORM = 1e-5, 4e-5


def allowed_distance(step: int) -> float:
    """Between the weights of two twins, relative to how far they have moved by then."""
    return 2e-4 if step < 50 else 2e-5


class Trajectory:
    """A training from initial values: what was measured, and the weights' change at some steps."""

    def __init__(
        self,
        twin: Twin,
        corpus: Any,
        options: dict[str, Any],
        dtype: str = "float32",
        **changes: Any,
    ) -> None:
        tokenizer, windows, validation = corpus
        config, side = OptimizerConfig(epsilon=EPSILON, **changes), twin.side
        model_options = model_config(vocabulary_size=tokenizer.vocabulary_size, dim=32, hidden_dim=64, **options)
        initial = initial_parameters(model_options, seed=1)
        model = side.backend.make_model(config=model_options, parameters=initial, runtime=side.open(dtype=dtype))
        learner, metrics, self.change = side.backend.make_learner(model=model, config=config), [], {}
        for step in range(STEPS):
            inputs, targets = training_batch(windows, batch_size=8, seed=1, stage="pretrain", step=step)
            rate = learning_rate(config, step, STEPS)
            common = {"learning_rate": rate, "micro_batch_size": 0, "dropout_seed": step}
            metrics.append(side.backend.train_step(learner=learner, inputs=inputs, targets=targets, **common))
            if step in LOOKS:
                weights = side.backend.get_parameters(model=model)
                self.change[step] = np.concatenate([(weights[name] - initial[name]).ravel() for name in initial])
        numbers = side.backend.read_metrics(metrics=metrics)
        self.loss, self.norm = (np.array([step[name] for step in numbers]) for name in ("loss", "grad_norm"))
        self.validation_loss, self.bits_per_byte = evaluate(side, model, validation, tokenizer)


def evaluate(side: Any, model: Any, tokens: np.ndarray, tokenizer: Tokenizer) -> tuple[float, float]:
    total, size = 0.0, 0
    for inputs, targets in evaluation_batches(tokens, window=32, batch_size=16):
        total += side.backend.evaluate(model=model, inputs=inputs, targets=targets)
        size += target_bytes(targets, tokenizer.bytes_per_token())
    return total / (len(tokens) - 1), total / np.log(2) / size


@pytest.fixture(scope="session")
def trajectory(corpus: tuple[Tokenizer, Windows, Any]) -> Any:
    """Makes trajectories, each once, of a twin and a name in TRAININGS."""

    def make(twin: Twin, name: str = "default", dtype: str = "float32") -> Trajectory:
        options, changes = TRAININGS[name]
        return Trajectory(twin, corpus, options, dtype, **changes)

    return functools.cache(make)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_hundred_steps_stay_together(trajectory: Any, either_trained: Twin, name: str):
    one, two = (trajectory(twin, name) for twin in (Twin("torch", "cpu"), either_trained))
    assert one.loss[0] > one.loss[-1] + 0.5, "the model learns something"
    assert np.all(np.abs(one.loss - two.loss) <= LOSS * one.loss)
    assert np.all(np.abs(one.norm - two.norm) <= NORM * one.norm)
    for step in LOOKS:
        require_close(
            {f"step {step}": one.change[step]}, {f"step {step}": two.change[step]}, allowed_distance(step), "norm"
        )
    assert two.validation_loss == pytest.approx(one.validation_loss, abs=1e-4)
    assert two.bits_per_byte == pytest.approx(one.bits_per_byte, abs=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(5))
def test_other_seeds_of_the_same_curve(corpus: Any, other: Twin, seed: int):
    """Other weights: the width of the band is not the luck of one seed."""
    options = {"norm_epsilon": 1e-5 * (1 + seed), "num_heads": 1 + seed % 2}
    one, two = (Trajectory(twin, corpus, options) for twin in (Twin("torch", "cpu"), other))
    assert np.all(np.abs(one.loss - two.loss) <= LOSS * one.loss)
    for step in LOOKS:
        require_close({"change": one.change[step]}, {"change": two.change[step]}, allowed_distance(step), "norm")


# Rung 10, on the same trajectories: largest |loss in bfloat16 - loss in float32| measured is 9e-4 nats
BAND = 1e-2


def test_bfloat16_training_follows_float32(trajectory: Any, either: Twin):
    plain, short = trajectory(Twin("torch", "cpu"), "default"), trajectory(either, "default", "bfloat16")
    assert np.abs(plain.loss - short.loss).max() <= BAND
    assert np.abs(plain.loss - short.loss).max() > 1e-6, "something was computed in bfloat16"
    assert short.validation_loss == pytest.approx(plain.validation_loss, abs=BAND)
    require_close({"change": plain.change[199]}, {"change": short.change[199]}, 2e-2, "norm")
