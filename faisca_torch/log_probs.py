"""Log-probabilities of the tokens of a text, and entropies, straight from hidden states, as in `losses`.

GRPO's have an upstream gradient per token, so nothing can be made in the forward pass: the exponentials are
kept where they are few, and else computed again, chunk by chunk.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from faisca.backend import KEPT_EXPONENTIALS, check_temperature
from faisca_torch.device import to_device
from faisca_torch.losses import _add_gradients, _chunks, _project, _Softmax, _squeeze, _wide
from faisca_torch.model import GPT, Head


def token_log_probs(*, model: GPT, tokens: np.ndarray, temperature: float, places: np.ndarray | None) -> np.ndarray:
    """Token ids [B, T] -> log-probability of each token after the first, float32 [B, T-1]; 0 outside `places`."""
    check_temperature(temperature)
    places = np.arange(tokens[:, 1:].size) if places is None else places
    if not places.size:
        return np.zeros(tokens[:, 1:].shape, np.float32)
    model.eval()
    with torch.no_grad():
        log_probs, _ = shifted_log_probs(model, to_device(model, tokens), to_device(model, places), temperature, 0)
        return log_probs.cpu().numpy()


def shifted_log_probs(
    model: GPT, tokens_BT: Tensor, places_N: Tensor, temperature: float, with_gradients: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token after the first, and the entropy there: float32 [B, T-1] each; 0 elsewhere."""
    targets = tokens_BT[:, 1:]
    hidden_ND = model(tokens_BT[:, :-1]).flatten(0, 1).index_select(0, places_N)
    log_probs_N, entropies_N = linear_log_probs(
        hidden_ND, model.head, targets.flatten()[places_N], temperature, model.runtime.loss_chunk, with_gradients
    )
    zeros = log_probs_N.new_zeros(targets.numel())
    log_probs, entropies = (zeros.index_copy(0, places_N, found) for found in (log_probs_N, entropies_N))
    return log_probs.view(targets.shape), entropies.view(targets.shape)


def linear_log_probs(
    hidden_ND: Tensor, head: Head, targets_N: Tensor, temperature: float, chunk: int, with_gradients: int
) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy (nats) of softmax(logits / temperature): float32 [N] each.

    `with_gradients`: 0 none, and no exponentials are kept; 1 through the log-probabilities; 2 through entropies too.
    """
    most_kept = KEPT_EXPONENTIALS if with_gradients and not head.soft_cap else 0
    how = (head.soft_cap, temperature, chunk, most_kept, with_gradients == 2)
    found = _LinearLogProbs.apply(hidden_ND, head.weight_VD, targets_N, how)
    return cast(tuple[Tensor, Tensor], found)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, how: tuple[float, float, int, int, bool]
    ) -> tuple[Tensor, Tensor]:
        soft_cap, temperature, chunk, most_kept, with_entropy = how
        (N, V), wide = (len(hidden_ND), len(head_VD)), _wide(hidden_ND)
        narrow_head_VD = head_VD.to(hidden_ND.dtype)
        log_probs_N, entropies_N, peaks_N, sums_N = (
            torch.empty(N, dtype=wide, device=hidden_ND.device) for _ in range(4)
        )
        buffer = hidden_ND.new_empty(min(chunk, N), V, dtype=wide)
        exps_buffer = torch.empty_like(buffer)
        kept_NV = hidden_ND.new_empty(N, V) if most_kept >= N * V else None
        for rows in _chunks(N, chunk):
            hidden, target = hidden_ND[rows], targets_N[rows]
            logits, _ = _squeeze(_project(hidden, narrow_head_VD, buffer[: len(hidden)]), soft_cap)
            peaks_N[rows] = logits.amax(1) / temperature
            scores = _scores(logits, temperature, peaks_N[rows])
            exps = torch.exp(scores, out=exps_buffer[: len(scores)])
            sums_N[rows] = sums = exps.sum(1)
            log_probs_N[rows] = scores.gather(1, target[:, None]).squeeze(1) - sums.log()
            # Entropy is log Σ exp(s) - Σ p·s, which needs no logarithm of p.
            entropies_N[rows] = sums.log() - scores.mul_(exps).sum(1) / sums
            if kept_NV is not None:
                kept_NV[rows] = exps
        ctx.save_for_backward(hidden_ND, head_VD, targets_N, peaks_N, sums_N, entropies_N, kept_NV)
        ctx.soft_cap, ctx.temperature, ctx.chunk, ctx.with_entropy = soft_cap, temperature, chunk, with_entropy
        if not with_entropy:
            ctx.mark_non_differentiable(entropies_N)
        return log_probs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, *upstream_N: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_ND, head_VD, targets_N, peaks_N, sums_N, entropies_N, kept_NV = ctx.saved_tensors
        narrow_head_VD = head_VD.to(hidden_ND.dtype)
        weights_N1, entropy_weights_N1 = (-(upstream / ctx.temperature)[:, None] for upstream in upstream_N)
        d_hidden_ND = torch.empty_like(hidden_ND)
        d_head_VD = torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None  # a frozen head needs none
        like = peaks_N if kept_NV is None else kept_NV
        buffer = like.new_empty(min(ctx.chunk, len(hidden_ND)), len(head_VD))
        for rows in _chunks(len(hidden_ND), ctx.chunk):
            hidden, slope = hidden_ND[rows], None
            # Kept from the forward pass, or computed again, chunk by chunk.
            if kept_NV is not None:
                exps = buffer[: len(hidden)].copy_(kept_NV[rows])  # what is kept stays as it is
            else:
                logits, slope = _squeeze(_project(hidden, narrow_head_VD, buffer[: len(hidden)]), ctx.soft_cap)
                exps = _scores(logits, ctx.temperature, peaks_N[rows]).exp_()
            sums, weights = sums_N[rows, None], weights_N1[rows]
            hit: Tensor | float = 1.0
            if ctx.with_entropy:  # d entropy / d scores = -p · (log p + entropy)
                log_p = exps.to(sums.dtype).clamp(min=1e-37).div_(sums).log_()
                exps = log_p.add_(entropies_N[rows, None]).mul_(entropy_weights_N1[rows]).add_(weights).mul_(exps)
                weights, hit = torch.ones_like(weights), weights
            softmax = _Softmax(exps.to(hidden.dtype), sums, targets_N[rows], weights, hit, slope)
            d_hidden_ND[rows] = _add_gradients(softmax, hidden, narrow_head_VD, d_head_VD)
        return d_hidden_ND, d_head_VD, None, None


def _scores(logits_nV: Tensor, temperature: float, peaks_n: Tensor) -> Tensor:
    """Logits over the temperature, the largest of each row 0, in place."""
    return torch.add(-peaks_n[:, None], logits_nV, alpha=1 / temperature, out=logits_nV)
