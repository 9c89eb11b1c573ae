"""A decoder, blocks in forward order: GPT-2's (Radford et al. 2019) or, by its options, Llama's or Qwen's.

In bfloat16 only the factors of matrix products are, and what lies between two products of a branch:
weights, embeddings, the residual stream and norms stay float32, and so does every sum.

Shapes: B rows, T positions, D model width, H query heads, G heads of keys and values, K head width,
J = K/2, V vocabulary. Modules are named so that `state_dict()` has the names of `faisca.parameters`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from faisca.backend import Runtime
from faisca.bigrams import bigram_keys
from faisca.config import ModelConfig
from faisca.parameters import check_parameters, in_block, trained
from faisca.rotation import rotation_table
from faisca_torch.cache import KeyValueCache, tokens_before
from faisca_torch.experts import Experts
from faisca_torch.lora import LoRA, adapt

Rotation = tuple[Tensor, Tensor]  # cosine and sine of the positions' angles, [T, J] each


class Head(NamedTuple):
    """Logits are hidden · weightᵀ, squeezed into ± soft_cap by tanh where that is not 0."""

    weight_VD: Tensor
    soft_cap: float = 0.0


class Norm(nn.Module):
    """LayerNorm, or RMSNorm (Zhang & Sennrich 2019), in float32; hands on the runtime's dtype, for the next product."""

    def __init__(self, kind: str, width: int, config: ModelConfig, runtime: Runtime) -> None:
        super().__init__()
        self.epsilon = config.norm_epsilon
        self.narrow = runtime.dtype == "bfloat16"
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if self.narrow else x
        if self.bias is None:
            normed = F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        else:
            normed = F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
        return normed.bfloat16() if self.narrow else normed


class Linear(nn.Linear):
    """Multiplies in the dtype of its input; the weights are float32, and so is what adds up their gradients."""

    lora: LoRA  # where `adapt` puts one

    def forward(self, x_BTD: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x_BTD.dtype)
        product = F.linear(x_BTD, self.weight.to(x_BTD.dtype), bias)
        if not hasattr(self, "lora"):
            return product
        base = product - bias if self.lora.dora and bias is not None else product
        return product + self.lora(x_BTD, F.linear, self.weight, base)


class Attention(nn.Module):
    """Causal self-attention; with grouped queries, neighbouring heads share one head of keys and values."""

    def __init__(self, config: ModelConfig, layer: int, runtime: Runtime) -> None:
        super().__init__()
        self.config, self.layer, self.runtime = config, layer, runtime
        self.heads = [config.num_heads, config.kv_heads, config.kv_heads]
        self.in_proj = Linear(config.dim, sum(self.heads) * config.head_width, bias=config.attention_bias)
        self.out_proj = Linear(config.num_heads * config.head_width, config.dim, bias=config.output_bias)
        if config.qk_norm:
            self.query_norm, self.key_norm = (Norm("rms", width, config, runtime) for width in config.qk_norm_widths)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, cache: KeyValueCache | None) -> Tensor:
        # One product for queries, keys and values, then heads as a dimension of the batch.
        product = self.in_proj(x_BTD)
        if self.config.qk_norm_over == "all":
            query, key, value = product.split([heads * self.config.head_width for heads in self.heads], dim=2)
            product = torch.cat((self.query_norm(query), self.key_norm(key), value), dim=2)
        all_heads = product.unflatten(2, (-1, self.config.head_width)).transpose(1, 2)
        query_BHTK, key_BGTK, value_BGTK = all_heads.split(self.heads, dim=1)
        if self.config.qk_norm and self.config.qk_norm_over == "head":
            query_BHTK, key_BGTK = self.query_norm(query_BHTK), self.key_norm(key_BGTK)
        if rotation is not None:
            query_BHTK, key_BGTK = rotate(query_BHTK, rotation), rotate(key_BGTK, rotation)
        if cache is not None:
            key_BGTK, value_BGTK = cache.append(self.layer, key_BGTK, value_BGTK)
        attended_BHTK = self.attend(query_BHTK, key_BGTK, value_BGTK)
        return cast(Tensor, self.out_proj(attended_BHTK.transpose(1, 2).flatten(2)))

    def attend(self, query_BHTK: Tensor, key_BGTK: Tensor, value_BGTK: Tensor) -> Tensor:
        """softmax(query · key / √K) · value over the positions up to each query's own."""
        T, shared_by = query_BHTK.shape[2], self.config.num_heads // self.config.kv_heads
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.runtime.attention == "fused":  # a single position may see all that came before
            return F.scaled_dot_product_attention(
                query_BHTK, key_BGTK, value_BGTK, dropout_p=dropout, is_causal=T > 1, enable_gqa=shared_by > 1
            )
        key_BHTK, value_BHTK = (heads.repeat_interleave(shared_by, dim=1) for heads in (key_BGTK, value_BGTK))
        later_TT = torch.ones(T, T, dtype=torch.bool, device=query_BHTK.device).triu(1)
        scores_BHTT = (self.config.head_width**-0.5 * query_BHTK) @ key_BHTK.mT
        shares_BHTT = F.softmax(scores_BHTT.float().masked_fill(later_TT, -torch.inf), dim=-1)
        return F.dropout(shares_BHTT.to(value_BHTK.dtype), dropout) @ value_BHTK


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Each pair (i, i + K/2) turned by its position's angle; see `faisca.rotation`."""
    (cos_TJ, sin_TJ), (left, right) = rotation, x_BHTK.chunk(2, dim=-1)
    turned = torch.cat((left * cos_TJ - right * sin_TJ, right * cos_TJ + left * sin_TJ), dim=-1)
    return turned.to(x_BHTK.dtype)


class FeedForward(nn.Module):
    """Up to the hidden width, an activation there, and down again; and no router's logits, as `Experts` has."""

    def __init__(self, config: ModelConfig, width: int, linear: Callable[..., Any] = Linear) -> None:
        super().__init__()
        self.activation = config.activation
        if config.activation == "swiglu":
            self.gate = linear(config.dim, width, bias=config.feed_forward_bias)
        self.up = linear(config.dim, width, bias=config.feed_forward_bias)
        self.down = linear(width, config.dim, bias=config.feed_forward_bias)

    def forward(self, x_BTD: Tensor, *groups: Any) -> tuple[Tensor, list[Tensor]]:
        up = self.up(x_BTD, *groups)
        match self.activation:
            case "gelu":
                active = F.gelu(up)
            case "gelu_tanh":
                active = F.gelu(up, approximate="tanh")
            case "swiglu":
                active = F.silu(self.gate(x_BTD, *groups)) * up
            case "relu2":
                active = F.relu(up).square()
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
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: Tensor, rotation: Rotation | None, cache: KeyValueCache | None
    ) -> tuple[Tensor, list[Tensor]]:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm1(x_BTD), rotation, cache))
        added_BTD, routed = self.feed_forward(self.norm2(x_BTD))
        return x_BTD + self.dropout(added_BTD), routed


class GPT(nn.Module):
    """Token ids to final hidden states; the output head stays outside, so that losses can chunk it."""

    def __init__(self, config: ModelConfig, runtime: Runtime) -> None:
        super().__init__()
        self.config, self.runtime = config, runtime
        self.rotation: Rotation | None = None
        self.bigram_keys: tuple[Tensor, Tensor] | None = None
        # nn.Embedding's own normal_() on the meta device would import all of torch._dynamo: a second
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(config.vocabulary_size, config.dim))
        if config.positions == "learned":
            self.positional_embedding = nn.Embedding.from_pretrained(torch.empty(config.context, config.dim))
        if config.bigram_rows:
            self.bigram_embedding = nn.Embedding.from_pretrained(torch.empty(config.bigram_rows, config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(config, i, runtime) for i in range(config.num_layers))
        self.final_layer_norm = Norm(config.norm, config.dim, config, runtime)
        if not config.tie_embeddings:
            self.out_head = nn.Linear(config.dim, config.vocabulary_size, bias=False)

    @property
    def head(self) -> Head:
        """What makes logits of final hidden states."""
        weight_VD = self.token_embedding.weight if self.config.tie_embeddings else self.out_head.weight
        return Head(weight_VD, self.config.logit_soft_cap)

    def forward(self, tokens_BT: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Final hidden states [B, T, D] (the runtime's dtype) of token ids [B, T] that follow what the cache holds."""
        return GPT.hidden_and_routed(self, tokens_BT, cache)[0]  # not the instance's, which FSDP wraps for itself

    def hidden_and_routed(self, tokens_BT: Tensor, cache: KeyValueCache | None = None) -> tuple[Tensor, list[Tensor]]:
        """Final hidden states, and the logits [B · T, E] of each layer's router, if it has one."""
        end = (start := 0 if cache is None else cache.length) + tokens_BT.shape[1]
        if end > self.config.context:
            raise ValueError(f"{end} positions do not fit the context of {self.config.context}")
        x_BTD, rotation, routed = self.token_embedding(tokens_BT), None, []
        # A token is its meaning plus its place; or its place turns its queries and keys.
        if self.rotation is None:
            x_BTD = x_BTD + self.positional_embedding.weight[start:end]
        else:
            rotation = (self.rotation[0][start:end], self.rotation[1][start:end])
        if self.bigram_keys is not None:  # a pair of tokens may mean what neither does
            first_V, second_V = self.bigram_keys
            keys_BT = first_V[tokens_before(tokens_BT, cache)] ^ second_V[tokens_BT]
            x_BTD = x_BTD + self.bigram_embedding(keys_BT % self.config.bigram_rows)
        x_BTD = self.dropout(x_BTD)
        for block in self.transformer_blocks:
            # Keep only the block's input, and compute the rest again in the backward pass.
            if self.runtime.gradient_checkpointing and self.training:
                x_BTD, more = checkpoint(block, x_BTD, rotation, None, use_reentrant=False)
            else:
                x_BTD, more = block(x_BTD, rotation, cache)
            routed += more
        if cache is not None:
            cache.length, cache.last_B1 = end, tokens_BT[:, -1:]
        return self.final_layer_norm(x_BTD), routed


def make_model(*, config: ModelConfig, parameters: Mapping[str, np.ndarray], runtime: Runtime) -> GPT:
    """A model with these weights, in evaluation mode; FaiscaError where names or shapes differ."""
    check_parameters(parameters, config)
    with torch.device("meta"):  # no memory and no random numbers: every value comes from `parameters`
        model = GPT(config, runtime)
        adapt(model, config)
    # Rounded one by one: all in float32 first would take more than rounding saves. None: as they come.
    narrow = torch.bfloat16 if runtime.weights == "bfloat16" else None
    tensors = {
        name: torch.tensor(value, dtype=narrow if in_block(name, value.shape) else None, device=runtime.device)
        for name, value in parameters.items()
    }
    model.load_state_dict(tensors, strict=True, assign=True)
    if config.positions == "rope":
        cos_TJ, sin_TJ = (model.head.weight_VD.new_tensor(table) for table in rotation_table(config))
        model.rotation = cos_TJ, sin_TJ
    if config.bigram_rows:
        first_V, second_V = (torch.from_numpy(keys).to(runtime.device) for keys in bigram_keys(config))
        model.bigram_keys = first_V, second_V
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name, config))
    return model.eval()
