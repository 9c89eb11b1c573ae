"""Cross-entropy straight from hidden states, never holding all logits.

For 64 x 256 tokens and a vocabulary of 50,257 the logits are 3.3 GB, and a plain loss keeps
several copies. Here only `chunk` rows of logits are alive at a time: `mx.depends` makes each
chunk wait for the one before it. The gradients are computed in the forward pass, chunk by chunk, because
the upstream gradient is one number. On Metal and CUDA a chunk is one fused kernel, `mx.fast.cross_entropy`.

In bfloat16 the factors of every product are bfloat16. Logits, softmax, losses and whatever is added
up over chunks or positions is float32: MLX has no float32 product of bfloat16 factors, so the logits
multiply the rounded factors in float32, and the two products of the gradient round their results.

Shapes: N tokens, D model width, V vocabulary; n rows of a chunk. With p = softmax(logits):
d(-log p[target]) / d logits = p - one_hot(target).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from faisca_mlx.model import GPT, Head
from faisca_mlx.sums import row_sums, total


def project(hidden_nD: mx.array, head: Head) -> mx.array:
    """Logits [n, V], in float32: of hidden states and of the head rounded to their dtype."""
    return _squeeze(_project(hidden_nD, head.weight_VD), head.soft_cap)[0]


def _project(hidden_nD: mx.array, head_VD: mx.array) -> mx.array:
    return hidden_nD.astype(mx.float32) @ head_VD.astype(hidden_nD.dtype).astype(mx.float32).T


def summed_loss(model: GPT, hidden_ND: mx.array, targets_BT: mx.array, with_gradients: bool) -> mx.array:
    """Summed -log p(target) in nats of a model's final hidden states; negative targets are left out."""
    runtime, targets_N = model.runtime, targets_BT.flatten()
    return linear_cross_entropy(
        hidden_ND, model.head, targets_N, runtime.loss_chunk, with_gradients, runtime.fused_loss
    )


def linear_cross_entropy(
    hidden_ND: mx.array, head: Head, targets_N: mx.array, chunk: int, with_gradients: bool, fused: bool = False
) -> mx.array:
    """Summed -log p(target) in nats: float32 scalar. Negative targets are left out.

    Without gradients two thirds of the matrix products fall away. `fused`: by MLX's kernel within each chunk.
    """
    if not with_gradients:
        return _loss(hidden_ND, head, targets_N, chunk, fused)

    @mx.custom_function
    def loss_and_gradients(hidden_ND: mx.array, head_VD: mx.array) -> tuple[mx.array, ...]:
        return _loss_and_gradients(hidden_ND, head._replace(weight_VD=head_VD), targets_N, chunk, fused)

    @loss_and_gradients.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        upstream, (_, d_hidden_ND, *d_head) = cotangents[0], outputs
        # of a frozen head nobody asks for the gradient, so these zeros are never made
        d_head_VD = upstream * d_head[0] if d_head else mx.zeros_like(primals[1])
        return (upstream * d_hidden_ND).astype(hidden_ND.dtype), d_head_VD

    return loss_and_gradients(hidden_ND, head.weight_VD)[0]


def _loss(hidden_ND: mx.array, head: Head, targets_N: mx.array, chunk: int, fused: bool) -> mx.array:
    losses: list[mx.array] = []
    for rows in _chunks(len(targets_N), chunk):
        hidden = mx.depends([hidden_ND[rows]], losses[-1:])[0] if losses else hidden_ND[rows]
        logits, target = project(hidden, head), mx.maximum(targets_N[rows], 0)
        if fused:
            found = mx.fast.cross_entropy(logits, target)
        else:
            picked = mx.take_along_axis(logits, target[:, None], axis=1).squeeze(1)
            peak = logits.max(axis=1, keepdims=True)
            log_sums = peak.squeeze(1) + mx.log(row_sums(mx.exp(logits - peak)))  # mx.logsumexp adds one by one
            found = log_sums - picked
        losses.append(mx.where(targets_N[rows] >= 0, found, 0.0))
    return total(mx.concatenate(losses))


def _loss_and_gradients(
    hidden_ND: mx.array, head: Head, targets_N: mx.array, chunk: int, fused: bool
) -> tuple[mx.array, ...]:
    """The loss, the gradient of hidden states, and the head's unless that is frozen."""
    losses: list[mx.array] = []
    d_hidden: list[mx.array] = []
    d_head_VD = None if head.frozen else mx.zeros_like(head.weight_VD)
    chunk_gradients = _fused_gradients if fused else _explicit_gradients
    for rows in _chunks(len(targets_N), chunk):
        hidden = hidden_ND[rows]
        if losses:  # all of the last chunk first: what still waited would keep its logits alive
            hidden = mx.depends([hidden], [d_hidden[-1], losses[-1], *_given(d_head_VD)])[0]
        # The upstream gradient is one number, so the gradient can be made now, while the logits are here.
        loss_n1, d_rows, d_head_VD = chunk_gradients(hidden, head, targets_N[rows], d_head_VD)
        losses.append(loss_n1)
        d_hidden.append(d_rows)
    return total(mx.concatenate(losses)), mx.concatenate(d_hidden), *_given(d_head_VD)


def _explicit_gradients(
    hidden_nD: mx.array, head: Head, targets_n: mx.array, d_head_VD: mx.array | None
) -> tuple[mx.array, mx.array, mx.array | None]:
    """Losses [n, 1] of a chunk, its gradient of hidden states, and the head's with that of these rows added."""
    logits, slope = _squeeze(_project(hidden_nD, head.weight_VD), head.soft_cap)
    target, valid_n1 = mx.maximum(targets_n, 0), targets_n[:, None] >= 0
    # Cross-entropy is log Σ exp(logits) - logits[target]; the largest is taken out first, or exp overflows.
    picked = mx.take_along_axis(logits, target[:, None], axis=1)
    peak = logits.max(axis=1, keepdims=True)
    exps = mx.exp(logits - peak)  # the one exponential a logit
    sums = row_sums(exps)[:, None]
    softmax = _Softmax(exps.astype(hidden_nD.dtype), sums, target, valid_n1, 1.0, slope)
    return (peak + mx.log(sums) - picked) * valid_n1, *_add_gradients(softmax, hidden_nD, head.weight_VD, d_head_VD)


def _fused_gradients(
    hidden_nD: mx.array, head: Head, targets_n: mx.array, d_head_VD: mx.array | None
) -> tuple[mx.array, mx.array, mx.array | None]:
    """The same by MLX's kernel, which knows no target that is left out: its upstream gradient there is 0."""
    target, valid_n = mx.maximum(targets_n, 0), targets_n >= 0

    def losses_of(logits_nV: mx.array) -> mx.array:
        return mx.fast.cross_entropy(_squeeze(logits_nV, head.soft_cap)[0], target)

    logits_nV = _project(hidden_nD, head.weight_VD)
    upstream_n = valid_n.astype(mx.float32)
    (losses_n,), (d_logits_nV,) = mx.vjp(losses_of, [logits_nV], [upstream_n])
    errors_nV = d_logits_nV.astype(hidden_nD.dtype)
    d_hidden_nD = errors_nV @ head.weight_VD.astype(hidden_nD.dtype)
    if d_head_VD is not None:
        d_head_VD = d_head_VD + (errors_nV.T @ hidden_nD).astype(mx.float32)
    return mx.where(valid_n, losses_n, 0.0)[:, None], d_hidden_nD, d_head_VD


class _Softmax(NamedTuple):
    """The softmax of a chunk's rows, p = exps / sums; how much a row and its one-hot count in the gradient."""

    exps_nV: mx.array
    sums_n1: mx.array
    target_n: mx.array
    weight_n1: mx.array
    hit_n1: mx.array | float
    slope_nV: mx.array | None
    """of the logits' soft cap"""


def _add_gradients(
    softmax: _Softmax, hidden_nD: mx.array, head_VD: mx.array, d_head_VD: mx.array | None
) -> tuple[mx.array, mx.array | None]:
    """The gradient of hidden states [n, D], and the head's with that of these rows added; float32.

    None for the head's: it is frozen, and a third of the products falls away.

    The division by the sums stands on the narrow side of the products. The head's gradient is a small
    difference of two large sums over positions. In bfloat16 the one-hot is therefore subtracted before the
    product rounds: the exponentials become (p - one_hot) · sums. In float32 it is subtracted afterwards,
    which spares a copy of the chunk: a seventh of the loss's time at a vocabulary of 50,257.
    """
    exps_nV, sums_n1, target_n, weight_n1, hit_n1, slope_nV = softmax
    share_n1, picked_n1 = weight_n1 / sums_n1, target_n[:, None]
    narrow_VD = head_VD.astype(exps_nV.dtype)
    shared_hidden_nD = (hidden_nD * share_n1).astype(exps_nV.dtype)
    if slope_nV is None:
        d_hidden_nD = (exps_nV @ narrow_VD) * share_n1 - narrow_VD[target_n] * (weight_n1 * hit_n1)
        if d_head_VD is None:
            return d_hidden_nD, None
        if exps_nV.dtype == mx.float32:
            d_head_VD = d_head_VD + exps_nV.T @ shared_hidden_nD
            return d_hidden_nD, d_head_VD.at[target_n].add(-hidden_nD * (weight_n1 * hit_n1))
    error_n1 = mx.take_along_axis(exps_nV, picked_n1, axis=1) - sums_n1 * hit_n1
    errors_nV = mx.put_along_axis(exps_nV, picked_n1, error_n1.astype(exps_nV.dtype), axis=1)
    if slope_nV is not None:
        errors_nV = (errors_nV * slope_nV).astype(exps_nV.dtype)
        d_hidden_nD = (errors_nV @ narrow_VD) * share_n1
        if d_head_VD is None:
            return d_hidden_nD, None
    return d_hidden_nD, d_head_VD + (errors_nV.T @ shared_hidden_nD).astype(mx.float32)


def _squeeze(logits_nV: mx.array, soft_cap: float) -> tuple[mx.array, mx.array | None]:
    """Logits in ± soft_cap, and how steep the squeezing was there: 1 - tanh²; where it is 0, as they are."""
    if not soft_cap:
        return logits_nV, None
    tanh_nV = mx.tanh(logits_nV / soft_cap)
    return soft_cap * tanh_nV, 1 - tanh_nV.square()


def _given(d_head_VD: mx.array | None) -> list[mx.array]:
    return [] if d_head_VD is None else [d_head_VD]


def _chunks(size: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, size)) for start in range(0, size, chunk))
