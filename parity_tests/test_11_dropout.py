"""Rung 11: dropout at the right rate, scaled right, independent from site to site, and absent where it must be."""

import itertools

import numpy as np
import pytest
from cases import Twin, even_attention, make_case

from faisca.config import GRPOConfig
from faisca.parity.rungs import reinforce

RATE, DRAWS = 0.3, 1_000_000
SIGMAS = 5  # a right implementation fails once in two million tries


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate_and_scale_over_a_million_draws(twin: Twin, rate: float):
    model = make_case(dropout=rate).make_model(twin.side)
    model.train()
    twin.inside.seed(1)
    out = twin.inside.dropped(model, np.ones(DRAWS, np.float32))
    assert set(np.unique(out)) == {0.0, np.float32(1 / (1 - rate))}
    assert abs((out == 0).mean() - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / DRAWS)


def masks(twin: Twin, seed: int) -> list[np.ndarray]:
    """What each of the model's dropouts kept of a batch, in the order of the calls."""
    case = make_case(dropout=RATE, rows=64, length=32)
    model = case.make_model(twin.side)
    model.train()
    twin.inside.seed(seed)
    *found, _ = twin.inside.record(model, case.batch()[0], "dropout")
    return [(out != 0).ravel() for given, out in found]


def test_sites_and_steps_drop_independently(twin: Twin):
    """Embeddings and two sites a block; a mask used twice would show as a correlation of 1."""
    one, other = masks(twin, seed=1), masks(twin, seed=2)
    assert len(one) == 1 + 2 * 2
    spread = np.sqrt(RATE * (1 - RATE) / one[0].size)
    for mask in one:
        assert abs((~mask).mean() - RATE) < SIGMAS * spread
    for a, b in [*itertools.combinations(one, 2), *zip(one, other, strict=True)]:
        assert abs(np.corrcoef(a, b)[0, 1]) < SIGMAS / np.sqrt(a.size)
    assert all(np.array_equal(a, b) for a, b in zip(one, masks(twin, seed=1), strict=True)), "the seed decides"


def test_attention_weights_are_dropped(twin: Twin):
    """With equal weights 1/t and values of 1, position t has mean 1 and variance p / ((1 - p) t)."""
    case = even_attention(attention_dropout=RATE)
    model = case.make_model(twin.side)
    attention = model.transformer_blocks[0].attention
    x = np.zeros((2000, 16, 8), np.float32)
    assert np.abs(twin.inside.attend(attention, x) - 1).max() < 1e-6, "absent in evaluation"
    model.train()
    twin.inside.seed(3)
    out = twin.inside.attend(attention, x).swapaxes(0, 1).reshape(16, -1)  # [T, draws]: a head a column
    count, times = out.shape[1], np.arange(1, 17)
    variance = RATE / (1 - RATE) / times
    assert (np.abs(out.mean(1) - 1) < SIGMAS * np.sqrt(variance / count)).all()
    assert np.abs(out.var(1) / variance - 1).max() < 0.1
    heads = out.reshape(16, -1, 8)[4]
    assert abs(np.corrcoef(heads[:, 0], heads[:, 1])[0, 1]) < SIGMAS / np.sqrt(len(heads)), "each head its own"


def test_absent_in_reinforcement_learning(stepped: Twin):
    """On the first pass the policy is the one that sampled: every ratio is 1."""
    plain, dropping = make_case(), make_case(dropout=0.5, attention_dropout=0.5)
    config = GRPOConfig(epsilon=1e-6)
    (first, *_), (second, *_) = (reinforce(stepped.side, case, config)[1] for case in (plain, dropping))
    assert first == second
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-5) and first["ratio_max"] == pytest.approx(1, abs=1e-5)
