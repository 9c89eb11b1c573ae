"""Sampling: filter the logits, draw a token, loop with a key-value cache.

Tokens are drawn by the inverse of the cumulative distribution, in the order of token ids, from
uniform numbers that the core supplies: the same numbers give the same tokens in both twins.
Probabilities are integers, so that their sums are exact, in any order and on any device.
Rows of different prompt lengths start together: the shorter ones sample while the longer ones
still read their prompts, so every row is at the same position and nothing is padded. The next
column is computed while the host reads the last one, so a row that ends costs one column more.

Shapes: B rows, R rows still alive, V vocabulary, S candidates after filtering.
"""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from faisca.backend import UNIT, Sampling
from faisca_mlx.cache import KeyValueCache
from faisca_mlx.device import to_device
from faisca_mlx.losses import project
from faisca_mlx.model import GPT
from faisca_mlx.sums import row_sums


def filter_logits(logits_RV: mx.array, temperature: float, top_k: int, top_p: float) -> tuple[mx.array, mx.array]:
    """Probabilities, int64 multiples of 1 / UNIT, and token ids [R, S] of the candidates, in the order of token ids.

    The top_k likeliest are taken first (0: all); of these, the likeliest that together reach
    top_p, the one that crosses it included, keep their probability and the rest get 0.
    """
    V = logits_RV.shape[1]
    scaled = logits_RV.astype(mx.float32) / temperature
    if not 0 < top_k < V and top_p >= 1:
        return _probabilities(scaled), mx.broadcast_to(mx.arange(V), scaled.shape)
    k = min(top_k or V, V)
    # The k likeliest, in no order; sorted by id at once, in the order in which both twins draw.
    ids = mx.argpartition(-scaled, k - 1, axis=1)[:, :k] if k < V else mx.broadcast_to(mx.arange(V), scaled.shape)
    ids = mx.sort(ids, axis=1)
    scaled = mx.take_along_axis(scaled, ids, axis=1)
    probs = _probabilities(scaled)
    if top_p < 1:
        likeliest_first = mx.argsort(-scaled, axis=1)
        sorted_probs = mx.take_along_axis(probs, likeliest_first, axis=1)
        cumulative = mx.cumsum(sorted_probs, axis=1)
        before = cumulative - sorted_probs  # probability of the likelier ones
        # A candidate stays if the likelier ones do not reach top_p yet: the first always does.
        kept = mx.where(before < _share(cumulative[:, -1:], top_p), sorted_probs, 0)
        probs = mx.take_along_axis(kept, mx.argsort(likeliest_first, axis=1), axis=1)
    return probs, ids


def sample(logits_RV: mx.array, uniforms_R: mx.array, sampling: Sampling) -> mx.array:
    """One token id a row: [R]. A greedy one is the likeliest."""
    if sampling.greedy:
        return logits_RV.argmax(axis=1)
    probs_RS, ids_RS = filter_logits(logits_RV, sampling.temperature, sampling.top_k, sampling.top_p)
    # The token whose interval of the cumulative distribution holds the uniform number.
    cumulative = mx.cumsum(probs_RS, axis=1)
    threshold = (uniforms_R[:, None] * 2**24).astype(mx.int64) * cumulative[:, -1:] >> 24  # a uniform has 24 bits
    picked = (cumulative <= threshold).sum(axis=1, keepdims=True)
    return mx.take_along_axis(ids_RS, mx.minimum(picked, ids_RS.shape[1] - 1), axis=1).squeeze(1)


def log_probs_of(logits_RV: mx.array, tokens_R: mx.array, temperature: float) -> mx.array:
    """Log-probability of a token a row among all, whatever top-k and top-p leave: float32 [R]."""
    scores = logits_RV.astype(mx.float32) / temperature
    scores = scores - scores.max(axis=1, keepdims=True)
    log_sums = mx.log(row_sums(mx.exp(scores)))
    return mx.take_along_axis(scores, tokens_R[:, None], axis=1).squeeze(1) - log_sums


def _probabilities(scaled_RS: mx.array) -> mx.array:
    return mx.round(mx.softmax(scaled_RS, axis=1) * UNIT).astype(mx.int64)


def _share(total_R1: mx.array, share: float) -> mx.array:
    """That share of a total near UNIT, to the last unit: `share * UNIT` would keep the softmax's rounding."""
    whole, rest = divmod(share * 2**24, 1)
    return (total_R1 * int(whole) >> 24) + round(rest * UNIT / 2**24)


def generate(
    *,
    model: GPT,
    prompts: list[list[int]],
    uniforms: np.ndarray,
    sampling: Sampling,
    end_of_text: tuple[int, ...],
    log_probs: np.ndarray | None,
) -> Iterator[np.ndarray]:
    """Completions a column at a time: int64 [B], -1 where a row has no new token; `log_probs` takes what they had."""
    model.eval()
    lengths = np.array([len(prompt) for prompt in prompts])
    if not (len(lengths) and lengths.all()):
        raise ValueError("there is nothing to go on from: give each row a prompt of at least one token")
    capacity = min(int(lengths.max()) + sampling.max_new_tokens, model.config.context)
    cache = KeyValueCache(model.config.num_layers, capacity)
    rows, position = np.arange(len(prompts)), int(lengths.min())

    def next_column(tokens: mx.array, position: int) -> list[mx.array]:
        nth_new = position - lengths[rows]  # below 0: the row still reads its prompt
        uniforms_R = uniforms[rows, nth_new.clip(0, sampling.max_new_tokens - 1)]
        logits_RV = project(model(tokens, cache)[:, -1], model.head)
        chosen = sample(logits_RV, mx.array(uniforms_R), sampling)
        scores = [] if log_probs is None else [log_probs_of(logits_RV, chosen, sampling.temperature)]
        # A row that still reads its prompt takes the token given there, and not the one drawn.
        if (nth_new < 0).any():
            given = np.array([(prompts[row] + [0] * position)[position] for row in rows])
            chosen = mx.where(mx.array(nth_new < 0), mx.array(given), chosen)
        mx.async_eval(chosen, *scores)
        return [chosen, *scores]

    # First what all prompts have, up to the end of the shortest; then a column at a time.
    column = next_column(to_device(model, np.array([prompt[:position] for prompt in prompts])), position)
    while len(rows):
        nth_new = position - lengths[rows]
        goes_on = position + 1 <= model.config.context and (nth_new + 1 < sampling.max_new_tokens).any()
        # Launched before this column is read, so that the device computes while the host waits.
        following = next_column(column[0][:, None], position + 1) if goes_on else column
        chosen, new = np.array(column[0]), nth_new >= 0
        if log_probs is not None:
            log_probs[rows[new], nth_new[new]] = np.array(column[1])[new]
        new_tokens = np.full(len(prompts), -1)
        new_tokens[rows[new]] = chosen[new]
        yield new_tokens
        position += 1
        # Rows that have ended leave the batch, and their place in the cache.
        ended = new & (np.isin(chosen, end_of_text) | (nth_new + 1 >= sampling.max_new_tokens))
        stays = np.flatnonzero(~ended & (position <= model.config.context))
        if len(stays) < len(rows):
            cache.keep(stays)
            following = [array[mx.array(stays)] for array in following]
        rows, column = rows[stays], following
