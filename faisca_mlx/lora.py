"""LoRA (Hu et al. 2022): beside a product W x, alpha / rank · B (A x). W stays as it is; A and B are trained.

DoRA (Liu et al. 2024) also trains m, how long each row of the whole is: m · (W + s B A) / ‖W + s B A‖.

Shapes: I inputs, O outputs, r rank; of experts' matrices, which lie in stacks, with an axis of experts before.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from faisca.config import Adapter, ModelConfig, adapter_of, plain
from faisca.parameters import Parts, adapter_parts, in_adapter

if TYPE_CHECKING:
    from faisca_mlx.model import GPT

Product = Callable[[mx.array, mx.array], mx.array]  # numbers [..., I] and a matrix [O, I] -> [..., O]


class LowRank(nn.Module):
    """What an adapter adds to one part of a product."""

    def __init__(self, adapter: Adapter, shape: tuple[int, ...]) -> None:
        super().__init__()
        *stack, outputs, inputs = shape
        self.scale, self.dropout = adapter.scale, nn.Dropout(adapter.dropout)
        self.a = mx.zeros((*stack, adapter.rank, inputs))
        self.b = mx.zeros((*stack, outputs, adapter.rank))
        if adapter.dora:
            self.m = mx.zeros(outputs)

    def __call__(self, x: mx.array, product: Product) -> mx.array:
        narrow = product(self.dropout(x), self.a.astype(x.dtype))
        return product(self.scale * narrow, self.b.astype(x.dtype))

    def in_length(self, added: mx.array, product: mx.array, weight: mx.array) -> mx.array:
        """What makes W x a product with rows as long as m (DoRA): m / ‖W + s B A‖ times both, the norm a constant."""
        moved = weight.astype(mx.float32) + self.scale * self.b @ self.a
        norm_O = mx.stop_gradient(mx.linalg.norm(moved, axis=-1))
        return (self.m / norm_O).astype(added.dtype) * (product + added) - product


class LoRA(nn.Module):
    """The same for a whole product, whose columns are the parts' side by side: zeros where a part has no adapter."""

    def __init__(self, adapter: Adapter, parts: Parts, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._parts, self.dora, (*stack, _, inputs) = parts, adapter.dora, shape
        for part, outputs in parts:
            if part:
                self[part] = LowRank(adapter, (*stack, outputs, inputs))

    def __call__(self, x: mx.array, product: Product, weight: mx.array, base: mx.array) -> mx.array:
        added: list[mx.array] = []
        start = 0
        for part, outputs in self._parts:
            rows, start = slice(start, start + outputs), start + outputs
            low = self[part] if part else None
            added.append(low(x, product) if low is not None else mx.zeros((*x.shape[:-1], outputs), x.dtype))
            if low is not None and self.dora:
                added[-1] = low.in_length(added[-1], base[..., rows], weight[rows])
        return mx.concatenate(added, axis=-1) if len(added) > 1 else added[0]


def adapt(model: "GPT", config: ModelConfig) -> None:
    """Put an adapter beside each matrix that is to have one, and freeze all else; values are set with all others'."""
    adapter, modules = adapter_of(config), dict(model.named_modules())
    if adapter is None:
        return
    for module, parts in adapter_parts(config).items():
        linear = modules[module]
        linear.lora = LoRA(adapter, parts, linear.weight.shape)
    model.freeze()
    model.unfreeze(keys=["a", "b", "m"], strict=False)


def base_of(*, model: "GPT") -> "GPT":
    """The model without its adapter: the same arrays, none of them copied."""
    base = type(model)(plain(model.config), model.runtime)  # its own initial values are lazy, and never computed
    shared = [(name, weight) for name, weight in tree_flatten(model.parameters()) if not in_adapter(name)]
    base.update(tree_unflatten(shared))
    base._rotation = model._rotation
    return base.eval()


def adapter_drops(model: "GPT", seed: int) -> "GPT":
    """The model as GRPO trains it: in evaluation mode, but for its adapter, which drops what the seed draws."""
    for module in model.eval().modules():
        if isinstance(module, LowRank):
            module.train()
    mx.random.seed(seed)
    return model
