"""Cross-entropy and log-probabilities straight from hidden states, never holding all logits.

For 64 x 256 tokens and a vocabulary of 50,257 the logits are 3.3 GB, and a plain loss keeps
several copies. Here only `chunk` rows of logits are alive at a time. Cross-entropy computes its
gradients in the forward pass, chunk by chunk, because its upstream gradient is one number; the
log-probabilities of GRPO have an upstream gradient per token, so they keep their exponentials
where these are few, and else compute them again.

Shapes: N tokens, D model width, V vocabulary. With p = softmax(logits):
d(-log p[target]) / d logits = p - one_hot(target).
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from faisca.backend import KEPT


def linear_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int, with_gradients: bool
) -> Tensor:
    """Summed -log p(target) in nats: float32 scalar. Negative targets are left out.

    Without gradients two thirds of the matrix products fall away.
    """
    head_VD = head_VD.to(hidden_ND.dtype)
    return cast(Tensor, _LinearCrossEntropy.apply(hidden_ND, head_VD, targets_N, chunk, with_gradients))


def linear_log_probs(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy (nats) of softmax(logits / temperature): float32 [N] each.

    Gradients flow through the log-probabilities only.
    """
    return cast(
        tuple[Tensor, Tensor],
        _LinearLogProbs.apply(hidden_ND, head_VD.to(hidden_ND.dtype), targets_N, temperature, chunk),
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int, with_gradients: bool
    ) -> Tensor:
        N = len(hidden_ND)
        wide = _wide(hidden_ND)
        losses_N = torch.empty(N, dtype=wide, device=hidden_ND.device)
        d_hidden_ND = torch.empty_like(hidden_ND) if with_gradients else None
        d_head_VD = torch.zeros_like(head_VD) if with_gradients else None
        buffer = hidden_ND.new_empty(min(chunk, N), len(head_VD))
        for rows in _chunks(N, chunk):
            hidden, target, valid = hidden_ND[rows], targets_N[rows].clamp(min=0), targets_N[rows, None] >= 0
            logits = torch.mm(hidden, head_VD.T, out=buffer[: len(hidden)])
            picked = logits.gather(1, target[:, None]).to(wide)
            peak = logits.amax(1, keepdim=True)
            exps = logits.sub_(peak).exp_()  # in place: the one pass over the chunk that costs
            sums = exps.sum(1, keepdim=True, dtype=wide)
            losses_N[rows] = ((peak + sums.log() - picked) * valid).squeeze(1)
            if d_hidden_ND is not None and d_head_VD is not None:
                share = (valid / sums).to(hidden.dtype)  # p = exps / sums, applied to the narrow side
                torch.mm(exps, head_VD, out=d_hidden_ND[rows])
                d_hidden_ND[rows].mul_(share).sub_(head_VD[target] * valid)
                d_head_VD.addmm_(exps.T, hidden * share)
                d_head_VD.index_add_(0, target, -hidden * valid)
        ctx.save_for_backward(d_hidden_ND, d_head_VD)
        return losses_N.sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        d_hidden_ND, d_head_VD = ctx.saved_tensors
        return d_hidden_ND * upstream.to(d_hidden_ND.dtype), d_head_VD * upstream.to(d_head_VD.dtype), None, None, None


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        (N, V), wide = (len(hidden_ND), len(head_VD)), _wide(hidden_ND)
        log_probs_N, entropies_N, peaks_N, sums_N = (
            torch.empty(N, dtype=wide, device=hidden_ND.device) for _ in range(4)
        )
        keep = N * V <= KEPT and any(ctx.needs_input_grad)
        buffer = hidden_ND.new_empty(min(chunk, N), V)
        exps_buffer = torch.empty(N if keep else len(buffer), V, dtype=wide, device=hidden_ND.device)
        for rows in _chunks(N, chunk):
            scores, peaks_N[rows] = _scores(hidden_ND[rows], head_VD, temperature, buffer)
            exps = torch.exp(scores, out=exps_buffer[rows] if keep else exps_buffer[: len(scores)])
            sums_N[rows] = sums = exps.sum(1)
            log_probs_N[rows] = scores.gather(1, targets_N[rows, None]).squeeze(1) - sums.log()
            entropies_N[rows] = sums.log() - torch.linalg.vecdot(exps, scores) / sums
        ctx.save_for_backward(hidden_ND, head_VD, targets_N, peaks_N, sums_N, exps_buffer if keep else None)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropies_N)
        return log_probs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, upstream_N: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        hidden_ND, head_VD, targets_N, peaks_N, sums_N, kept_NV = ctx.saved_tensors
        scaled_N1 = (upstream_N / ctx.temperature)[:, None]
        shares_N1 = (scaled_N1 / sums_N[:, None]).to(hidden_ND.dtype)  # p = exps / sums, on the narrow side
        shared_hidden_ND, scaled_N1 = hidden_ND * shares_N1, scaled_N1.to(hidden_ND.dtype)
        d_hidden_ND, d_head_VD = torch.empty_like(hidden_ND), torch.zeros_like(head_VD)
        buffer = hidden_ND.new_empty(min(ctx.chunk, len(hidden_ND)), len(head_VD)) if kept_NV is None else None
        for rows in _chunks(len(hidden_ND), ctx.chunk):
            if buffer is None:
                exps = kept_NV[rows]
            else:
                exps = _scores(hidden_ND[rows], head_VD, ctx.temperature, buffer, peaks_N[rows])[0].exp_()
            exps = exps.to(hidden_ND.dtype)
            torch.mm(exps, head_VD, out=d_hidden_ND[rows])
            d_head_VD.addmm_(exps.T, shared_hidden_ND[rows], alpha=-1)
        d_hidden_ND = head_VD[targets_N] * scaled_N1 - d_hidden_ND * shares_N1
        return d_hidden_ND, d_head_VD.index_add_(0, targets_N, hidden_ND * scaled_N1), None, None, None


def _scores(
    hidden_nD: Tensor, head_VD: Tensor, temperature: float, buffer_nV: Tensor, peaks_n: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits over the temperature, the largest of each row 0, in the buffer; and what was the largest."""
    logits = torch.mm(hidden_nD, head_VD.T, out=buffer_nV[: len(hidden_nD)]).to(_wide(hidden_nD))
    peaks_n = logits.amax(1) / temperature if peaks_n is None else peaks_n
    return torch.add(-peaks_n[:, None], logits, alpha=1 / temperature, out=logits), peaks_n


def _wide(hidden_nD: Tensor) -> torch.dtype:
    """What sums are kept in: float32, or the float64 in which tests check gradients."""
    return torch.promote_types(hidden_nD.dtype, torch.float32)


def _chunks(size: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, size, chunk))
