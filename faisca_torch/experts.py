"""A mixture of experts (Shazeer et al. 2017): feed-forward layers, of which a router picks a few for each token.

Rows are sorted by expert, so that an expert multiplies all of its tokens in one product. No token is dropped, however
many want the same expert. The router computes in float32; on CUDA the experts' products are torch's grouped one.

Shapes: N tokens, D model width, E experts, S experts a token, R = N·S rows sorted by expert, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faisca.config import ModelConfig
from faisca_torch.lora import LoRA


class ExpertLinear(nn.Module):
    """A matrix an expert, for rows that are sorted by expert; `groups` is where each expert's rows end, int32 [E]."""

    def __init__(self, num_experts: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        assert not bias, "experts have no biases"
        self.weight = nn.Parameter(torch.empty(num_experts, outputs, inputs))

    lora: LoRA  # where `adapt` puts one

    def forward(self, x_RD: Tensor, groups: Tensor) -> Tensor:
        product = partial(_grouped_product, groups)
        product_RD = product(x_RD, self.weight.to(x_RD.dtype))
        return product_RD + self.lora(x_RD, product, self.weight, product_RD) if hasattr(self, "lora") else product_RD


class Experts(nn.Module):
    """Σ weight · expert(x) over the experts that the router picks, and the shared expert's output where there is one.

    Returns that, and the router's logits, float32 [N, E].
    """

    def __init__(self, config: ModelConfig, feed_forward: Callable[..., Any]) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(config.dim, config.num_experts, bias=False)
        self.experts = feed_forward(config, config.expert_width, partial(ExpertLinear, config.num_experts))
        self.shared = feed_forward(config, config.shared_expert_dim) if config.shared_expert_dim else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, list[Tensor]]:
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.router(x_ND.to(self.router.weight.dtype))
        chosen_NS = choose(logits_NE, self.config.experts_per_token)
        weights_NS = logits_NE.softmax(-1).gather(1, chosen_NS)
        if self.config.normalise_experts:
            weights_NS = weights_NS / weights_NS.sum(-1, keepdim=True)
        # Each token once for each of its experts, sorted by expert; and back to the tokens' order.
        expert_R, order_R = chosen_NS.flatten().sort(stable=True)
        ends_E = torch.searchsorted(expert_R, torch.arange(len(self.router.weight), device=x_ND.device), right=True)
        copies_RD = x_ND[:, None].expand(-1, chosen_NS.shape[1], -1).flatten(0, 1)
        y_RD, _ = self.experts(copies_RD[order_R], ends_E.int())
        y_NSD = y_RD[order_R.argsort()].unflatten(0, chosen_NS.shape)
        mixed_BTD = (y_NSD * weights_NS[..., None]).sum(1).to(x_BTD.dtype).view(x_BTD.shape)
        return mixed_BTD if self.shared is None else mixed_BTD + self.shared(x_BTD)[0], [logits_NE]


def choose(logits_NE: Tensor, count: int) -> Tensor:
    """The experts of each token, [N, count]: largest logit first, and of equal ones the expert of lower number."""
    return logits_NE.detach().sort(dim=-1, descending=True, stable=True).indices[:, :count]


def router_loss(routed: list[Tensor], config: ModelConfig, share: float) -> tuple[Tensor | float, dict[str, Tensor]]:
    """What routers add to the loss, from their logits [N, E] a layer; and what a trainer watches.

    Both for a micro-batch that is this share of the optimiser step, to be added up: the step's is their mean.
    Means over the layers of `balance_loss` = E · Σ f · P (Fedus et al. 2022), f being an expert's share of the choices
    and P its mean probability, 1 where all is even, and of `router_z_loss` = mean (log Σ exp logits)² (Zoph et al.
    2022). `expert_load_max` is the busiest expert's load, 1 being an even one; `dropped_share` is of choices.
    """
    if not routed:
        return 0.0, {}
    logits_LNE, (E, S) = torch.stack(routed), (config.num_experts, config.experts_per_token)
    chosen_LNS = choose(logits_LNE.flatten(0, 1), S).view(*logits_LNE.shape[:2], S)
    counts_LE = torch.zeros_like(logits_LNE).scatter(-1, chosen_LNS, 1.0).sum(1)
    load_LE, probs_LNE = counts_LE / chosen_LNS[0].numel(), logits_LNE.softmax(-1)
    balance = E * (load_LE * probs_LNE.mean(1)).sum(-1).mean()
    sums_LN = logits_LNE.logsumexp(-1)
    z_loss = sums_LN.square().mean()
    watched = {
        "balance_loss": balance,
        "router_z_loss": z_loss,
        "expert_load_max": E * load_LE.amax(-1).mean(),
        "router_entropy": (sums_LN - (probs_LNE * logits_LNE).sum(-1)).mean(),
        "dropped_share": 1 - counts_LE.sum() / chosen_LNS.numel(),
    }
    added = config.balance_weight * balance + config.router_z_weight * z_loss
    return share * added, {name: share * value.detach() for name, value in watched.items()}


def _grouped_product(groups: Tensor, x_RD: Tensor, weight: Tensor) -> Tensor:
    """Each expert's rows times its matrix of the stack [E, outputs, D]."""
    if x_RD.is_cuda and all(size * weight.element_size() % 16 == 0 for size in weight.shape[1:]):
        return F.grouped_mm(x_RD, weight.mT, offs=groups)  # takes rows of whole 16 bytes alone
    counts: list[int] = groups.diff(prepend=groups.new_zeros(1)).tolist()
    # unbind, for its gradient is one stack; that of an index would be as many stacks as there are experts
    return torch.cat([F.linear(x, w) for x, w in zip(x_RD.split(counts), weight.unbind(), strict=True)])
