"""nanoGPT's recipe for a computer without a GPU, written by us from its published numbers; no line is copied.

Source: github.com/karpathy/nanoGPT at 3adf61e (November 2025): the README's command for "a macbook (or other cheap
computer)" over config/train_shakespeare_char.py and train.py's defaults. GPT-2's layout without biases, pre-norm,
exact GELU, tied head, N(0, 0.02²) and residual projections smaller by √(2 · layers); AdamW with β 0.9 and 0.99, decay
0.1 on matrices, clipping at 1, linear warm-up and a cosine to a tenth of the rate. GPT-2's vocabulary, as its data
scripts for words have it; batches begin anywhere in the text. The rate is for its 2,000 steps; here they fill the
budget. Its authors give no rule for the size: this is the one that they give for such a machine.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faisca.config import TokenizerConfig
from faisca.streams import generator


@dataclass(frozen=True)
class Options:
    """Its names are ours, its numbers nanoGPT's."""

    layers: int = 4
    heads: int = 4
    dim: int = 128
    window: int = 64
    batch_size: int = 12
    micro_batch_size: int = 12
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    clip_norm: float = 1.0


def tokenizer(options: Options) -> TokenizerConfig:
    """GPT-2's, through tiktoken."""
    return TokenizerConfig("gpt2")


def batch(tokens: np.ndarray, end: int, options: Options, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets [B, T] that begin anywhere."""
    random = generator(seed, "nanoGPT's batches", step)
    starts = random.integers(len(tokens) - options.window, size=options.batch_size)
    places = starts[:, None] + np.arange(options.window)
    return tokens[places].astype(np.int32), tokens[places + 1].astype(np.int32)


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm and added to the stream."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        dim, self.heads = options.dim, options.heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        heads = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x_BTD)).chunk(3, 2)
        )
        attended_BHTK = F.scaled_dot_product_attention(*heads, is_causal=True)
        x_BTD = x_BTD + self.out(attended_BHTK.transpose(1, 2).flatten(2))
        return x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD))))


class Model(nn.Module):
    """Ids [B, T] -> logits [B, T, V]."""

    def __init__(self, options: Options, vocabulary: int) -> None:
        super().__init__()
        self.num_layers, self.attention_width = options.layers, options.dim
        self.tokens = nn.Embedding(vocabulary, options.dim)
        self.positions = nn.Embedding(options.window, options.dim)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.dim, bias=False)
        self.head = nn.Linear(options.dim, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                smaller = math.sqrt(2 * options.layers) if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 / smaller)
        self.head.weight = self.tokens.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.tokens(ids_BT) + self.positions.weight[: ids_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD))


class Updater:
    """AdamW with the schedule."""

    def __init__(self, model: Model, options: Options) -> None:
        self.model, self.options = model, options
        matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            fused=True,
        )

    def update(self, step: int, total: int) -> None:
        """Clip, step, clear."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, step, total)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def learning_rate(options: Options, step: int, total: int) -> float:
    """Rate of a step (from 0) of `total`."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / (options.warmup_steps + 1)
    done = min(1.0, (step - options.warmup_steps) / max(1, total - options.warmup_steps))
    return options.min_learning_rate + (options.learning_rate - options.min_learning_rate) * (
        (1 + math.cos(math.pi * done)) / 2
    )
