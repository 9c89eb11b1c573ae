"""A GPT-2-style decoder (Radford et al. 2019), blocks in forward order.

In bfloat16 only the factors of matrix products are, and what lies between two products of a branch:
weights, embeddings, the residual stream and norms stay float32, and so does every sum.

Shapes: B rows, T positions, D model width, H heads, K head width, V vocabulary. Modules are named
so that `parameters()` has the canonical names of `faisca.parameters`.
"""

from collections.abc import Mapping
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from faisca.backend import Runtime
from faisca.config import ModelConfig
from faisca.parameters import check_parameters


class KeyValueCache:
    """Keys and values of the positions seen so far, one pair of [B, H, length, K] arrays a block."""

    def __init__(self, num_layers: int) -> None:
        self.length = 0
        self.layers: list[tuple[mx.array, mx.array] | None] = [None] * num_layers

    def append(self, layer: int, key_BHTK: mx.array, value_BHTK: mx.array, capacity: int) -> tuple[mx.array, mx.array]:
        """Write new positions of a block, and return all of its positions so far."""
        pair = self.layers[layer]
        # All the room at once: growing would copy the cache at every token.
        if pair is None:
            B, H, _, K = key_BHTK.shape
            pair = (mx.zeros((B, H, capacity, K), key_BHTK.dtype), mx.zeros((B, H, capacity, K), key_BHTK.dtype))
        end = self.length + key_BHTK.shape[2]
        keys, values = pair
        keys[:, :, self.length : end] = key_BHTK
        values[:, :, self.length : end] = value_BHTK
        self.layers[layer] = (keys, values)
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, rows: np.ndarray) -> None:
        """Drop all rows but these: finished rows cost nothing."""
        kept = mx.array(rows)
        self.layers = [None if pair is None else (pair[0][kept], pair[1][kept]) for pair in self.layers]


class _Dropout(nn.Module):
    """Dropout that can draw from a key of its own: a block that is recomputed must drop the same again."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def __call__(self, x: mx.array, random_key: mx.array | None = None) -> mx.array:
        if not self.training or not self.rate:
            return x
        return mx.random.bernoulli(1 - self.rate, x.shape, key=random_key) * x * (1 / (1 - self.rate))


class LayerNorm(nn.LayerNorm):
    """Normalises the float32 residual stream, and hands on the runtime's dtype: that of the products that follow."""

    def __init__(self, config: ModelConfig, runtime: Runtime) -> None:
        super().__init__(config.dim, eps=config.norm_epsilon)
        self.narrow = runtime.dtype == "bfloat16"

    def __call__(self, x_BTD: mx.array) -> mx.array:
        normed_BTD = super().__call__(x_BTD)
        return normed_BTD.astype(mx.bfloat16) if self.narrow else normed_BTD


class Linear(nn.Linear):
    """Multiplies in the dtype of its input; the weights are float32, and so is what adds up their gradients."""

    def __call__(self, x_BTD: mx.array) -> mx.array:
        if x_BTD.dtype == self.weight.dtype:
            return super().__call__(x_BTD)
        y_BTD = x_BTD @ self.weight.astype(x_BTD.dtype).T
        # a bias in bfloat16 would have a gradient that is summed over all positions in bfloat16
        return (y_BTD + self.bias).astype(x_BTD.dtype) if "bias" in self else y_BTD


class Attention(nn.Module):
    """Causal multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, config: ModelConfig, layer: int, runtime: Runtime) -> None:
        super().__init__()
        self.config, self.layer, self.runtime = config, layer, runtime
        self.in_proj = Linear(config.dim, 3 * config.dim, bias=config.attention_bias)
        self.out_proj = Linear(config.dim, config.dim, bias=config.attention_bias)
        self.dropout = _Dropout(config.attention_dropout)

    def __call__(self, x_BTD: mx.array, cache: KeyValueCache | None, random_key: mx.array | None = None) -> mx.array:
        B, T, D = x_BTD.shape
        # One product for queries, keys and values, then heads as a dimension of the batch.
        qkv = self.in_proj(x_BTD).reshape(B, T, 3, self.config.num_heads, self.config.head_dim)
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)  # each [B, H, T, K]
        if cache is not None:
            key, value = cache.append(self.layer, key, value, self.config.context)
        scale, mask = self.config.head_dim**-0.5, "causal" if T > 1 else None
        dropped = self.training and self.config.attention_dropout > 0  # the fused kernel has no dropout
        if dropped or self.runtime.attention == "explicit":
            scores_BHTT = ((scale * query) @ key.swapaxes(2, 3)).astype(mx.float32) + _causal_bias(T)
            shares_BHTT = mx.softmax(scores_BHTT, axis=-1).astype(value.dtype)
            attended_BHTK = self.dropout(shares_BHTT, random_key) @ value
        else:
            attended_BHTK = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)
        return self.out_proj(attended_BHTK.swapaxes(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = nn.gelu_approx if config.activation == "gelu_tanh" else nn.gelu
        self.up = Linear(config.dim, config.hidden_dim)
        self.down = Linear(config.hidden_dim, config.dim)

    def __call__(self, x_BTD: mx.array) -> mx.array:
        return self.down(self.activation(self.up(x_BTD)))


class TransformerBlock(nn.Module):
    """Pre-norm: each half normalises its input and adds its output to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, runtime: Runtime) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config, runtime)
        self.attention = Attention(config, layer, runtime)
        self.norm2 = LayerNorm(config, runtime)
        self.feed_forward = FeedForward(config)
        self.dropout = _Dropout(config.dropout)

    def __call__(
        self, x_BTD: mx.array, cache: KeyValueCache | None = None, random_key: mx.array | None = None
    ) -> mx.array:
        keys = [None] * 3 if random_key is None else mx.random.split(random_key, 3)
        x_BTD = x_BTD + self.dropout(self.attention(self.norm1(x_BTD), cache, keys[0]), keys[1])
        return x_BTD + self.dropout(self.feed_forward(self.norm2(x_BTD)), keys[2])


class GPT(nn.Module):
    """Token ids to final hidden states; the output head stays outside, so that losses can chunk it."""

    def __init__(self, config: ModelConfig, runtime: Runtime) -> None:
        super().__init__()
        self.config, self.runtime = config, runtime
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.dim)
        self.positional_embedding = nn.Embedding(config.context, config.dim)
        self.dropout = _Dropout(config.dropout)
        self.transformer_blocks = [TransformerBlock(config, i, runtime) for i in range(config.num_layers)]
        self.final_layer_norm = LayerNorm(config, runtime)
        if not config.tie_embeddings:
            self.out_head = nn.Linear(config.dim, config.vocabulary_size, bias=False)

    @property
    def head_VD(self) -> mx.array:
        """Weight of the output head."""
        return self.token_embedding.weight if self.config.tie_embeddings else self.out_head.weight

    def __call__(self, tokens_BT: mx.array, cache: KeyValueCache | None = None) -> mx.array:
        """Final hidden states [B, T, D] (the runtime's dtype) of token ids [B, T] that follow what the cache holds."""
        start, end = (0 if cache is None else cache.length), tokens_BT.shape[1]
        end += start
        if end > self.config.context:  # MLX would read beyond the table, silently
            raise ValueError(f"{end} positions do not fit the context of {self.config.context}")
        # A token is its meaning plus its place.
        x_BTD = self.token_embedding(tokens_BT) + self.positional_embedding.weight[start:end]
        x_BTD = self.dropout(x_BTD)
        for block in self.transformer_blocks:
            # Keep only the block's input, and compute the rest again in the backward pass: with the same dropout.
            if self.runtime.gradient_checkpointing and self.training:
                key = mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
                x_BTD = nn.utils.checkpoint(block, partial(block, cache=None, random_key=key))(x_BTD)
            else:
                x_BTD = block(x_BTD, cache)
        if cache is not None:
            cache.length = end
        return self.final_layer_norm(x_BTD)


def make_model(*, config: ModelConfig, parameters: Mapping[str, np.ndarray], runtime: Runtime) -> GPT:
    """A model with these weights, in evaluation mode; FaiscaError where names or shapes differ."""
    check_parameters(dict(parameters), config)
    model = GPT(config, runtime)  # its own initial values are lazy, and never computed
    model.update(tree_unflatten([(name, mx.array(value)) for name, value in parameters.items()]))
    mx.eval(model.parameters())
    return model.eval()


def _causal_bias(T: int) -> mx.array:
    return nn.MultiHeadAttention.create_additive_causal_mask(T)
