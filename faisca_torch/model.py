"""A GPT-2-style decoder (Radford et al. 2019), blocks in forward order.

In bfloat16 only the factors of matrix products are, and what lies between two products of a branch:
weights, embeddings, the residual stream and norms stay float32, and so does every sum.

Shapes: B rows, T positions, D model width, H heads, K head width, V vocabulary. Modules are named
so that `state_dict()` has the canonical names of `faisca.parameters`.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from faisca.backend import Runtime
from faisca.config import ModelConfig
from faisca.parameters import check_parameters


class KeyValueCache:
    """Keys and values of the positions seen so far, one pair of [B, H, length, K] tensors a block."""

    def __init__(self, num_layers: int) -> None:
        self.length = 0
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def append(self, layer: int, key_BHTK: Tensor, value_BHTK: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Write new positions of a block, and return all of its positions so far."""
        pair = self.layers[layer]
        # All the room at once: growing would copy the cache at every token.
        if pair is None:
            B, H, _, K = key_BHTK.shape
            pair = self.layers[layer] = (key_BHTK.new_empty(B, H, capacity, K), key_BHTK.new_empty(B, H, capacity, K))
        end = self.length + key_BHTK.shape[2]
        pair[0][:, :, self.length : end] = key_BHTK
        pair[1][:, :, self.length : end] = value_BHTK
        return pair[0][:, :, :end], pair[1][:, :, :end]

    def keep(self, rows: np.ndarray) -> None:
        """Drop all rows but these: finished rows cost nothing."""
        self.layers = [None if pair is None else (pair[0][rows], pair[1][rows]) for pair in self.layers]


class LayerNorm(nn.LayerNorm):
    """Normalises the float32 residual stream, and hands on the runtime's dtype: that of the products that follow."""

    def __init__(self, config: ModelConfig, runtime: Runtime) -> None:
        super().__init__(config.dim, eps=config.norm_epsilon)
        self.narrow = runtime.dtype == "bfloat16"

    def forward(self, x_BTD: Tensor) -> Tensor:
        normed_BTD = super().forward(x_BTD)
        return normed_BTD.bfloat16() if self.narrow else normed_BTD


class Linear(nn.Linear):
    """Multiplies in the dtype of its input; the weights are float32, and so is what adds up their gradients."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x_BTD.dtype)
        return F.linear(x_BTD, self.weight.to(x_BTD.dtype), bias)


class Attention(nn.Module):
    """Causal multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, config: ModelConfig, layer: int, runtime: Runtime) -> None:
        super().__init__()
        self.config, self.layer, self.runtime = config, layer, runtime
        self.in_proj = Linear(config.dim, 3 * config.dim, bias=config.attention_bias)
        self.out_proj = Linear(config.dim, config.dim, bias=config.attention_bias)

    def forward(self, x_BTD: Tensor, cache: KeyValueCache | None) -> Tensor:
        B, T, D = x_BTD.shape
        # One product for queries, keys and values, then heads as a dimension of the batch.
        qkv = self.in_proj(x_BTD).view(B, T, 3, self.config.num_heads, self.config.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, T, K]
        if cache is not None:
            key, value = cache.append(self.layer, key, value, self.config.context)
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.runtime.attention == "explicit":
            later_TT = torch.ones(T, T, dtype=torch.bool, device=query.device).triu(1)
            scores_BHTT = ((self.config.head_dim**-0.5 * query) @ key.mT).float().masked_fill(later_TT, -torch.inf)
            shares_BHTT = F.softmax(scores_BHTT, dim=-1).to(value.dtype)
            attended_BHTK = F.dropout(shares_BHTT, dropout) @ value
        else:  # a single position may see all that came before
            attended_BHTK = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=T > 1)
        return cast(Tensor, self.out_proj(attended_BHTK.transpose(1, 2).reshape(B, T, D)))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self.up = Linear(config.dim, config.hidden_dim)
        self.down = Linear(config.hidden_dim, config.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.gelu(self.up(x_BTD), approximate=self.approximate)))


class TransformerBlock(nn.Module):
    """Pre-norm: each half normalises its input and adds its output to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, runtime: Runtime) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config, runtime)
        self.attention = Attention(config, layer, runtime)
        self.norm2 = LayerNorm(config, runtime)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm1(x_BTD), cache))
        return cast(Tensor, x_BTD + self.dropout(self.feed_forward(self.norm2(x_BTD))))


class GPT(nn.Module):
    """Token ids to final hidden states; the output head stays outside, so that losses can chunk it."""

    def __init__(self, config: ModelConfig, runtime: Runtime) -> None:
        super().__init__()
        self.config, self.runtime = config, runtime
        # nn.Embedding's own normal_() on the meta device would import all of torch._dynamo: a second
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(config.vocabulary_size, config.dim))
        self.positional_embedding = nn.Embedding.from_pretrained(torch.empty(config.context, config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(config, i, runtime) for i in range(config.num_layers))
        self.final_layer_norm = LayerNorm(config, runtime)
        if not config.tie_embeddings:
            self.out_head = nn.Linear(config.dim, config.vocabulary_size, bias=False)

    @property
    def head_VD(self) -> Tensor:
        """Weight of the output head."""
        return self.token_embedding.weight if self.config.tie_embeddings else self.out_head.weight

    def forward(self, tokens_BT: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Final hidden states [B, T, D] (the runtime's dtype) of token ids [B, T] that follow what the cache holds."""
        start, end = (0 if cache is None else cache.length), tokens_BT.shape[1]
        end += start
        if end > self.config.context:
            raise ValueError(f"{end} positions do not fit the context of {self.config.context}")
        # A token is its meaning plus its place.
        x_BTD = self.token_embedding(tokens_BT) + self.positional_embedding.weight[start:end]
        x_BTD = self.dropout(x_BTD)
        for block in self.transformer_blocks:
            # Keep only the block's input, and compute the rest again in the backward pass.
            if self.runtime.gradient_checkpointing and self.training:
                x_BTD = checkpoint(block, x_BTD, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, cache)
        if cache is not None:
            cache.length = end
        return cast(Tensor, self.final_layer_norm(x_BTD))


def make_model(*, config: ModelConfig, parameters: Mapping[str, np.ndarray], runtime: Runtime) -> GPT:
    """A model with these weights, in evaluation mode; FaiscaError where names or shapes differ."""
    check_parameters(dict(parameters), config)
    with torch.device("meta"):  # no memory and no random numbers: every value comes from `parameters`
        model = GPT(config, runtime)
    tensors = {name: torch.tensor(value, device=runtime.device) for name, value in parameters.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()
