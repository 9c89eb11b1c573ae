"""Cross-entropy and log-probabilities straight from hidden states, never holding all logits.

For 64 x 256 tokens and a vocabulary of 50,257 the logits are 3.3 GB, and a plain loss keeps
several copies. Here only `chunk` rows of logits are alive at a time: `mx.depends` makes each
chunk wait for the one before it. Cross-entropy computes its gradients in the forward pass, chunk
by chunk, because its upstream gradient is one number; the log-probabilities of GRPO have an
upstream gradient per token, so they keep their exponentials where these are few, and else compute
them again.

Shapes: N tokens, D model width, V vocabulary. With p = softmax(logits):
d(-log p[target]) / d logits = p - one_hot(target).
"""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from faisca.backend import KEPT

BLOCK = 16
"""numbers that are added one after the other, at most"""


def linear_cross_entropy(
    hidden_ND: mx.array, head_VD: mx.array, targets_N: mx.array, chunk: int, with_gradients: bool
) -> mx.array:
    """Summed -log p(target) in nats: float32 scalar. Negative targets are left out.

    Without gradients two thirds of the matrix products fall away.
    """
    head_VD = head_VD.astype(hidden_ND.dtype)
    if not with_gradients:
        return _loss(hidden_ND, head_VD, targets_N, chunk)

    @mx.custom_function
    def loss_and_gradients(hidden_ND: mx.array, head_VD: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        return _loss_and_gradients(hidden_ND, head_VD, targets_N, chunk)

    @loss_and_gradients.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        upstream, (_, d_hidden_ND, d_head_VD) = cotangents[0].astype(hidden_ND.dtype), outputs
        return upstream * d_hidden_ND, upstream * d_head_VD

    return loss_and_gradients(hidden_ND, head_VD)[0]


def linear_log_probs(
    hidden_ND: mx.array, head_VD: mx.array, targets_N: mx.array, temperature: float, chunk: int
) -> tuple[mx.array, mx.array]:
    """log p(target) and entropy (nats) of softmax(logits / temperature): float32 [N] each.

    Gradients flow through the log-probabilities only.
    """

    @mx.custom_function
    def log_probs(hidden_ND: mx.array, head_VD: mx.array) -> tuple[mx.array, ...]:
        return _log_probs_and_entropies(hidden_ND, head_VD, targets_N, temperature, chunk)

    @log_probs.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        (hidden_ND, head_VD), (_, _, peaks_N1, sums_N1, *kept) = primals, outputs
        scaled_N1 = (cotangents[0] / temperature)[:, None]
        return _log_probs_gradients(
            hidden_ND, head_VD, targets_N, peaks_N1, sums_N1, kept, scaled_N1, temperature, chunk
        )

    log_probs_N, entropies_N, *_ = log_probs(hidden_ND, head_VD.astype(hidden_ND.dtype))
    return log_probs_N, mx.stop_gradient(entropies_N)


def _loss(hidden_ND: mx.array, head_VD: mx.array, targets_N: mx.array, chunk: int) -> mx.array:
    losses: list[mx.array] = []
    for rows in _chunks(len(targets_N), chunk):
        hidden = mx.depends([hidden_ND[rows]], losses[-1:])[0] if losses else hidden_ND[rows]
        logits, target = (hidden @ head_VD.T).astype(mx.float32), targets_N[rows]
        picked = mx.take_along_axis(logits, mx.maximum(target, 0)[:, None], axis=1).squeeze(1)
        peak = logits.max(axis=1, keepdims=True)
        log_sums = peak.squeeze(1) + mx.log(_row_sums(mx.exp(logits - peak)))  # mx.logsumexp adds one by one
        losses.append(mx.where(target >= 0, log_sums - picked, 0.0))
    return _total(mx.concatenate(losses))


def _loss_and_gradients(
    hidden_ND: mx.array, head_VD: mx.array, targets_N: mx.array, chunk: int
) -> tuple[mx.array, mx.array, mx.array]:
    losses, d_hidden, d_head_VD = [], [], None
    valid_N1, target_N = (targets_N >= 0)[:, None].astype(hidden_ND.dtype), mx.maximum(targets_N, 0)
    for rows in _chunks(len(targets_N), chunk):
        hidden = hidden_ND[rows]
        if d_head_VD is not None:  # all of the last chunk first: what still waited would keep its logits alive
            hidden = mx.depends([hidden], [d_head_VD, d_hidden[-1], losses[-1]])[0]
        logits = hidden @ head_VD.T
        picked = mx.take_along_axis(logits, target_N[rows, None], axis=1).astype(mx.float32)
        peak = logits.max(axis=1, keepdims=True)
        exps = mx.exp(logits - peak)  # the one exponential a logit
        sums = _row_sums(exps.astype(mx.float32))[:, None]
        losses.append((peak + mx.log(sums) - picked) * valid_N1[rows])
        share = (valid_N1[rows] / sums).astype(hidden.dtype)  # p = exps / sums, applied to the narrow side
        d_hidden.append((exps @ head_VD) * share)
        d_head = exps.T @ (hidden * share)
        d_head_VD = d_head if d_head_VD is None else d_head_VD + d_head
    d_hidden_ND = mx.concatenate(d_hidden) - head_VD[target_N] * valid_N1
    assert d_head_VD is not None
    return _total(mx.concatenate(losses)), d_hidden_ND, d_head_VD.at[target_N].add(-hidden_ND * valid_N1)


def _log_probs_and_entropies(
    hidden_ND: mx.array, head_VD: mx.array, targets_N: mx.array, temperature: float, chunk: int
) -> tuple[mx.array, ...]:
    """After these two, for the gradient: each row's largest logit, its sum of exponentials, and those that are kept."""
    found: list[list[mx.array]] = []
    kept: list[mx.array] = []
    keep = len(targets_N) * len(head_VD) <= KEPT
    for rows in _chunks(len(targets_N), chunk):
        hidden = mx.depends([hidden_ND[rows]], found[-1])[0] if found else hidden_ND[rows]
        logits = _scaled_logits(hidden, head_VD, temperature)
        peak = logits.max(axis=1, keepdims=True)
        scores = logits - peak
        exps = mx.exp(scores)  # the one exponential a logit
        sums = _row_sums(exps)[:, None]
        log_p = mx.take_along_axis(scores, targets_N[rows, None], axis=1) - mx.log(sums)
        entropies = mx.log(sums) - _row_sums(exps * scores)[:, None] / sums
        found.append([log_p, entropies, peak, sums])
        if keep:
            kept.append(exps)
    log_probs_N1, entropies_N1, peaks_N1, sums_N1 = (mx.concatenate(parts) for parts in zip(*found, strict=True))
    return log_probs_N1.squeeze(1), entropies_N1.squeeze(1), peaks_N1, sums_N1, *kept


def _log_probs_gradients(
    hidden_ND: mx.array,
    head_VD: mx.array,
    targets_N: mx.array,
    peaks_N1: mx.array,
    sums_N1: mx.array,
    kept: list[mx.array],
    scaled_N1: mx.array,
    temperature: float,
    chunk: int,
) -> tuple[mx.array, mx.array]:
    d_hidden, d_head_VD = [], None
    shares_N1 = (scaled_N1 / sums_N1).astype(hidden_ND.dtype)  # p = exps / sums, on the narrow side
    shared_hidden_ND, scaled_N1 = hidden_ND * shares_N1, scaled_N1.astype(hidden_ND.dtype)
    for i, rows in enumerate(_chunks(len(targets_N), chunk)):
        hidden = hidden_ND[rows]
        if d_head_VD is not None:
            hidden = mx.depends([hidden], [d_head_VD, d_hidden[-1]])[0]
        exps = kept[i] if kept else mx.exp(_scaled_logits(hidden, head_VD, temperature) - peaks_N1[rows])
        exps = exps.astype(hidden.dtype)
        d_hidden.append(exps @ head_VD)
        d_head = exps.T @ shared_hidden_ND[rows]
        d_head_VD = -d_head if d_head_VD is None else d_head_VD - d_head
    assert d_head_VD is not None
    d_hidden_ND = head_VD[targets_N] * scaled_N1 - mx.concatenate(d_hidden) * shares_N1
    return d_hidden_ND, d_head_VD.at[targets_N].add(hidden_ND * scaled_N1)


def _scaled_logits(hidden_nD: mx.array, head_VD: mx.array, temperature: float) -> mx.array:
    return (hidden_nD @ head_VD.T).astype(mx.float32) / temperature


def _total(values: mx.array) -> mx.array:
    """The sum of all numbers: a scalar."""
    return _row_sums(values.flatten())


def _row_sums(values: mx.array) -> mx.array:
    """Sums over the last axis, [..., n] -> [...], added in blocks of blocks.

    MLX on the CPU adds one after the other, in few lanes, and so do some BLAS in a product with ones: 4e-4 off for
    50,257 equal numbers, 0.1 for ten million. Here each number passes ceil(log16 n) sums of at most 16, so that
    the error is at most 15 u ceil(log16 n) of the sum of magnitudes (u = 2^-24): 5.4e-6 for ten million.
    """
    while (size := values.shape[-1]) > BLOCK:
        whole = size - size % BLOCK
        blocks = values[..., :whole].reshape(*values.shape[:-1], -1, BLOCK).sum(axis=-1)
        rest = [values[..., whole:].sum(axis=-1, keepdims=True)] if size > whole else []
        values = mx.concatenate([blocks, *rest], axis=-1)
    return values.sum(axis=-1)


def _chunks(size: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, size)) for start in range(0, size, chunk))
