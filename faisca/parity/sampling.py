"""Rung 7: the same tokens from both sides, and the rule for ties.

Both twins draw by the inverse of the cumulative distribution in the order of token ids, from the
same uniform numbers, and add up probabilities as integers, exactly. So only the rounding of logits
can part them, and it decides a token where two logits share the maximum (greedy), where the number
falls on an edge between two tokens, or where it is not sure which candidates top-k or top-p keep and
the token depends on it. The rule: a row may part from the other side at a token whose margin, in
units of what rounding can move, is below 1; it is counted, and what follows in the row is not
compared. Margins and draws are computed here in float64, from logits of the whole row at once:
without a key-value cache.
"""

from dataclasses import dataclass

import numpy as np

from faisca.backend import Sampling
from faisca.parity.cases import Case, Side
from faisca.streams import generator, uniforms

LOGIT, EDGE = 1e-6, 5e-7
"""How far rounding moves a logit, relative to the largest of its row, and an edge between two tokens.

An edge is a sum of probabilities p whose roundings are independent: it moves by EDGE times the
largest logit over the temperature, times √Σp². docs/parity.md has the measurements.
"""

ROWS, NEW_TOKENS = 64, 60


@dataclass(frozen=True)
class Agreement:
    """How two sets of completions compare, row by row."""

    rows: int
    tokens: int
    """drawn in all"""
    near: int
    """draws that rounding may decide: margins below 1"""
    ties: int
    """rows that part at such a draw"""
    wrong: tuple[str, ...]
    """rows that part elsewhere, by which margin; and rows that end in the wrong place"""


def settings(new_tokens: int) -> tuple[Sampling, ...]:
    """Every way of sampling: greedy, all tokens, top-k, top-p and both."""
    choices = ((0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 20, 1.0), (1.0, 0, 0.9), (0.7, 30, 0.8))
    return tuple(Sampling(temperature, top_k, top_p, new_tokens) for temperature, top_k, top_p in choices)


def make_prompts(case: Case, rows: int, longest: int) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens."""
    random = generator(case.seed, "parity prompts")
    lengths = random.integers(1, longest + 1, rows)
    return [random.integers(case.model.vocabulary_size, size=length).tolist() for length in lengths]


def sample_rows(side: Side, case: Case, prompts: list[list[int]], draws: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Completions of a side: int [B, columns], -1 where there is no token, as `Backend.generate` yields them."""
    columns = side.backend.generate(
        model=case.make_model(side),
        prompts=prompts,
        uniforms=draws,
        sampling=sampling,
        end_of_text=case.stops,
        log_probs=None,
    )
    return np.stack(list(columns), axis=1)


def expected_rows(
    side: Side, case: Case, prompts: list[list[int]], draws: np.ndarray, rows: list[list[int]], sampling: Sampling
) -> list[list[tuple[int, float]]]:
    """What the reference draws at each place of these completions: (token, margin), given the tokens before."""
    longest = max(len(p) + len(r) for p, r in zip(prompts, rows, strict=True))
    padded = np.array([p + r + [0] * (longest - len(p) - len(r)) for p, r in zip(prompts, rows, strict=True)])
    logits = side.backend.logits(model=case.make_model(side), tokens=padded[:, : case.model.context])
    return [
        [draw(logits[i, len(prompt) - 1 + n], float(draws[i, n]), sampling) for n in range(len(row))]
        for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
    ]


def draw(logits_V: np.ndarray, uniform: float, sampling: Sampling) -> tuple[int, float]:
    """The token that a uniform number picks, in float64, and by how many times what rounding can move."""
    logits = logits_V.astype(np.float64)
    scale = max(float(np.abs(logits).max()), float(np.finfo(np.float32).tiny))
    if sampling.greedy:
        first = int(logits.argmax())
        return first, float((logits[first] - np.delete(logits, first).max()) / (2 * LOGIT * scale))
    probs, kept, sure, possible = candidates(logits, scale, sampling)
    edges = np.where(kept, probs, 0).cumsum()
    token = int((edges <= uniform * edges[-1]).sum())
    if not sure[token]:
        return token, 0.0
    slack = _slack(probs, sure, possible & ~sure, token, uniform)
    return token, float(slack / _edge_error(probs[kept], scale, sampling))


def candidates(
    logits_V: np.ndarray, scale: float, sampling: Sampling
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities among the top_k [V]; what top-k and top-p keep, keep for sure, and may keep after rounding."""
    V = len(logits_V)
    k = sampling.top_k if 0 < sampling.top_k < V else V
    weights, everything = np.exp((logits_V - logits_V.max()) / sampling.temperature), np.ones(V, bool)
    if k == V and sampling.top_p >= 1:
        return weights / weights.sum(), everything, everything, everything
    falling = np.sort(logits_V)[::-1]  # of equals, the first ids are the likelier
    likelier = np.exp((falling[:k] - falling[0]) / sampling.temperature)
    total, fewest, count, most = likelier.sum(), k, k, k
    if sampling.top_p < 1:
        probs = likelier / total
        before, error = probs.cumsum() - probs, _edge_error(probs, scale, sampling)
        fewest, count, most = (int((before < sampling.top_p + by).sum()) for by in (-error, 0.0, error))
    kept = logits_V > falling[count - 1]
    kept[np.flatnonzero(logits_V == falling[count - 1])[: count - kept.sum()]] = True
    apart = 2 * LOGIT * scale
    sure = logits_V > falling[fewest] + apart if fewest < V else everything
    return weights / total, kept, sure, logits_V >= falling[most - 1] - apart


def _edge_error(probs: np.ndarray, scale: float, sampling: Sampling) -> float:
    """How far rounding may move a sum of some of these probabilities."""
    return float(EDGE * scale / sampling.temperature * np.sqrt((probs**2).sum()))


def _slack(probs_V: np.ndarray, sure: np.ndarray, maybe: np.ndarray, token: int, uniform: float) -> float:
    """By how much probability a sure token is drawn, whichever of the others are candidates too."""
    surely, perhaps = np.where(sure, probs_V, 0), np.where(maybe, probs_V, 0)
    below, total, may_be_below, may_be = surely[:token].sum(), surely.sum(), perhaps[:token].sum(), perhaps.sum()
    nothing_below = not (sure | maybe)[:token].any()
    nothing_above = not (sure | maybe)[token + 1 :].any()
    # the edge below the token where all that may be candidates are below it, the one above where all are above
    low = np.inf if nothing_below else uniform * (total + may_be_below) - (below + may_be_below)
    high = np.inf if nothing_above else below + probs_V[token] - uniform * (total + may_be - may_be_below)
    return min(low, high)


def agreement(side: Side, other: Side, case: Case, sampling: Sampling, rows: int = ROWS) -> Agreement:
    """Completions of one side against the reference's draws, and of the other against the first's."""
    prompts = make_prompts(case, rows, max(1, case.model.context // 3))
    draws = uniforms(case.seed, "parity samples", step=0, rows=rows, columns=sampling.max_new_tokens)
    one, two = (completions(sample_rows(s, case, prompts, draws, sampling)) for s in (side, other))
    near, ties, wrong = 0, 0, []
    for i, expected in enumerate(expected_rows(side, case, prompts, draws, one, sampling)):
        parts = [n for n, (token, _) in enumerate(expected) if token != one[i][n]]
        at = first_difference(one[i], two[i])
        parts += [] if at is None or at in parts else [at]
        margins = [expected[n][1] if n < len(expected) else np.inf for n in parts]
        near += sum(margin < 1 for _, margin in expected)
        ties += any(margin < 1 for margin in margins)
        wrong += [f"row {i}, token {n}: margin {m:.2g}" for n, m in zip(parts, margins, strict=True) if m >= 1]
        if not ends_well(one[i], len(prompts[i]), case, sampling):
            wrong.append(f"row {i} ends after {len(one[i])} tokens")
    return Agreement(rows, sum(map(len, one)), near, ties, tuple(wrong))


def ends_well(row: list[int], prompt: int, case: Case, sampling: Sampling) -> bool:
    """Whether a completion ends after its first end-of-text, its most tokens, or the one that fills the context."""
    if not set(case.stops).isdisjoint(row):
        return next(n for n, token in enumerate(row) if token in case.stops) == len(row) - 1
    return len(row) == min(sampling.max_new_tokens, case.model.context + 1 - prompt)


def completions(table: np.ndarray) -> list[list[int]]:
    """The rows of `sample_rows` without their holes."""
    return [[int(token) for token in row if token >= 0] for row in table]


def first_difference(one: list[int], two: list[int]) -> int | None:
    """The first place where two lists differ, an end included; None where they are equal."""
    for i, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return i
    return None if len(one) == len(two) else min(len(one), len(two))
