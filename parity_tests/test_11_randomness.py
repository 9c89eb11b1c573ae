"""Rung 11: no random number is used twice, by rows, positions, sites, blocks, micro-batches or steps.

The masks themselves are looked at; where that cannot be, what a repeated mask would make equal.
"""

import itertools
from typing import Any

import numpy as np
import pytest
from cases import Twin, even_attention, make_case

from faisca.config import OptimizerConfig

RATE, SIGMAS = 0.4, 5.5  # a right implementation fails once in thirty million comparisons
WAYS = pytest.mark.parametrize("recomputed", [False, True], ids=["plain", "recomputed"])


def masks(twin: Twin, seed: int, recomputed: bool) -> list[np.ndarray]:
    """What each of the model's dropouts keeps of a batch, [B, T, D] each, in the order of the calls."""
    case = make_case(dropout=RATE, rows=24, length=16, num_layers=3)
    model = case.make_model(twin.side, gradient_checkpointing=recomputed)
    model.train()
    twin.inside.seed(seed)
    *found, _ = twin.inside.record(model, case.batch()[0], "dropout")
    return [out != 0 for _, out in found]


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two masks agree more, or less, often than independent ones; where one is constant (NaN), they do."""
    with np.errstate(invalid="ignore"):
        return not abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) <= SIGMAS / np.sqrt(one.size)


@WAYS
def test_sites_blocks_and_steps_have_masks_of_their_own(twin: Twin, recomputed: bool):
    one, other = (masks(twin, seed, recomputed) for seed in (1, 2))
    assert len(one) == 1 + 2 * 3, "the embedding and two sites a block"
    for a, b in itertools.combinations(one + other, 2):
        assert not alike(a, b)
    again = masks(twin, 1, recomputed)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True)), "the seed decides"


@WAYS
def test_rows_positions_and_features_have_masks_of_their_own(twin: Twin, recomputed: bool):
    for mask in masks(twin, 3, recomputed):
        for axis, size in enumerate(mask.shape):
            first, *others = (mask.take(i, axis) for i in range(size))
            assert not any(np.array_equal(first, other) for other in others)
            assert not alike(mask.take(range(size - 1), axis), mask.take(range(1, size), axis))


def test_attention_drops_anew_in_each_row_head_and_position(twin: Twin):
    """With equal weights and values of 1, what attention returns depends on its mask alone."""
    case = even_attention(attention_dropout=RATE)
    model = case.make_model(twin.side)
    model.train()
    twin.inside.seed(4)
    out = twin.inside.attend(model.transformer_blocks[0].attention, np.zeros((300, 16, 8), np.float32))[:, 4:]
    out = (out - 1) * np.sqrt(np.arange(5, 17))[:, None]  # the mean is 1, and the deviation falls with the position
    for axis, size in enumerate(out.shape):
        assert not alike(out.take(range(size - 1), axis), out.take(range(1, size), axis))


def losses(twin: Twin, inputs: np.ndarray, micro_batch_size: int, seeds: Any, recomputed: bool) -> np.ndarray:
    """The loss of one step from the same weights, for each dropout seed."""
    case, found = make_case(dropout=RATE, attention_dropout=RATE), []
    model = case.make_model(twin.side, gradient_checkpointing=recomputed)
    learner = twin.side.backend.make_learner(model=model, config=OptimizerConfig())
    for seed in seeds:
        common = {"learning_rate": 0.0, "micro_batch_size": micro_batch_size, "dropout_seed": seed}
        found.append(twin.side.backend.train_step(learner=learner, inputs=inputs, targets=inputs, **common))
    return np.array([step["loss"] for step in twin.side.backend.read_metrics(metrics=found)])


@WAYS
def test_micro_batches_of_a_step_drop_anew(twin: Twin, recomputed: bool):
    """Of a row twice, each in a micro-batch of its own, the mean loss would else be that of the row once."""
    row = make_case().batch()[0][:1]
    once, twice = (losses(twin, np.repeat(row, n, 0), 1, range(6), recomputed) for n in (1, 2))
    assert np.abs(once - twice).min() > 1e-4


@WAYS
def test_each_step_drops_anew_and_its_seed_decides(stepped: Twin, recomputed: bool):
    inputs = make_case().batch()[0]
    one, two, again, far = losses(stepped, inputs, 0, (1, 2, 1, 2**62), recomputed)
    assert one == again and len({one, two, far}) == 3
