"""A mixture of experts (Shazeer et al. 2017): feed-forward layers, of which a router picks a few for each token.

Rows are sorted by expert, so that an expert multiplies all of its tokens together. No token is dropped, however many
want the same expert. The router computes in float32. MLX's `gather_mm` multiplies blocks of rows, each with its
expert's matrix: a GPU has a kernel for sorted rows one by one, and the CPU wants BLAS to have many at once, so there
an expert's last block is filled up with rows that nobody reads. Shapes never depend on what the router picks.

Shapes: N tokens, D model width, E experts, S experts a token, R rows sorted by expert, P blocks of rows, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from faisca.config import ModelConfig

LARGEST_BLOCK = 64
"""rows of a block on the CPU"""


class _Groups(NamedTuple):
    """Which row is whose, and which expert's."""

    place_NS: mx.array
    """the row of each token's each expert"""
    source_R: mx.array
    """the inverse: a token's number · S + that of its expert among the token's; N · S where nobody reads the row"""
    expert_P: mx.array
    """of each block"""
    rows_E2: mx.array
    """the first row of each expert, and the one after its last"""


class ExpertLinear(nn.Module):
    """A matrix an expert, for rows that are sorted by expert."""

    def __init__(self, num_experts: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        assert not bias, "experts have no biases"
        self.weight = mx.zeros((num_experts, outputs, inputs))

    def __call__(self, x_RD: mx.array, groups: _Groups) -> mx.array:
        product = partial(_grouped_product, groups)
        product_RD = product(x_RD, self.weight.astype(x_RD.dtype))
        return product_RD + self.lora(x_RD, product, self.weight, product_RD) if "lora" in self else product_RD


class Experts(nn.Module):
    """Σ weight · expert(x) over the experts that the router picks, and the shared expert's output where there is one.

    Returns that, and the router's logits, float32 [N, E].
    """

    def __init__(self, config: ModelConfig, feed_forward: Callable[..., Any]) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(config.dim, config.num_experts, bias=False)
        self.experts = feed_forward(config, config.expert_width, partial(ExpertLinear, config.num_experts))
        if config.shared_expert_dim:
            self.shared = feed_forward(config, config.shared_expert_dim)

    def __call__(self, x_BTD: mx.array) -> tuple[mx.array, list[mx.array]]:
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.router(x_ND.astype(self.router.weight.dtype))
        chosen_NS = choose(logits_NE, self.config.experts_per_token)
        weights_NS = mx.take_along_axis(mx.softmax(logits_NE, axis=-1), chosen_NS, axis=1)
        if self.config.normalise_experts:
            weights_NS = weights_NS / weights_NS.sum(axis=-1, keepdims=True)
        # Each token once for each of its experts, sorted by expert; and back to the tokens' order.
        groups = _groups(chosen_NS, self.config.num_experts)
        y_RD, _ = self.experts(_spread(x_ND, groups), groups)
        mixed_ND = (_collect(y_RD, groups) * weights_NS[..., None]).sum(axis=1)
        mixed_BTD = mixed_ND.astype(x_BTD.dtype).reshape(x_BTD.shape)
        return mixed_BTD + self.shared(x_BTD)[0] if "shared" in self else mixed_BTD, [logits_NE]


def choose(logits_NE: mx.array, count: int) -> mx.array:
    """The experts of each token, [N, count]: largest logit first, and of equal ones the expert of lower number."""
    left_NE, chosen, experts_E = mx.stop_gradient(logits_NE), [], mx.arange(logits_NE.shape[1])
    for _ in range(count):  # of equal numbers, argmax takes the first
        chosen.append(left_NE.argmax(axis=1, keepdims=True))
        left_NE = mx.where(experts_E == chosen[-1], -mx.inf, left_NE)
    return mx.concatenate(chosen, axis=1)


def router_loss(
    routed: list[mx.array], config: ModelConfig, share: float
) -> tuple[mx.array | float, dict[str, mx.array]]:
    """What routers add to the loss, from their logits [N, E] a layer; and what a trainer watches.

    Both for a micro-batch that is this share of the optimiser step, to be added up: the step's is their mean.
    Means over the layers of `balance_loss` = E · Σ f · P (Fedus et al. 2022), f being an expert's share of the choices
    and P its mean probability, 1 where all is even, and of `router_z_loss` = mean (log Σ exp logits)² (Zoph et al.
    2022). `expert_load_max` is the busiest expert's load, 1 being an even one; `dropped_share` is of choices.
    """
    if not routed:
        return 0.0, {}
    logits_LNE, (E, S) = mx.stack(routed), (config.num_experts, config.experts_per_token)
    chosen_LNS = choose(logits_LNE.flatten(0, 1), S).reshape(*logits_LNE.shape[:2], S)
    counts_LE = (chosen_LNS[..., None] == mx.arange(E)).sum(axis=(1, 2))
    load_LE, probs_LNE = counts_LE / chosen_LNS[0].size, mx.softmax(logits_LNE, axis=-1)
    balance = E * (load_LE * probs_LNE.mean(axis=1)).sum(axis=-1).mean()
    sums_LN = mx.logsumexp(logits_LNE, axis=-1)
    z_loss = sums_LN.square().mean()
    watched = {
        "balance_loss": balance,
        "router_z_loss": z_loss,
        "expert_load_max": E * load_LE.max(axis=-1).mean(),
        "router_entropy": (sums_LN - (probs_LNE * logits_LNE).sum(axis=-1)).mean(),
        "dropped_share": 1 - counts_LE.sum() / chosen_LNS.size,
    }
    added = config.balance_weight * balance + config.router_z_weight * z_loss
    return share * added, {name: share * mx.stop_gradient(value) for name, value in watched.items()}


def _groups(chosen_NS: mx.array, num_experts: int) -> _Groups:
    """Every expert's rows begin with a block."""
    chosen, experts_E = chosen_NS.flatten(), mx.arange(num_experts)
    block = 1 if _on_gpu() else min(LARGEST_BLOCK, max(1, chosen.size // (4 * num_experts)))
    blocks = (chosen.size + num_experts * (block - 1)) // block  # at most, whatever is picked
    counts_E = (chosen[:, None] == experts_E).sum(axis=0)
    room_E = (counts_E + block - 1) // block * block
    ends_E = room_E.cumsum()
    starts_E = ends_E - room_E
    # A choice's number among all that are sorted by expert, and what was left empty before its expert.
    empty_E = starts_E - (counts_E.cumsum() - counts_E)
    place = mx.argsort(mx.argsort(chosen)) + empty_E[chosen]
    source_R = mx.full(blocks * block, chosen.size)
    source_R[place] = mx.arange(chosen.size)
    expert_P = (ends_E <= mx.arange(0, blocks * block, block)[:, None]).sum(axis=1)
    rows_E2 = mx.stack([starts_E, ends_E], axis=1).astype(mx.uint32)
    return _Groups(place.reshape(chosen_NS.shape), source_R, mx.minimum(expert_P, num_experts - 1), rows_E2)


def _grouped_product(groups: _Groups, x_RD: mx.array, weight: mx.array) -> mx.array:
    """Each expert's rows times its matrix of the stack [E, outputs, D]."""

    @mx.custom_function
    def product(x_RD: mx.array, weight: mx.array) -> mx.array:
        return _by_blocks(x_RD, weight.swapaxes(1, 2), groups.expert_P)

    @product.vjp
    def gradients(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, mx.array]:
        x_RD, weight = primals
        # MLX's own gradient of the matrices would hold one a block.
        d_weight = mx.segmented_mm(*_multipliable(cotangent.T, x_RD), groups.rows_E2)
        return _by_blocks(cotangent, weight, groups.expert_P), d_weight.astype(weight.dtype)

    return product(x_RD, weight)


def _by_blocks(x_RD: mx.array, matrices: mx.array, expert_P: mx.array) -> mx.array:
    """Each block of rows times the matrix [D, ·] of its expert."""
    x_PbD, matrices = _multipliable(x_RD.reshape(len(expert_P), -1, x_RD.shape[1]), matrices)
    y_PbD = mx.gather_mm(x_PbD, matrices, rhs_indices=expert_P, sorted_indices=True)
    return y_PbD.flatten(0, 1).astype(x_RD.dtype)


def _multipliable(*factors: mx.array) -> tuple[mx.array, ...]:
    """Factors that the device's grouped products take: the CPU's are of float32 only, whatever was rounded before."""
    return factors if _on_gpu() else tuple(factor.astype(mx.float32) for factor in factors)


def _on_gpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.gpu))


def _spread(x_ND: mx.array, groups: _Groups) -> mx.array:
    """Tokens as rows, [R, D]; its gradient gathers, for to scatter is slow. What nobody reads holds some token."""

    @mx.custom_function
    def spread(x_ND: mx.array) -> mx.array:
        return x_ND[mx.minimum(groups.source_R // groups.place_NS.shape[1], len(x_ND) - 1)]

    @spread.vjp
    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent[groups.place_NS].sum(axis=1)

    return spread(x_ND)


def _collect(y_RD: mx.array, groups: _Groups) -> mx.array:
    """Rows as they belong to tokens, [N, S, D]."""

    @mx.custom_function
    def collect(y_RD: mx.array) -> mx.array:
        return y_RD[groups.place_NS]

    @collect.vjp
    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        read_R1 = (groups.source_R < groups.place_NS.size)[:, None]
        rows_RD = cotangent.flatten(0, 1)[mx.minimum(groups.source_R, groups.place_NS.size - 1)]
        return mx.where(read_R1, rows_RD, 0.0)

    return collect(y_RD)
