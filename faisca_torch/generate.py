"""Sampling: filter the logits, draw a token, loop with a key-value cache.

Tokens are drawn by the inverse of the cumulative distribution, in the order of token ids, from
uniform numbers that the core supplies: the same numbers give the same tokens in both twins.
Probabilities are integers, so that their sums are exact, in any order and on any device.
Rows of different prompt lengths start together: the shorter ones sample while the longer ones
still read their prompts, so every row is at the same position and nothing is padded.

Shapes: B rows, R rows still alive, V vocabulary, S candidates after filtering.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from faisca.backend import UNIT, Sampling
from faisca_torch.cache import KeyValueCache
from faisca_torch.device import to_device
from faisca_torch.losses import project
from faisca_torch.model import GPT


def filter_logits(logits_RV: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities, int64 multiples of 1 / UNIT, and token ids [R, S] of the candidates, in the order of token ids.

    The top_k likeliest are taken first (0: all); of these, the likeliest that together reach
    top_p, the one that crosses it included, keep their probability and the rest get 0.
    """
    V = logits_RV.shape[1]
    scaled = logits_RV.float() / temperature
    if not 0 < top_k < V and top_p >= 1:
        return _probabilities(scaled), torch.arange(V, device=scaled.device).expand_as(scaled)
    # Top-k sorts as well, so top-p needs no sorting of its own.
    values, ids = scaled.topk(min(top_k or V, V), dim=1)  # likeliest first
    probs = _probabilities(values)
    if top_p < 1:
        cumulative = probs.cumsum(1)
        before = cumulative - probs  # probability of the likelier ones
        # A candidate stays if the likelier ones do not reach top_p yet: the first always does.
        probs = probs.where(before < _share(cumulative[:, -1:], top_p), 0)
    # Back to the order of ids, in which both twins draw.
    ids, order = ids.sort(1)
    return probs.gather(1, order), ids


def sample(logits_RV: Tensor, uniforms_R: Tensor, sampling: Sampling) -> Tensor:
    """One token id a row: int64 [R]. A greedy one is the likeliest."""
    if sampling.greedy:
        return logits_RV.argmax(1)
    probs_RS, ids_RS = filter_logits(logits_RV, sampling.temperature, sampling.top_k, sampling.top_p)
    # The token whose interval of the cumulative distribution holds the uniform number.
    cumulative = probs_RS.cumsum(1)
    threshold = (uniforms_R * 2**24).long() * cumulative[:, -1] >> 24  # a float32 uniform has 24 bits
    picked = torch.searchsorted(cumulative, threshold[:, None], right=True).clamp(max=ids_RS.shape[1] - 1)
    return ids_RS.gather(1, picked).squeeze(1)


def log_probs_of(logits_RV: Tensor, tokens_R: Tensor, temperature: float) -> Tensor:
    """Log-probability of a token a row among all, whatever top-k and top-p leave: float32 [R]."""
    return (logits_RV.float() / temperature).log_softmax(1).gather(1, tokens_R[:, None]).squeeze(1)


def _probabilities(scaled_RS: Tensor) -> Tensor:
    return (scaled_RS.softmax(1) * UNIT).round().long()


def _share(total_R1: Tensor, share: float) -> Tensor:
    """That share of a total near UNIT, to the last unit: `share * UNIT` would keep the softmax's rounding."""
    whole, rest = divmod(share * 2**24, 1)
    return (total_R1 * int(whole) >> 24) + round(rest * UNIT / 2**24)


@torch.no_grad()
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
    # First what all prompts have, up to the end of the shortest; then a column at a time.
    tokens = np.array([prompt[:position] for prompt in prompts])
    while len(rows):
        nth_new = position - lengths[rows]  # below 0: the row still reads its prompt
        uniforms_R = uniforms[rows, nth_new.clip(0, sampling.max_new_tokens - 1)]
        logits_RV = project(model(to_device(model, tokens), cache)[:, -1], model.head)
        drawn = sample(logits_RV, torch.from_numpy(uniforms_R).to(logits_RV.device), sampling)
        chosen, new = drawn.cpu().numpy(), nth_new >= 0
        if log_probs is not None:
            log_probs[rows[new], nth_new[new]] = log_probs_of(logits_RV, drawn, sampling.temperature).cpu().numpy()[new]
        # A row that still reads its prompt takes the token given there, and not the one drawn.
        for i in np.flatnonzero(nth_new < 0):
            chosen[i] = prompts[rows[i]][position]
        column = np.full(len(prompts), -1)
        column[rows[new]] = chosen[new]
        yield column
        position += 1
        # Rows that have ended leave the batch, and their place in the cache.
        ended = new & (np.isin(chosen, end_of_text) | (nth_new + 1 >= sampling.max_new_tokens))
        stays = np.flatnonzero(~ended & (position <= model.config.context))
        if len(stays) < len(rows):
            cache.keep(stays)
        rows, tokens = rows[stays], chosen[stays, None]
