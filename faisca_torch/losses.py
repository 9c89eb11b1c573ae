"""Cross-entropy straight from hidden states, never holding all logits.

For 64 x 256 tokens and a vocabulary of 50,257 the logits are 3.3 GB, and a plain loss keeps
several copies. Here only `chunk` rows of logits are alive at a time. The gradients are computed
in the forward pass, chunk by chunk, because the upstream gradient is one number.

In bfloat16 the factors of every product are bfloat16. Logits, softmax, losses and whatever is added
up over chunks or positions is float32: CUDA has a float32 product of bfloat16 factors; elsewhere the
logits multiply the rounded factors in float32. The two products of the gradient round their results.

Shapes: N tokens, D model width, V vocabulary; n rows of a chunk. With p = softmax(logits):
d(-log p[target]) / d logits = p - one_hot(target).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from faisca_torch.model import GPT, Head


def project(hidden_nD: Tensor, head: Head) -> Tensor:
    """Logits [n, V], in float32: of hidden states and of the head rounded to their dtype."""
    logits_nV = hidden_nD.new_empty(len(hidden_nD), len(head.weight_VD), dtype=_wide(hidden_nD))
    return _squeeze(_project(hidden_nD, head.weight_VD, logits_nV), head.soft_cap)[0]


def summed_loss(model: GPT, hidden_ND: Tensor, targets_BT: Tensor, with_gradients: bool) -> Tensor:
    """Summed -log p(target) in nats of a model's final hidden states; negative targets are left out."""
    return linear_cross_entropy(hidden_ND, model.head, targets_BT.flatten(), model.runtime.loss_chunk, with_gradients)


def linear_cross_entropy(hidden_ND: Tensor, head: Head, targets_N: Tensor, chunk: int, with_gradients: bool) -> Tensor:
    """Summed -log p(target) in nats: float32 scalar. Negative targets are left out.

    Without gradients two thirds of the matrix products fall away.
    """
    return cast(Tensor, _LinearCrossEntropy.apply(hidden_ND, *head, targets_N, chunk, with_gradients))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        soft_cap: float,
        targets_N: Tensor,
        chunk: int,
        with_gradients: bool,
    ) -> Tensor:
        N, V = len(hidden_ND), len(head_VD)
        narrow_head_VD = head_VD.to(hidden_ND.dtype)
        losses_N, buffer = (
            torch.empty(*shape, dtype=_wide(hidden_ND), device=hidden_ND.device) for shape in ((N,), (min(chunk, N), V))
        )
        d_hidden_ND = torch.empty_like(hidden_ND) if with_gradients else None
        wanted = with_gradients and ctx.needs_input_grad[1]  # a frozen head has no gradient
        d_head_VD = torch.zeros_like(head_VD) if wanted else None
        for rows in _chunks(N, chunk):
            hidden, target, valid = hidden_ND[rows], targets_N[rows].clamp(min=0), targets_N[rows, None] >= 0
            logits, slope = _squeeze(_project(hidden, narrow_head_VD, buffer[: len(hidden)]), soft_cap)
            # Cross-entropy is log Σ exp(logits) - logits[target]; the largest is taken out first, or exp overflows.
            picked = logits.gather(1, target[:, None])
            peak = logits.amax(1, keepdim=True)
            exps = logits.sub_(peak).exp_()  # in place: the one pass over the chunk that costs
            sums = exps.sum(1, keepdim=True)
            losses_N[rows] = ((peak + sums.log() - picked) * valid).squeeze(1)
            # The upstream gradient is one number, so the gradient can be made now, while the exponentials are here.
            if d_hidden_ND is not None:
                softmax = _Softmax(exps.to(hidden.dtype), sums, target, valid, 1.0, slope)
                d_hidden_ND[rows] = _add_gradients(softmax, hidden, narrow_head_VD, d_head_VD)
        ctx.save_for_backward(d_hidden_ND, d_head_VD)
        return losses_N.sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden_ND, d_head_VD = ctx.saved_tensors
        d_head_VD = None if d_head_VD is None else d_head_VD * upstream
        return d_hidden_ND * upstream, d_head_VD, None, None, None, None


def _project(hidden_nD: Tensor, head_VD: Tensor, out_nV: Tensor) -> Tensor:
    """What `project` returns, in a buffer of its dtype."""
    head_VD = head_VD.to(hidden_nD.dtype)
    if hidden_nD.dtype == torch.bfloat16 and hidden_nD.device.type == "cuda":  # no other device has `out_dtype`
        return torch.mm(hidden_nD, head_VD.T, out_dtype=out_nV.dtype, out=out_nV)  # type: ignore[call-overload,no-any-return]
    return torch.mm(hidden_nD.to(out_nV.dtype), head_VD.to(out_nV.dtype).T, out=out_nV)


def _squeeze(logits_nV: Tensor, soft_cap: float) -> tuple[Tensor, Tensor | None]:
    """Logits in ± soft_cap, in place, and how steep the squeezing was there: 1 - tanh²; where it is 0, as they are."""
    if not soft_cap:
        return logits_nV, None
    logits_nV.div_(soft_cap).tanh_()
    return logits_nV.mul_(soft_cap), 1 - (logits_nV / soft_cap).square_()


class _Softmax(NamedTuple):
    """The softmax of a chunk's rows, p = exps / sums; how much a row and its one-hot count in the gradient."""

    exps_nV: Tensor
    sums_n1: Tensor
    target_n: Tensor
    weight_n1: Tensor
    hit_n1: Tensor | float
    slope_nV: Tensor | None
    """of the logits' soft cap"""


def _add_gradients(softmax: _Softmax, hidden_nD: Tensor, head_VD: Tensor, d_head_VD: Tensor | None) -> Tensor:
    """The gradient of hidden states [n, D]; adds that of these rows to the head's, and overwrites the exponentials.

    None for the head's: it is frozen, and a third of the products falls away.

    The division by the sums stands on the narrow side of the products. The head's gradient is a small
    difference of two large sums over positions, so the one-hot is subtracted before the product
    rounds: the exponentials become (p - one_hot) · sums.
    """
    exps_nV, sums_n1, target_n, weight_n1, hit_n1, slope_nV = softmax
    share_n1, picked_n1 = weight_n1 / sums_n1, target_n[:, None]
    if slope_nV is None:
        d_hidden_nD = (exps_nV @ head_VD) * share_n1 - head_VD[target_n] * (weight_n1 * hit_n1)
        if d_head_VD is None:  # nobody reads the errors
            return d_hidden_nD
    errors_nV = exps_nV.scatter_(1, picked_n1, (exps_nV.gather(1, picked_n1) - sums_n1 * hit_n1).to(exps_nV.dtype))
    if slope_nV is not None:
        d_hidden_nD = (errors_nV.mul_(slope_nV) @ head_VD) * share_n1
    if d_head_VD is None:
        return d_hidden_nD
    shared_hidden_nD = (hidden_nD * share_n1).to(exps_nV.dtype)
    if d_head_VD.dtype == exps_nV.dtype:
        d_head_VD.addmm_(errors_nV.T, shared_hidden_nD)
    else:
        d_head_VD.add_(errors_nV.T @ shared_hidden_nD)
    return d_hidden_nD


def _wide(hidden_nD: Tensor) -> torch.dtype:
    """What sums are kept in: float32, or the float64 in which tests check gradients."""
    return torch.promote_types(hidden_nD.dtype, torch.float32)


def _chunks(size: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, size, chunk))
