"""Rung 7: the same tokens, from the same uniform numbers; see `faisca.parity.sampling` for the rule for ties."""

import dataclasses
import functools

import numpy as np
import pytest
from cases import GPT2, LLAMA, Twin, make_case, option_id

from faisca.backend import Sampling
from faisca.parity.cases import Side
from faisca.parity.sampling import agreement, completions, draw, make_prompts, sample_rows, settings
from faisca.streams import uniforms

SETTINGS = settings(60)


def setting_id(sampling: Sampling) -> str:
    return f"T={sampling.temperature:g}-k={sampling.top_k}-p={sampling.top_p:g}"


@pytest.mark.parametrize("options", [{}, GPT2, LLAMA, {"bigram_rows": 300}], ids=option_id)
@pytest.mark.parametrize("sampling", SETTINGS, ids=setting_id)
def test_both_twins_draw_the_same_tokens(yardstick: Side, other: Twin, sampling: Sampling, options: dict):
    """64 rows of up to 60 tokens, some of which fill the context; also the reference's, without a cache."""
    case = make_case(context=72, **options)
    found = agreement(yardstick, other.side, case, sampling)
    assert not found.wrong
    assert found.ties <= 2, "ties are rare: about one in 10,000 tokens"
    assert found.rows == 64 and found.tokens > 64 * 20


@pytest.mark.parametrize("sampling", SETTINGS, ids=setting_id)
def test_the_cache_changes_no_token(twin: Twin, sampling: Sampling):
    """Against draws from logits of whole rows, where many rows end early: every tenth token is an end-of-text."""
    case = make_case(seed=5, context=40)
    case.parameters["out_head.weight"][0] *= 2
    found = agreement(twin.side, twin.side, case, dataclasses.replace(sampling, max_new_tokens=30))
    assert not found.wrong and found.ties <= 2


def test_a_prompt_that_fills_the_context_gets_one_token(twin: Twin):
    case = make_case(context=16)
    prompts = [row.tolist() for row in np.random.default_rng(0).integers(1, 101, (3, 16))]
    prompts[1] = prompts[1][:4]
    draws = uniforms(0, "full", step=0, rows=3, columns=20)
    rows = completions(sample_rows(twin.side, case, prompts, draws, Sampling(1.0, 0, 1.0, 20)))
    assert [len(rows[0]), len(rows[2])] == [1, 1]
    assert len(rows[1]) == 13 or rows[1][-1] == case.end_of_text


def test_rows_do_not_depend_on_their_neighbours(twin: Twin):
    case, sampling = make_case(), Sampling(0.9, 12, 0.95, 10)
    prompts, draws = make_prompts(case, 6, 8), uniforms(1, "rows", step=0, rows=6, columns=10)
    together = completions(sample_rows(twin.side, case, prompts, draws, sampling))
    for i in range(6):
        alone = completions(sample_rows(twin.side, case, prompts[i : i + 1], draws[i : i + 1], sampling))
        assert alone[0] == together[i]


def test_nothing_follows_the_end_of_text(twin: Twin):
    case = make_case(seed=2)
    prompts, draws = make_prompts(case, 32, 5), uniforms(1, "ends", step=0, rows=32, columns=25)
    case.parameters["out_head.weight"][0] *= 3
    table = sample_rows(twin.side, case, prompts, draws, Sampling(1.0, 0, 1.0, 25))
    ended = [row for row in table if 0 in row]
    assert len(ended) > 5
    for row in ended:
        assert (row[list(row).index(0) + 1 :] == -1).all()


@pytest.mark.parametrize("sampling", SETTINGS, ids=setting_id)
def test_the_sampler_against_the_reference(twin: Twin, sampling: Sampling):
    random = np.random.default_rng(0)
    logits = (3 * random.standard_normal((400, 101))).astype(np.float32)
    draws = random.random(400, np.float32)
    found = twin.inside.sample(logits, draws, sampling)
    for row, uniform, token in zip(logits, draws, found, strict=True):
        wanted, margin = draw(row, float(uniform), sampling)
        assert token == wanted or margin < 1


@functools.cache
def original_vocabulary() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, a head of GPT-2's 50,257 tokens that makes a few of them likely, and uniform numbers."""
    random = np.random.default_rng(0)
    hidden, head = (random.standard_normal((rows, 24)).astype(np.float32) for rows in (DRAWS, 50_257))
    return hidden, head * np.float32(0.7), random.random(DRAWS, np.float32)


DRAWS = 128


@functools.cache
def expected_draws(yardstick: Side, sampling: Sampling) -> list[tuple[int, float]]:
    hidden, head, uniforms = original_vocabulary()
    logits = Twin("torch", "cpu").inside.project(hidden, head)
    return [draw(row, float(uniform), sampling) for row, uniform in zip(logits, uniforms, strict=True)]


def parted(twin: Twin, sampling: Sampling, expected: list[tuple[int, float]]) -> np.ndarray:
    """Margins of the draws in which a twin, from logits of its own, parts from what is expected."""
    hidden, head, uniforms = original_vocabulary()
    found = twin.inside.sample(twin.inside.project(hidden, head), uniforms, sampling)
    return np.array([margin for token, (wanted, margin) in zip(found, expected, strict=True) if token != wanted])


@pytest.mark.parametrize("sampling", SETTINGS[1:], ids=setting_id)
def test_ties_are_rare_at_the_originals_vocabulary(yardstick: Side, twin: Twin, sampling: Sampling):
    """Measured: of 128 draws at most 2 are ties, and none parts. A sampler that is a little wrong is noticed."""
    expected = expected_draws(yardstick, sampling)
    assert sum(margin < 1 for _, margin in expected) <= 0.05 * DRAWS
    found = parted(twin, sampling, expected)
    assert len(found) <= 0.02 * DRAWS and (found < 1).all()
    wrong = [dataclasses.replace(sampling, temperature=1.01 * sampling.temperature)]
    wrong += [dataclasses.replace(sampling, top_p=sampling.top_p - 0.01)]
    wrong += [dataclasses.replace(sampling, top_k=sampling.top_k - 1)] if sampling.top_k else []
    for other in wrong:
        assert (parted(twin, other, expected) >= 1).any(), other


@pytest.mark.parametrize("sampling", SETTINGS[1:], ids=setting_id)
def test_candidates_stand_in_the_order_of_their_ids(twin: Twin, sampling: Sampling):
    logits = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    probs, ids = twin.inside.candidates(logits, sampling)
    assert (np.diff(ids, axis=1) > 0).all()
    exact = np.exp(logits.astype(np.float64) / sampling.temperature)
    for row, chosen, kept in zip(exact, ids, probs > 0, strict=True):
        largest = np.sort(row)[::-1]
        k = sampling.top_k or len(row)
        assert set(chosen[kept]) <= set(np.flatnonzero(row >= largest[k - 1]))
        share = np.sort(row[chosen[kept]])[::-1].cumsum() / largest[:k].sum()
        assert share[-1] >= sampling.top_p - 1e-6, "they reach top_p"
        assert len(share) == 1 or share[-2] < sampling.top_p, "and no more than needed are taken"


def test_uniform_zero_and_almost_one_pick_a_possible_token(twin: Twin):
    """0 picks the first id with a probability, the largest float32 below 1 the last one."""
    logits = np.full((2, 9), -np.inf, np.float32)
    logits[:, [3, 6]] = 0.0
    draws = np.array([0.0, np.nextafter(np.float32(1), np.float32(0))], np.float32)
    assert twin.inside.sample(logits, draws, Sampling(1.0, 0, 1.0, 1)).tolist() == [3, 6]


def test_greedy_takes_the_first_of_equals(twin: Twin):
    logits = np.zeros((1, 9), np.float32)
    logits[:, [2, 5]] = 1.0
    assert twin.inside.sample(logits, np.zeros(1, np.float32), Sampling(0.0, 0, 1.0, 1)).tolist() == [2]


@pytest.mark.parametrize(
    ("sampling", "uniform", "why"),
    [
        (Sampling(0.0, 0, 1.0, 1), 0.3, "two logits share the maximum"),
        (Sampling(1.0, 1, 1.0, 1), 0.3, "the k-th and the next logit are equal"),
        (Sampling(1.0, 0, 1.0, 1), 0.5, "the uniform number stands on an edge"),
        (Sampling(1.0, 0, 0.5, 1), 0.3, "the likelier ones reach top_p exactly"),
        (Sampling(1.0, 0, 0.4, 1), 0.3, "the last that top_p keeps and the next are equal"),
    ],
)
def test_the_rule_calls_ties_what_rounding_decides(sampling: Sampling, uniform: float, why: str):
    assert draw(np.zeros(2) + 1.0, uniform, sampling)[1] < 1, why
    assert draw(np.array([1.0, 3.0]), 0.3, sampling)[1] > 1e3
