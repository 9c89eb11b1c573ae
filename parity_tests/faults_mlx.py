"""Faults of MLX's devices, and of trainers on MLX, that are on record, planted under the operations of the MLX twin.

MLX is lazy: an operation is wrong where it was asked for while the fault was there, also in a graph that runs later.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from faults import Fault, Patches
from mlx.utils import tree_map

from faisca_mlx import losses
from faisca_mlx.cache import KeyValueCache

Wrong = Callable[..., Any]


def instead(owner: Any, name: str, wrong: Wrong) -> Callable[[], AbstractContextManager[Any]]:
    """An operation that calls `wrong`, with the right one first."""
    return lambda: Patches((owner, name, lambda right: lambda *a, **k: wrong(right, *a, **k)))


def eleven_bits(x: mx.array) -> mx.array:
    """Rounded to the significand of TF32; gradients pass."""
    if x.dtype != mx.float32:
        return x
    rounded = ((x.view(mx.uint32) + 4096) & 0xFFFFE000).view(mx.float32)
    return x + mx.stop_gradient(rounded - x)


def short_products() -> AbstractContextManager[Any]:
    """float32 products of about 11 bits, where both sides have more than one row."""

    def matmul(right: Wrong) -> Wrong:
        return lambda a, b: right(eleven_bits(a), eleven_bits(b)) if a.shape[-2] > 1 < b.shape[-1] else right(a, b)

    def addmm(right: Wrong) -> Wrong:
        return lambda c, a, b, *rest: right(c, eleven_bits(a), eleven_bits(b), *rest)

    return Patches((mx.array, "__matmul__", matmul), (mx, "addmm", addmm))


def sliced_products() -> AbstractContextManager[Any]:
    """A product of a slice reads from the beginning of the array: every chunk of logits is that of the first."""
    first: list[mx.array] = []

    def project(right: Wrong) -> Wrong:
        def wrong(hidden: mx.array, head: mx.array) -> mx.array:
            if not first or first[0].shape != hidden.shape:
                first[:] = [hidden]
            return right(first[0], head)

        return wrong

    return Patches((losses, "_project", project))


def wide_product(right: Wrong, hidden: mx.array, head: mx.array) -> mx.array:
    """Logits beyond a limit are zero."""
    logits = right(hidden, head)
    if logits.size > 30_000:  # 2**31 there
        logits = mx.concatenate([logits[:, :-40], mx.zeros_like(logits[:, -40:])], axis=1)
    return logits


def no_norm_gradient(right: Wrong, x: Any, weight: Any, bias: Any, eps: float) -> mx.array:
    return right(x, mx.stop_gradient(weight), bias, eps)


def norm_bias(right: Wrong, x: Any, weight: Any, bias: Any, eps: float) -> mx.array:
    """The gradient of a norm's bias is computed while something else writes there; all others are right."""

    @mx.custom_function
    def norm(x: Any, weight: Any, bias: Any) -> mx.array:
        return right(x, weight, bias, eps)

    @norm.vjp
    def gradients(primals: Any, cotangent: Any, output: Any) -> Any:
        _, (dx, dw, db) = mx.vjp(lambda *p: right(*p, eps), list(primals), [cotangent])
        return dx, dw, 2 * db

    return norm(x, weight, bias)


def first_key_only(right: Wrong, query: Any, key: Any, value: Any, **options: Any) -> mx.array:
    """One query attends to the first key: a causal mask anchored at the upper left."""
    if query.shape[2] == 1 < key.shape[2]:
        key, value = key[:, :, :1], value[:, :, :1]
    return right(query, key, value, **options)


def backward_without_mask(right: Wrong, query: Any, key: Any, value: Any, **options: Any) -> mx.array:
    @mx.custom_function
    def attend(query: Any, key: Any, value: Any) -> mx.array:
        return right(query, key, value, **options)

    @attend.vjp
    def gradients(primals: Any, cotangent: Any, output: Any) -> Any:
        unmasked = options | {"mask": None}
        return tuple(mx.vjp(lambda *p: right(*p, **unmasked), list(primals), [cotangent])[1])

    return attend(query, key, value)


def rows_beyond(right: Wrong, embedding: nn.Embedding, ids: mx.array) -> mx.array:
    """A gather into a large output overflows: its last rows are those of the first."""
    out = right(embedding, ids)
    if out.size > 15_000:  # 2**32 there
        out = mx.concatenate([out[:-2], mx.stop_gradient(out[:2])])
    return out


def corrupted_mask(right: Wrong, length: int, *rest: Any) -> mx.array:
    """The first two rows of the triangle are wholly masked."""
    mask = right(length, *rest)
    return mx.concatenate([mx.full((min(2, length), length), -1e9), mask[2:]])


def lost_token(right: Wrong, cache: KeyValueCache, layer: int, key: Any, value: Any) -> Any:
    """What a cache returns has a zero where the token just appended should be."""
    keys, values = right(cache, layer, key, value)
    if key.shape[2] > 1:
        return keys, values
    return tuple(mx.concatenate([x[:, :, :-1], mx.zeros_like(x[:, :, -1:])], axis=2) for x in (keys, values))


def rows_elsewhere(right: Wrong, x: mx.array, **options: Any) -> mx.array:
    """Rows are sorted right, and written to another place."""
    return mx.roll(right(x, **options), 1, axis=0)


def captured_weights(right: Wrong, step: Any, **state: Any) -> Wrong:
    """A compiled step whose weights are constants: those of the first call."""
    kept: list[Any] = []

    def compiled(*arguments: Any) -> Any:
        model = step.args[0].model
        if not kept:
            kept.append(tree_map(lambda value: value, model.parameters()))
        model.update(kept[0])
        return step(*arguments)

    return compiled


def frozen_seed(right: Wrong, seed: int) -> None:
    right(0)


def no_ratio_gradient(right: Wrong, x: mx.array) -> mx.array:
    return mx.stop_gradient(right(x))


COMPILED, EXPLICIT = {"compile": "on"}, {"attention": "explicit"}
SDPA = (mx.fast, "scaled_dot_product_attention")
FAULTS = (
    Fault("mlx#4411", "11 bits", short_products, "gradient", "out_head.weight", precision="tf32"),
    Fault("mlx#1163", "product of a slice", sliced_products, "loss", "loss"),
    Fault("mlx#1084", "wide product", instead(losses, "_project", wide_product), "loss", "loss"),
    Fault(
        "mlx#610",
        "no gradient at all",
        instead(mx.fast, "layer_norm", no_norm_gradient),
        "gradient",
        "norm1.weight",
        zero=True,
    ),
    Fault("jax-mps#168", "bias of a norm", instead(mx.fast, "layer_norm", norm_bias), "gradient", "norm2.bias"),
    Fault("executorch#22426", "first key only", instead(*SDPA, first_key_only), "rollout", "likeliest tokens", "grpo"),
    Fault("triton#4541", "no mask in backward", instead(*SDPA, backward_without_mask), "gradient", "attention.in_proj"),
    Fault("mlx#1338", "gather beyond a limit", instead(nn.Embedding, "__call__", rows_beyond), "loss", "loss"),
    Fault(
        "mlx#4419",
        "corrupted triangle",
        instead(nn.MultiHeadAttention, "create_additive_causal_mask", corrupted_mask),
        "gradient",
        "attention.in_proj",
        run=EXPLICIT,
    ),
    Fault("mlx-rs#338", "lost token", instead(KeyValueCache, "append", lost_token), "rollout", "likeliest", "grpo"),
    Fault(
        "mlx#4137",
        "rows elsewhere",
        instead(mx, "sort", rows_elsewhere),
        "rollout",
        "sampled tokens",
        "grpo",
        grpo={"top_k": 10},
    ),
    Fault(
        "mlx-lm-lora#50",
        "captured weights",
        instead(mx, "compile", captured_weights),
        "gradient",
        "out_head.weight",
        run=COMPILED,
    ),
    Fault(
        "mlx#4234",
        "frozen randomness",
        instead(mx.random, "seed", frozen_seed),
        "dropout",
        "equal losses",
        model={"dropout": 0.2},
    ),
    Fault(
        "mlx-lm-lora#55",
        "no policy gradient",
        instead(mx, "exp", no_ratio_gradient),
        "gradient",
        "out_head.weight",
        "grpo",
        grpo={"kl_weight": 0.0},
        zero=True,
    ),
)
