"""MiniMind's pre-training recipe at a size for minutes on a CPU, written by us from its published numbers.

Source: github.com/jingyaogong/minimind at d65ef2c (August 2026): model/model_minimind.py, trainer/train_pretrain.py,
trainer/trainer_utils.py, README_en.md; no line is copied. A Llama with Qwen3's norms of queries and keys: RMSNorm (ε
1e-6), rotary positions (base 1e6), 8 query heads on 4 of keys and values, SwiGLU of width π · dim in multiples of 64,
tied head, vocabulary of 6,400, no biases, torch's initial values as transformers' `post_init` leaves them: N(0, 0.02²);
AdamW with torch's defaults (β 0.9 and 0.999, decay 0.01 on everything), 5e-4 · (0.1 + 0.45 (1 + cos)), clipping at 1.

Its authors publish 26 M parameters and more, and no rule for the size; theirs see some ten tokens a parameter. A
budget of minutes on a CPU holds a few million tokens: 4 layers of 128 (1.6 M parameters) keep that ratio nearest, with
their head counts. Batches are 32 rows without their accumulation over 8, so that there are enough steps. Their files
hold texts about as long as `max_seq_len`; titles are joined in the same way, so that no row is padding.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faisca.config import TokenizerConfig
from faisca.data.windows import Windows, training_batch


@dataclass(frozen=True)
class Options:
    """Its names are ours, its numbers MiniMind's but for the sizes that the module's docstring explains."""

    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    dim: int = 128
    vocabulary: int = 6400
    window: int = 128
    batch_size: int = 32
    micro_batch_size: int = 32
    learning_rate: float = 5e-4
    clip_norm: float = 1.0
    rope_base: float = 1e6
    epsilon: float = 1e-6

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return math.ceil(self.dim * math.pi / 64) * 64


def tokenizer(options: Options) -> TokenizerConfig:
    """A byte-level BPE of its size, of the training titles."""
    return TokenizerConfig("bpe", options.vocabulary)


def batch(tokens: np.ndarray, end: int, options: Options, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets [B, T]: rows side by side, in another order each epoch."""
    windows = Windows(tokens, options.window, options.window)
    return training_batch(windows, batch_size=options.batch_size, seed=seed, stage="minimind", step=step)


def rotate(x_BHTK: Tensor, base: float) -> Tensor:
    """Turn pairs (k, k + K/2) by their position."""
    T, K = x_BHTK.shape[-2:]
    angles_TK = torch.outer(torch.arange(T), base ** (-torch.arange(0, K, 2) / K)).repeat(1, 2)
    left, right = x_BHTK.chunk(2, -1)
    return x_BHTK * angles_TK.cos() + torch.cat([-right, left], -1) * angles_TK.sin()


class Block(nn.Module):
    """Attention and SwiGLU, each after a norm and added to the stream."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options, dim, width = options, options.dim, options.dim // options.heads
        self.norm1, self.norm2 = (nn.RMSNorm(dim, eps=options.epsilon) for _ in range(2))
        self.query_norm, self.key_norm = (nn.RMSNorm(width, eps=options.epsilon) for _ in range(2))
        self.query, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.key, self.value = (nn.Linear(dim, options.kv_heads * width, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(dim, options.hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(options.hidden, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h, base = self.norm1(x_BTD), self.options.rope_base
        query, key, value = (
            layer(h).unflatten(2, (heads, -1)).transpose(1, 2)
            for layer, heads in (
                (self.query, self.options.heads),
                (self.key, self.options.kv_heads),
                (self.value, self.options.kv_heads),
            )
        )
        query, key = rotate(self.query_norm(query), base), rotate(self.key_norm(key), base)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x_BTD = x_BTD + self.out(attended.transpose(1, 2).flatten(2))
        h = self.norm2(x_BTD)
        return x_BTD + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """Ids [B, T] -> logits [B, T, V]."""

    def __init__(self, options: Options, vocabulary: int) -> None:
        super().__init__()
        self.num_layers, self.attention_width = options.layers, options.dim
        self.tokens = nn.Embedding(vocabulary, options.dim)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.norm = nn.RMSNorm(options.dim, eps=options.epsilon)
        self.head = nn.Linear(options.dim, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.tokens(ids_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD))


class Updater:
    """AdamW with the schedule."""

    def __init__(self, model: Model, options: Options) -> None:
        self.model, self.options = model, options
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, fused=True)

    def update(self, step: int, total: int) -> None:
        """Clip, step, clear."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, step, total)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def learning_rate(options: Options, step: int, total: int) -> float:
    """Rate of a step (from 0) of `total`: a cosine to a tenth, without a warm-up."""
    return options.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (step + 1) / total))))
