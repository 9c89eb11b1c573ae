"""Whether what a device samples with its cache is what the CPU would draw, which has none.

Not token by token: where rounding decides a draw, the rest of a row would be another text. The CPU looks at the text
that the device wrote, computes all of its logits at once, and says of each token by how much its draw missed.
"""

import numpy as np

from faisca.backend import Sampling
from faisca.certificate.observe import Arrays, Observation, Side
from faisca.certificate.work import Work
from faisca.streams import uniforms


def roll_out(side: Side, work: Work) -> Arrays:
    """Completions that a side samples with its cache: int [rows, new tokens] for each way of sampling."""
    model, prompts = side.make_model(work), work.prompts()
    written = {}
    for name, sampling in work.samplings().items():
        columns = side.backend.generate(
            model=model,
            prompts=prompts,
            uniforms=draws_of(work, sampling),
            sampling=sampling,
            end_of_text=(-1,),
            log_probs=None,  # no row ends early
        )
        written[name] = np.stack(list(columns), axis=1)
    return written


def observe_rollout(reference: Side, work: Work, written: Arrays) -> Observation:
    """By how much each token misses what the reference draws there, for some of the rows."""
    model, prompts = reference.make_model(work), np.array(work.prompts(), np.int32)
    found = {}
    for name, sampling in work.samplings().items():
        texts = np.concatenate([prompts, written[name]], axis=1).astype(np.int32)
        rows = work.checked_rows(*texts.shape)
        inputs = texts[rows, :-1]
        if (written[name] < 0).any():  # a row that ends early, which none should
            found[name] = np.array(np.inf)
            continue
        logits = reference.backend.logits(model=model, tokens=inputs)[:, work.prompt - 1 :]
        found[name] = misses(logits, texts[rows, work.prompt :], draws_of(work, sampling)[rows], sampling)
    shape = next(iter(written.values())).shape
    return Observation("rollout", f"rollout of {shape[0]} × {shape[1]} tokens", found)


def misses(logits_BTV: np.ndarray, tokens_BT: np.ndarray, draws_BT: np.ndarray, sampling: Sampling) -> np.ndarray:
    """How far each token is from being the one drawn: float64 [B, T], 0 where it is.

    In probability, between the uniform number and the token's interval of the cumulative distribution; of the
    likeliest token, in logits, as a share of the largest.
    """
    logits, picked = logits_BTV.astype(np.float64), tokens_BT[..., None]
    peaks = logits.max(-1, keepdims=True)
    if sampling.greedy:
        gaps = peaks - np.take_along_axis(logits, picked, -1)
        return np.asarray((gaps / np.abs(logits).max(-1, keepdims=True))[..., 0])
    weights = np.exp((logits - peaks) / sampling.temperature)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = np.partition(logits, -sampling.top_k, -1)[..., -sampling.top_k, None]
        weights[logits < least] = 0
    high = weights.cumsum(-1) / weights.sum(-1, keepdims=True)
    high_BT, low_BT = (np.take_along_axis(edges, picked, -1)[..., 0] for edges in (high, high - _shares(weights)))
    return np.asarray(np.maximum(np.maximum(low_BT - draws_BT, draws_BT - high_BT), 0))


def draws_of(work: Work, sampling: Sampling) -> np.ndarray:
    """Numbers that decide a rollout's tokens: float32 [rows, new tokens]."""
    rows = len(work.prompts())
    return uniforms(work.seed, "certificate rollout", step=0, rows=rows, columns=sampling.max_new_tokens)


def _shares(weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights / weights.sum(-1, keepdims=True))
