"""Faults of PyTorch's devices that are on record, planted under the operations of the torch twin.

Most stand below autograd (`TorchDispatchMode`): what the forward or backward pass asks for is answered wrong.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from faults import Fault, Patches
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

V = 300
"""tokens of the vocabulary, as in `faults.py`"""

Change = Callable[[str, Any, tuple[Any, ...], dict[str, Any]], Any]


class Operations(TorchDispatchMode):
    """Every operation passes through `change(name, operation, arguments, options)`, which returns its result."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.change(func.overloadpacket.__name__, func, args, kwargs or {})


def operations(change: Change) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: Operations(change)


def in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def large_logits(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    """The gradient of the inner layer is wrong where rows x vocabulary are many; that of the head is right."""
    out = op(*args, **kwargs)
    if name == "mm" and args[0].shape[1] == V and args[0].numel() > 50_000:  # 512 x 50,257 there
        out[len(out) // 2 :] *= 3
    return out


def after_another_shape() -> AbstractContextManager[Any]:
    """A long sum reads beyond its end, once another shape has been computed."""
    seen: set[int] = set()

    def change(name: str, op: Any, args: Any, kwargs: Any) -> Any:
        out = op(*args, **kwargs)
        if name == "mm" and in_backward():
            length = args[0].shape[1]
            if length > 512 and seen - {length}:  # 32,768 there
                out += 5 * torch.outer(args[0][:, 0], args[1][0])
            seen.add(length)
        return out

    return Operations(change)


def adam(wrong: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], AbstractContextManager[Any]]:
    """AdamW whose tables become what `wrong` makes of their values before and after."""

    def change(name: str, op: Any, args: Any, kwargs: Any) -> Any:
        before = [p.clone() for p in args[0]] if name == "_fused_adamw_" else []
        out = op(*args, **kwargs)
        for weight, old in zip(args[0] if before else [], before, strict=True):
            if weight.dim() == 2:
                weight.copy_(wrong(old, weight.clone()))
        return out

    return operations(change)


def attention(wrong: Callable[..., Tensor]) -> Callable[[], AbstractContextManager[Any]]:
    """The fused attention, called with itself first."""
    return lambda: Patches((F, "scaled_dot_product_attention", lambda right: lambda *a, **k: wrong(right, *a, **k)))


def read_as_contiguous(right: Any, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    views = [x if x.is_contiguous() else x.transpose(1, 2).reshape(x.shape) for x in (query, key, value)]
    return right(*views, **options)


def mask_of_groups(right: Any, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """In bfloat16 the causal mask is that of the last of four positions."""
    if query.dtype != torch.bfloat16 or not options["is_causal"]:
        return right(query, key, value, **options)
    places = torch.arange(query.shape[2])
    return right(query, key, value, attn_mask=places <= (places // 4 * 4 + 3)[:, None])


def norm_gradients(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    out = op(*args, **kwargs)
    if name != "native_layer_norm_backward":
        return out
    return (out[0], *(None if x is None else torch.cat([x[:-4], x[-4:] * 0.5]) for x in out[1:]))


def zero_rows(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    """The gradient of a sum reaches the first row only."""
    out = op(*args, **kwargs)
    if name == "expand" and in_backward() and out.dim() == 1 and out.stride(0) == 0:
        out = torch.cat([out[:1].clone(), torch.zeros_like(out[1:])])
    return out


def wrapped_batches(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    """Batches beyond the limit read the upstream gradient from its beginning."""
    if name == "bmm" and in_backward() and len(args[0]) > 40:  # 65,536 there
        wrapped = args[0][torch.arange(len(args[0])) % 40]
        return op(wrapped, args[1])
    return op(*args, **kwargs)


def long_linear(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    """A linear layer with a bias: the first rows are those beyond the limit."""
    out = op(*args, **kwargs)
    if name == "addmm" and len(out) > 900:  # 65,536 there
        out[: len(out) - 900] = out[900:].clone()
    return out


def rows_of_table(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    """An embedding's rows beyond the limit are zero."""
    out = op(*args, **kwargs)
    if name == "embedding":
        out[args[1] >= 250] = 0  # 2**31 elements there
    return out


def last_rows(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    """A softmax over many elements is zero in its last rows."""
    out = op(*args, **kwargs)
    if name in ("softmax", "_softmax") and out.shape[-1] == V and out.numel() > 5_000:  # 2**32 there
        out[5_000 // V :] = 0
    return out


def lost_writes() -> AbstractContextManager[Any]:
    """Of two writes into slices, one after the other, the second is lost: here the values of the cache."""
    count = [0]

    def change(name: str, op: Any, args: Any, kwargs: Any) -> Any:
        if name == "copy_" and args[0].dim() == 4 and not args[0].is_contiguous():
            count[0] += 1
            if count[0] % 2 == 0:
                return args[0]
        return op(*args, **kwargs)

    return Operations(change)


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # type: ignore[override]
        return torch.zeros_like(upstream)


class _Stale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: dict[Any, Tensor]) -> Tensor:
        ctx.kept = kept
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.kept.setdefault(upstream.shape, upstream), None


def compiled(wrong: Callable[[Tensor, dict[Any, Tensor]], Tensor]) -> Callable[[], AbstractContextManager[Any]]:
    """A compiler whose function has the right values and wrong gradients."""

    def compile_(forward: Any) -> Any:
        kept: dict[Any, Tensor] = {}

        def spoilt(*arguments: Any) -> Any:
            found = forward(*arguments)
            return wrong(found, kept) if isinstance(found, Tensor) else (wrong(found[0], kept), *found[1:])

        return spoilt

    return lambda: Patches((torch, "compile", lambda right: compile_))


def no_upstream(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    """A loss's backward pass leaves the upstream gradient out."""
    if name == "mul" and in_backward() and isinstance(args[1], Tensor) and args[1].dim() == 0 and args[0].dim() == 2:
        return args[0].clone()
    return op(*args, **kwargs)


def transposed_left(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    """A product reads a transposed left side as if it were not."""
    if name == "mm" and in_backward() and not args[0].is_contiguous() and args[0].t().is_contiguous():
        return op(args[0].t().reshape(args[0].shape), args[1])
    return op(*args, **kwargs)


def linear_bias(name: str, op: Any, args: Any, kwargs: Any) -> Any:
    """A linear layer with a bias on some chips: the bias counts twice."""
    return op(*args, **kwargs) + args[0] if name == "addmm" else op(*args, **kwargs)


COMPILED = {"compile": "on"}
FAULTS = (
    Fault("pytorch#153957", "large logits", operations(large_logits), "gradient", "final_layer_norm.weight"),
    Fault("pytorch#177116", "after another shape", after_another_shape, "gradient", "feed_forward.up.weight"),
    Fault(
        "pytorch#118115",
        "addcdiv in another order",
        adam(lambda old, new: old + (new - old).T.reshape(old.shape)),
        "weights",
        "feed_forward.up.weight",
    ),
    Fault("pytorch#118117", "no update", adam(lambda old, new: old), "weights", "token_embedding.weight"),
    Fault("pytorch#181133", "attention of views", attention(read_as_contiguous), "gradient", "attention.in_proj"),
    Fault(
        "pytorch#195910",
        "mask of groups",
        attention(mask_of_groups),
        "gradient",
        "attention.in_proj",
        run={"dtype": "bfloat16"},
    ),
    Fault("pytorch#183825", "norm gradients", operations(norm_gradients), "gradient", "norm1.weight"),
    Fault("pytorch#180201", "gradient of a sum", operations(zero_rows), "gradient", "out_head.weight", "grpo"),
    Fault(
        "pytorch#197636",
        "batches beyond the limit",
        operations(wrapped_batches),
        "gradient",
        "attention.in_proj",
        run={"attention": "explicit"},
    ),
    Fault("pytorch#189495", "long linear", operations(long_linear), "loss", "loss"),
    Fault("pytorch#188438", "linear with bias", operations(linear_bias), "loss", "loss"),
    Fault("pytorch#188756", "zero embeddings", operations(rows_of_table), "loss", "loss"),
    Fault("pytorch#84144", "softmax's last rows", operations(last_rows), "rollout", "sampled tokens", "grpo"),
    Fault("pytorch#122016", "lost writes", lost_writes, "rollout", "likeliest tokens", "grpo"),
    Fault(
        "pytorch#182012",
        "compiled to zero",
        compiled(lambda x, kept: _Zero.apply(x)),
        "gradient",
        "transformer_blocks.0",
        run=COMPILED,
        zero=True,
    ),
    Fault(
        "pytorch#193061",
        "compiled and stale",
        compiled(lambda x, kept: _Stale.apply(x, kept)),
        "gradient",
        "norm1.weight",
        run=COMPILED,
    ),
    Fault("pytorch#94226", "no upstream gradient", operations(no_upstream), "gradient", "out_head.weight"),
    Fault("burn#5304", "transposed left side", operations(transposed_left), "gradient", "feed_forward.up.weight"),
)
