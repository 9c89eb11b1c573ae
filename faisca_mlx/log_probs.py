"""Log-probabilities of the tokens of a text, and entropies, straight from hidden states, as in `losses`.

GRPO's have an upstream gradient per token, so nothing can be made in the forward pass: the exponentials are
kept where they are few, and else computed again, chunk by chunk. No kernel of MLX gives the entropy too.
"""

from typing import Any

import mlx.core as mx
import numpy as np

from faisca.backend import KEPT_EXPONENTIALS, check_temperature
from faisca_mlx.device import to_device
from faisca_mlx.losses import _add_gradients, _chunks, _given, _project, _Softmax, _squeeze, project
from faisca_mlx.model import GPT, Head
from faisca_mlx.sums import row_sums


def token_log_probs(*, model: GPT, tokens: np.ndarray, temperature: float, places: np.ndarray | None) -> np.ndarray:
    """Token ids [B, T] -> log-probability of each token after the first, float32 [B, T-1]; 0 outside `places`."""
    check_temperature(temperature)
    places = np.arange(tokens[:, 1:].size) if places is None else places
    if not places.size:
        return np.zeros(tokens[:, 1:].shape, np.float32)
    model.eval()
    log_probs, _ = shifted_log_probs(model, to_device(model, tokens), to_device(model, places), temperature, 0)
    return np.array(log_probs)


def shifted_log_probs(
    model: GPT, tokens_BT: mx.array, places_N: mx.array, temperature: float, with_gradients: int
) -> tuple[mx.array, mx.array]:
    """Log-probability of each token after the first, and the entropy there: float32 [B, T-1] each; 0 elsewhere."""
    targets = tokens_BT[:, 1:]
    hidden_ND = model(tokens_BT[:, :-1]).flatten(0, 1)[places_N]
    log_probs_N, entropies_N = linear_log_probs(
        hidden_ND, model.head, targets.flatten()[places_N], temperature, model.runtime.loss_chunk, with_gradients
    )
    zeros = mx.zeros(targets.size)
    log_probs, entropies = (zeros.at[places_N].add(found) for found in (log_probs_N, entropies_N))
    return log_probs.reshape(targets.shape), entropies.reshape(targets.shape)


def linear_log_probs(
    hidden_ND: mx.array, head: Head, targets_N: mx.array, temperature: float, chunk: int, with_gradients: int
) -> tuple[mx.array, mx.array]:
    """log p(target) and entropy (nats) of softmax(logits / temperature): float32 [N] each.

    `with_gradients`: 0 none, and no exponentials are kept; 1 through the log-probabilities; 2 through entropies too.
    """
    if not with_gradients:
        log_probs_N, entropies_N, *_ = _log_probs_and_entropies(hidden_ND, head, targets_N, temperature, chunk, 0)
        return log_probs_N, entropies_N

    @mx.custom_function
    def log_probs(hidden_ND: mx.array, head_VD: mx.array) -> tuple[mx.array, ...]:
        most_kept = 0 if head.soft_cap else KEPT_EXPONENTIALS
        return _log_probs_and_entropies(
            hidden_ND, head._replace(weight_VD=head_VD), targets_N, temperature, chunk, most_kept
        )

    @log_probs.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        (hidden_ND, head_VD), (_, entropies_N, peaks_N1, sums_N1, *kept) = primals, outputs
        d_hidden: list[mx.array] = []
        d_head_VD = None if head.frozen else mx.zeros_like(head_VD)
        weights_N1, entropy_weights_N1 = (-(upstream / temperature)[:, None] for upstream in cotangents[:2])
        for i, rows in enumerate(_chunks(len(targets_N), chunk)):
            hidden = hidden_ND[rows]
            if d_hidden:
                hidden = mx.depends([hidden], [d_hidden[-1], *_given(d_head_VD)])[0]
            exps, slope = kept[i] if kept else None, None
            if exps is None:  # not kept from the forward pass: computed again, chunk by chunk
                logits, slope = _squeeze(_project(hidden, head_VD), head.soft_cap)
                exps = mx.exp(logits / temperature - peaks_N1[rows])
            sums, weights, hit = sums_N1[rows], weights_N1[rows], 1.0
            if with_gradients == 2:  # d entropy / d scores = -p · (log p + entropy)
                log_p = mx.log(mx.maximum(exps.astype(mx.float32), 1e-37) / sums)
                exps = exps * (weights + entropy_weights_N1[rows] * (log_p + entropies_N[rows, None]))
                weights, hit = mx.ones_like(weights), weights
            softmax = _Softmax(exps.astype(hidden.dtype), sums, targets_N[rows], weights, hit, slope)
            d_rows, d_head_VD = _add_gradients(softmax, hidden, head_VD, d_head_VD)
            d_hidden.append(d_rows)
        return mx.concatenate(d_hidden).astype(hidden_ND.dtype), *(_given(d_head_VD) or [mx.zeros_like(head_VD)])

    log_probs_N, entropies_N, *_ = log_probs(hidden_ND, head.weight_VD)
    return log_probs_N, entropies_N if with_gradients == 2 else mx.stop_gradient(entropies_N)


def _log_probs_and_entropies(
    hidden_ND: mx.array, head: Head, targets_N: mx.array, temperature: float, chunk: int, most_kept: int
) -> tuple[mx.array, ...]:
    """After these two, for the gradient: each row's largest logit, its sum of exponentials, and those that are kept."""
    found: list[list[mx.array]] = []
    kept: list[mx.array] = []
    keep = len(targets_N) * len(head.weight_VD) <= most_kept
    for rows in _chunks(len(targets_N), chunk):
        hidden = mx.depends([hidden_ND[rows]], found[-1])[0] if found else hidden_ND[rows]
        logits = project(hidden, head) / temperature
        peak = logits.max(axis=1, keepdims=True)
        scores = logits - peak
        exps = mx.exp(scores)  # the one exponential a logit
        sums = row_sums(exps)[:, None]
        log_p = mx.take_along_axis(scores, targets_N[rows, None], axis=1) - mx.log(sums)
        # Entropy is log Σ exp(s) - Σ p·s, which needs no logarithm of p.
        entropies = mx.log(sums) - row_sums(exps * scores)[:, None] / sums
        found.append([log_p, entropies, peak, sums])
        if keep:
            kept.append(exps.astype(hidden.dtype))
    log_probs_N1, entropies_N1, peaks_N1, sums_N1 = (mx.concatenate(parts) for parts in zip(*found, strict=True))
    return log_probs_N1.squeeze(1), entropies_N1.squeeze(1), peaks_N1, sums_N1, *kept
