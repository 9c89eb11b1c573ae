"""Rung 7: the same tokens from both sides, and the rule for ties.

Both twins draw by the inverse of the cumulative distribution in the order of token ids, from the
same uniform numbers. Rounding decides where the number falls on an edge between two tokens, where
the last candidate that top-k or top-p keeps and the next have equal logits, where the likelier
candidates reach top-p exactly, or where two logits share the maximum. The rule: a row may
part from the other side at a token whose margin, the distance to the nearest such edge, is below
`TIE`; it is counted, and what follows in the row is not compared. Margins and draws are computed
here in float64, from logits of the whole row at once: without a key-value cache.
"""

from dataclasses import dataclass

import numpy as np

from faisca.backend import Sampling
from faisca.parity.rungs import Case, Side
from faisca.streams import generator, uniforms

TIE = 1e-5
"""in probability, or relative to the largest logit"""

ROWS, NEW_TOKENS = 64, 60


@dataclass(frozen=True)
class Agreement:
    """How two sets of completions compare, row by row."""

    rows: int
    tokens: int
    """drawn in all"""
    ties: int
    """rows that part at a tie"""
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
        model=case.make_model(side), prompts=prompts, uniforms=draws, sampling=sampling, end_of_text=case.end_of_text
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
    """The token that a uniform number picks, and the margin by which it does, in float64."""
    logits = logits_V.astype(np.float64)
    scale = np.abs(logits).max()
    wanted = 1 if sampling.temperature == 0 else sampling.top_k
    order = likeliest(logits, wanted + 1 if 0 < wanted < len(logits) else len(logits))
    if sampling.temperature == 0:
        return int(order[0]), float((logits[order[0]] - logits[order[1]]) / scale)
    margins = []
    if 0 < sampling.top_k < len(logits):
        margins.append((logits[order[sampling.top_k - 1]] - logits[order[sampling.top_k]]) / scale)
        order = order[: sampling.top_k]
    weights = np.exp((logits[order] - logits[order[0]]) / sampling.temperature)
    probs = weights / weights.sum()
    if sampling.top_p < 1:
        before = probs.cumsum() - probs
        margins.append(np.abs(before - sampling.top_p).min())
        kept = int((before < sampling.top_p).sum())
        if kept < len(order):
            margins.append((logits[order[kept - 1]] - logits[order[kept]]) / scale)
        order, probs = order[:kept], probs[:kept]
    by_id = np.argsort(order)
    ids, edges = order[by_id], probs[by_id].cumsum()
    threshold = uniform * edges[-1]
    margins.append(np.abs(edges[:-1] - threshold).min(initial=np.inf))
    return int(ids[min(int((edges <= threshold).sum()), len(ids) - 1)]), float(min(margins))


def likeliest(logits_V: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest logits, largest first, equals in the order of their ids."""
    ids = np.argpartition(-logits_V, count - 1)[:count] if count < len(logits_V) else np.arange(len(logits_V))
    return ids[np.lexsort((ids, -logits_V[ids]))]


def agreement(side: Side, other: Side, case: Case, sampling: Sampling, rows: int = ROWS) -> Agreement:
    """Completions of one side against the reference's draws, and of the other against the first's."""
    prompts = make_prompts(case, rows, max(1, case.model.context // 3))
    draws = uniforms(case.seed, "parity samples", step=0, rows=rows, columns=sampling.max_new_tokens)
    one, two = (completions(sample_rows(s, case, prompts, draws, sampling)) for s in (side, other))
    ties, wrong = 0, []
    for i, expected in enumerate(expected_rows(side, case, prompts, draws, one, sampling)):
        parts = [n for n, (token, _) in enumerate(expected) if token != one[i][n]]
        at = first_difference(one[i], two[i])
        parts += [] if at is None or at in parts else [at]
        margins = [expected[n][1] if n < len(expected) else np.inf for n in parts]
        ties += any(margin < TIE for margin in margins)
        wrong += [f"row {i}, token {n}: margin {m:.2g}" for n, m in zip(parts, margins, strict=True) if m >= TIE]
        if not ends_well(one[i], len(prompts[i]), case, sampling):
            wrong.append(f"row {i} ends after {len(one[i])} tokens")
    return Agreement(rows, sum(map(len, one)), ties, tuple(wrong))


def ends_well(row: list[int], prompt: int, case: Case, sampling: Sampling) -> bool:
    """Whether a completion ends after its first end-of-text, its most tokens, or the one that fills the context."""
    if case.end_of_text in row:
        return row.index(case.end_of_text) == len(row) - 1
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
