"""A decoder, blocks in forward order: GPT-2's (Radford et al. 2019) or, by its options, Llama's or Qwen's.

In bfloat16 only the factors of matrix products are, and what lies between two products of a branch:
weights, embeddings, the residual stream and norms stay float32, and so does every sum.

Shapes: B rows, T positions, D model width, H query heads, G heads of keys and values, K head width,
J = K/2, V vocabulary. Modules are named so that `parameters()` has the names of `faisca.parameters`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from faisca.backend import Runtime
from faisca.bigrams import bigram_keys
from faisca.config import ModelConfig, adapter_of
from faisca.parameters import check_parameters, in_block
from faisca.rotation import rotation_table
from faisca_mlx.cache import KeyValueCache, tokens_before
from faisca_mlx.experts import Experts
from faisca_mlx.lora import adapt

Rotation = tuple[mx.array, mx.array]  # cosine and sine of the positions' angles, [T, J] each
RandomKey: TypeAlias = mx.array | None  # of dropout; None draws from MLX's own generator
Cache: TypeAlias = KeyValueCache | None


class Head(NamedTuple):
    """Logits are hidden · weightᵀ, squeezed into ± soft_cap by tanh where that is not 0."""

    weight_VD: mx.array
    soft_cap: float = 0.0
    frozen: bool = False
    """nobody asks for its gradient"""


class _Dropout(nn.Module):
    """Dropout that can draw from a key of its own: a block that is recomputed must drop the same again."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def __call__(self, x: mx.array, random_key: RandomKey = None) -> mx.array:
        if not self.training or not self.rate:
            return x
        return mx.random.bernoulli(1 - self.rate, x.shape, key=random_key) * x * (1 / (1 - self.rate))


class Norm(nn.Module):
    """LayerNorm, or RMSNorm (Zhang & Sennrich 2019), in float32; hands on the runtime's dtype, for the next product."""

    def __init__(self, kind: str, width: int, config: ModelConfig, runtime: Runtime) -> None:
        super().__init__()
        self.epsilon, self.narrow = config.norm_epsilon, runtime.dtype == "bfloat16"
        self.weight = mx.ones(width)
        if kind == "layer":
            self.bias = mx.zeros(width)

    def __call__(self, x: mx.array) -> mx.array:
        x = x.astype(mx.float32)
        if "bias" in self:
            normed = mx.fast.layer_norm(x, self.weight, self.bias, self.epsilon)
        else:
            normed = mx.fast.rms_norm(x, self.weight, self.epsilon)
        return normed.astype(mx.bfloat16) if self.narrow else normed


class Linear(nn.Linear):
    """Multiplies in the dtype of its input; the weights are float32, and so is what adds up their gradients."""

    def __call__(self, x_BTD: mx.array) -> mx.array:
        product = self._multiplied(x_BTD)
        if "lora" not in self:
            return product
        base = product - self.bias.astype(x_BTD.dtype) if self.lora.dora and "bias" in self else product
        return product + self.lora(x_BTD, lambda x, weight: x @ weight.T, self.weight, base)

    def _multiplied(self, x_BTD: mx.array) -> mx.array:
        if x_BTD.dtype == self.weight.dtype == mx.float32:
            return super().__call__(x_BTD)
        y_BTD = x_BTD @ self.weight.astype(x_BTD.dtype).T
        # a bias in bfloat16 would have a gradient that is summed over all positions in bfloat16
        return (y_BTD + self.bias).astype(x_BTD.dtype) if "bias" in self else y_BTD


class Attention(nn.Module):
    """Causal self-attention; with grouped queries, neighbouring heads share one head of keys and values."""

    def __init__(self, config: ModelConfig, layer: int, runtime: Runtime) -> None:
        super().__init__()
        self.config, self.layer, self.runtime = config, layer, runtime
        heads = config.num_heads + 2 * config.kv_heads
        self.in_proj = Linear(config.dim, heads * config.head_width, bias=config.attention_bias)
        self.out_proj = Linear(config.num_heads * config.head_width, config.dim, bias=config.output_bias)
        if config.qk_norm:
            self.query_norm, self.key_norm = (Norm("rms", width, config, runtime) for width in config.qk_norm_widths)
        self.dropout = _Dropout(config.attention_dropout)

    def __call__(self, x_BTD: mx.array, rotation: Rotation | None, cache: Cache, random_key: RandomKey) -> mx.array:
        H, G = self.config.num_heads, self.config.kv_heads
        # One product for queries, keys and values, then heads as a dimension of the batch.
        product = self.in_proj(x_BTD)
        if self.config.qk_norm_over == "all":
            query, key, value = mx.split(product, np.cumsum(self.config.qk_norm_widths).tolist(), axis=2)
            product = mx.concatenate([self.query_norm(query), self.key_norm(key), value], axis=2)
        all_heads = mx.unflatten(product, 2, (H + 2 * G, -1)).swapaxes(1, 2)
        query_BHTK, key_BGTK, value_BGTK = mx.split(all_heads, [H, H + G], axis=1)
        if self.config.qk_norm and self.config.qk_norm_over == "head":
            query_BHTK, key_BGTK = self.query_norm(query_BHTK), self.key_norm(key_BGTK)
        if rotation is not None:
            query_BHTK, key_BGTK = rotate(query_BHTK, rotation), rotate(key_BGTK, rotation)
        if cache is not None:
            key_BGTK, value_BGTK = cache.append(self.layer, key_BGTK, value_BGTK)
        attended_BHTK = self.attend(query_BHTK, key_BGTK, value_BGTK, random_key)
        return self.out_proj(attended_BHTK.swapaxes(1, 2).flatten(2))

    def attend(self, query_BHTK: mx.array, key_BGTK: mx.array, value_BGTK: mx.array, random_key: RandomKey) -> mx.array:
        """softmax(query · key / √K) · value over the positions up to each query's own."""
        (_, H, T, K), G = query_BHTK.shape, key_BGTK.shape[1]
        if self.runtime.attention == "fused" and not (self.training and self.config.attention_dropout):
            mask = "causal" if T > 1 else None  # a single position may see all that came before
            return mx.fast.scaled_dot_product_attention(query_BHTK, key_BGTK, value_BGTK, scale=K**-0.5, mask=mask)
        key_BHTK, value_BHTK = (mx.repeat(heads, H // G, axis=1) for heads in (key_BGTK, value_BGTK))
        later_TT = nn.MultiHeadAttention.create_additive_causal_mask(T)
        scores_BHTT = ((K**-0.5 * query_BHTK) @ key_BHTK.swapaxes(2, 3)).astype(mx.float32) + later_TT
        shares_BHTT = mx.softmax(scores_BHTT, axis=-1).astype(value_BHTK.dtype)
        return self.dropout(shares_BHTT, random_key) @ value_BHTK


def rotate(x_BHTK: mx.array, rotation: Rotation) -> mx.array:
    """Each pair (i, i + K/2) turned by its position's angle; see `faisca.rotation`."""
    (cos_TJ, sin_TJ), (left, right) = rotation, mx.split(x_BHTK, 2, axis=-1)
    turned = mx.concatenate([left * cos_TJ - right * sin_TJ, right * cos_TJ + left * sin_TJ], axis=-1)
    return turned.astype(x_BHTK.dtype)


class FeedForward(nn.Module):
    """Up to the hidden width, an activation there, and down again; and no router's logits, as `Experts` has."""

    def __init__(self, config: ModelConfig, width: int, linear: Callable[..., Any] = Linear) -> None:
        super().__init__()
        self.activation = config.activation
        if config.activation == "swiglu":
            self.gate = linear(config.dim, width, bias=config.feed_forward_bias)
        self.up = linear(config.dim, width, bias=config.feed_forward_bias)
        self.down = linear(width, config.dim, bias=config.feed_forward_bias)

    def __call__(self, x_BTD: mx.array, *groups: Any) -> tuple[mx.array, list[mx.array]]:
        up = self.up(x_BTD, *groups)
        match self.activation:
            case "gelu":
                active = nn.gelu(up)
            case "gelu_tanh":
                active = nn.gelu_approx(up)
            case "swiglu":
                active = nn.silu(self.gate(x_BTD, *groups)) * up
            case "relu2":
                active = nn.relu(up).square()
        return self.down(active, *groups), []


class TransformerBlock(nn.Module):
    """Pre-norm: each half normalises its input and adds its output to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, runtime: Runtime) -> None:
        super().__init__()
        self.norm1 = Norm(config.norm, config.dim, config, runtime)
        self.attention = Attention(config, layer, runtime)
        self.norm2 = Norm(config.norm, config.dim, config, runtime)
        self.feed_forward = (
            Experts(config, FeedForward) if config.num_experts else FeedForward(config, config.hidden_dim)
        )
        self.dropout = _Dropout(config.dropout)

    def __call__(
        self, x_BTD: mx.array, rotation: Rotation | None, cache: Cache, random_key: RandomKey
    ) -> tuple[mx.array, list[mx.array]]:
        keys = (None, None, None) if random_key is None else mx.random.split(random_key, 3)
        x_BTD = x_BTD + self.dropout(self.attention(self.norm1(x_BTD), rotation, cache, keys[0]), keys[1])
        added_BTD, routed = self.feed_forward(self.norm2(x_BTD))
        return x_BTD + self.dropout(added_BTD, keys[2]), routed


class GPT(nn.Module):
    """Token ids to final hidden states; the output head stays outside, so that losses can chunk it."""

    def __init__(self, config: ModelConfig, runtime: Runtime) -> None:
        super().__init__()
        self.config, self.runtime = config, runtime
        self._rotation: Rotation | None = None
        self._bigram_keys: tuple[mx.array, mx.array] | None = None
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.dim)
        if config.positions == "learned":
            self.positional_embedding = nn.Embedding(config.context, config.dim)
        if config.bigram_rows:
            self.bigram_embedding = nn.Embedding(config.bigram_rows, config.dim)
        self.dropout = _Dropout(config.dropout)
        self.transformer_blocks = [TransformerBlock(config, i, runtime) for i in range(config.num_layers)]
        self.final_layer_norm = Norm(config.norm, config.dim, config, runtime)
        if not config.tie_embeddings:
            self.out_head = nn.Linear(config.dim, config.vocabulary_size, bias=False)

    @property
    def head(self) -> Head:
        """What makes logits of final hidden states."""
        weight_VD = self.token_embedding.weight if self.config.tie_embeddings else self.out_head.weight
        return Head(weight_VD, self.config.logit_soft_cap, frozen=adapter_of(self.config) is not None)

    def __call__(self, tokens_BT: mx.array, cache: Cache = None) -> mx.array:
        """Final hidden states [B, T, D] (the runtime's dtype) of token ids [B, T] that follow what the cache holds."""
        return self.hidden_and_routed(tokens_BT, cache)[0]

    def hidden_and_routed(self, tokens_BT: mx.array, cache: Cache = None) -> tuple[mx.array, list[mx.array]]:
        """Final hidden states, and the logits [B · T, E] of each layer's router, if it has one."""
        end = (start := 0 if cache is None else cache.length) + tokens_BT.shape[1]
        if end > self.config.context:  # MLX would read beyond the table, silently
            raise ValueError(f"{end} positions do not fit the context of {self.config.context}")
        x_BTD, rotation, routed = self.token_embedding(tokens_BT), None, []
        # A token is its meaning plus its place; or its place turns its queries and keys.
        if self._rotation is None:
            x_BTD = x_BTD + self.positional_embedding.weight[start:end]
        else:
            rotation = (self._rotation[0][start:end], self._rotation[1][start:end])
        if self._bigram_keys is not None:  # a pair of tokens may mean what neither does
            first_V, second_V = self._bigram_keys
            keys_BT = first_V[tokens_before(tokens_BT, cache)] ^ second_V[tokens_BT]
            x_BTD = x_BTD + self.bigram_embedding(keys_BT % self.config.bigram_rows)
        x_BTD = self.dropout(x_BTD)
        for block in self.transformer_blocks:
            # Keep only the block's input, and compute the rest again in the backward pass: with the same dropout.
            if self.runtime.gradient_checkpointing and self.training:
                key = mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
                again = partial(block, rotation=rotation, cache=None, random_key=key)
                x_BTD, more = nn.utils.checkpoint(block, again)(x_BTD)
            else:
                x_BTD, more = block(x_BTD, rotation, cache, None)
            routed += more
        if cache is not None:
            cache.length, cache.last_B1 = end, tokens_BT[:, -1:]
        return self.final_layer_norm(x_BTD), routed


def make_model(*, config: ModelConfig, parameters: Mapping[str, np.ndarray], runtime: Runtime) -> GPT:
    """A model with these weights, in evaluation mode; FaiscaError where names or shapes differ."""
    check_parameters(parameters, config)
    model = GPT(config, runtime)  # its own initial values are lazy, and never computed
    adapt(model, config)
    narrow = mx.bfloat16 if runtime.weights == "bfloat16" else None  # None: as they come
    # Rounded one by one: all in float32 first would take more than rounding saves.
    dtypes = {name: narrow if in_block(name, value.shape) else None for name, value in parameters.items()}
    arrays = [(name, mx.array(value, dtype=dtypes[name])) for name, value in parameters.items()]
    model.update(tree_unflatten(arrays))
    if config.positions == "rope":
        cos_TJ, sin_TJ = (mx.array(table.astype(np.float32)) for table in rotation_table(config))
        model._rotation = cos_TJ, sin_TJ
    if config.bigram_rows:
        first_V, second_V = (mx.array(keys) for keys in bigram_keys(config))
        model._bigram_keys = first_V, second_V
    mx.eval(model.state)
    return model.eval()
