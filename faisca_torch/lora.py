"""LoRA (Hu et al. 2022): beside a product W x, alpha / rank · B (A x). W stays as it is; A and B are trained.

DoRA (Liu et al. 2024) also trains m, how long each row of the whole is: m · (W + s B A) / ‖W + s B A‖.

Shapes: I inputs, O outputs, r rank; of experts' matrices, which lie in stacks, with an axis of experts before.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from faisca.config import Adapter, ModelConfig, adapter_of, plain
from faisca.parameters import Parts, adapter_parts, in_adapter

if TYPE_CHECKING:
    from faisca_torch.model import GPT

Product = Callable[[Tensor, Tensor], Tensor]  # numbers [..., I] and a matrix [O, I] -> [..., O]


class LowRank(nn.Module):
    """What an adapter adds to one part of a product."""

    def __init__(self, adapter: Adapter, shape: tuple[int, ...]) -> None:
        super().__init__()
        *stack, outputs, inputs = shape
        self.scale, self.dropout = adapter.scale, nn.Dropout(adapter.dropout)
        self.a = nn.Parameter(torch.empty(*stack, adapter.rank, inputs))
        self.b = nn.Parameter(torch.empty(*stack, outputs, adapter.rank))
        if adapter.dora:
            self.m = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor, product: Product) -> Tensor:
        narrow = product(self.dropout(x), self.a.to(x.dtype))
        return product(self.scale * narrow, self.b.to(x.dtype))

    def in_length(self, added: Tensor, product: Tensor, weight: Tensor) -> Tensor:
        """What makes W x a product with rows as long as m (DoRA): m / ‖W + s B A‖ times both, the norm a constant."""
        with torch.no_grad():
            norm_O = torch.linalg.vector_norm(weight.float() + self.scale * self.b @ self.a, dim=-1)
        return (self.m / norm_O).to(added.dtype) * (product + added) - product


class LoRA(nn.Module):
    """The same for a whole product, whose columns are the parts' side by side: zeros where a part has no adapter."""

    def __init__(self, adapter: Adapter, parts: Parts, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.parts, self.dora, (*stack, _, inputs) = parts, adapter.dora, shape
        for part, outputs in parts:
            if part:
                self.add_module(part, LowRank(adapter, (*stack, outputs, inputs)))

    def forward(self, x: Tensor, product: Product, weight: Tensor, base: Tensor) -> Tensor:
        added: list[Tensor] = []
        start = 0
        for part, outputs in self.parts:
            rows, start = slice(start, start + outputs), start + outputs
            low = self.get_submodule(part) if part else None
            added.append(low(x, product) if low is not None else x.new_zeros(*x.shape[:-1], outputs))
            if isinstance(low, LowRank) and self.dora:
                added[-1] = low.in_length(added[-1], base[..., rows], weight[rows])
        return torch.cat(added, dim=-1) if len(added) > 1 else added[0]


def adapt(model: "GPT", config: ModelConfig) -> None:
    """Put an adapter beside each matrix that is to have one; their values are set with all others."""
    adapter = adapter_of(config)
    for module, parts in adapter_parts(config).items():
        assert adapter is not None, "without an adapter there are no parts"
        linear = model.get_submodule(module)
        linear.lora = LoRA(adapter, parts, linear.weight.shape)  # type: ignore[arg-type]


def base_of(*, model: "GPT") -> "GPT":
    """The model without its adapter: the same arrays, none of them copied."""
    with torch.device("meta"):
        base = type(model)(plain(model.config), model.runtime)
    shared = {name: weight for name, weight in model.state_dict().items() if not in_adapter(name)}
    base.load_state_dict(shared, strict=True, assign=True)
    base.rotation = model.rotation
    return base.requires_grad_(True).eval()


def adapter_drops(model: "GPT", seed: int) -> "GPT":
    """The model as GRPO trains it: in evaluation mode, but for its adapter, which drops what the seed draws."""
    for module in model.eval().modules():
        if isinstance(module, LowRank):
            module.train()
    torch.manual_seed(seed)
    return model
