"""nanochat's pre-training recipe at a depth for minutes on a CPU, written by us from its published code and numbers.

Source: github.com/karpathy/nanochat at 92d63d4 (July 2026): nanochat/gpt.py, nanochat/optim.py, scripts/base_train.py,
runs/runcpu.sh; no line is copied. Rotary positions (base 1e5), norms without weights (of the embedding, queries and
keys too; these are then 1.2 times as long), ReLU², untied head, soft cap 15, projections that begin at zero, scalars on
the residual stream and on the first embedding at each layer, a share of the token before ("smear"), the middle layer's
stream taken away at the end ("backout"), value embeddings at every other layer. Matrices learn by Muon: rows made even
(arXiv 2603.28254), Polar Express (2505.16932), renormalisation (2602.21545), NorMuon (2510.05491), cautious decay; the
rest by AdamW. Warm-up 40 steps, warm-down over the last 65 %. In float32, as their code does on CPUs.

Width is 64 · depth; a model sees 12 tokens for each weight of its blocks and head: 11 M at depth 2 with a vocabulary of
4,096, which is 8e13 operations, of the order of ten minutes of two cores; depth 3 takes three times as many, depth 4
eight. With their 32,768 tokens, for 2 billion characters, depth 2 would see 55 M. Heads of 64, whole windows of 512 and
16,384 tokens a step are their CPU script's. Rates and decay scale with batch and length by their rule. Their best-fit
packing crops documents; titles fit, so rows begin with a beginning-of-text, as theirs, and go on as the titles come.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faisca.config import TokenizerConfig
from faisca.streams import generator

SOFT_CAP, SHARPER, GATED, SMEARED, TOKENS_PER_WEIGHT = 15.0, 1.2, 12, 24, 12.0
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""coefficients of the paper for five steps"""


@dataclass(frozen=True)
class Options:
    """Its names are ours, its numbers nanochat's; depth and vocabulary are explained above."""

    depth: int = 2
    vocabulary: int = 4096
    window: int = 512
    batch_size: int = 32
    micro_batch_size: int = 8
    matrix_rate: float = 0.02
    embedding_rate: float = 0.3
    head_rate: float = 0.008
    scalar_rate: float = 0.5
    weight_decay: float = 0.28
    warmup_steps: int = 40
    warmdown_share: float = 0.65

    @property
    def dim(self) -> int:
        return 64 * self.depth

    def horizon(self, depth: int) -> float:
        """Tokens that a model of this depth sees, by the authors' ratio: for its blocks and its head."""
        gates = len([i for i in range(depth) if has_values(i, depth)]) * depth * GATED
        return TOKENS_PER_WEIGHT * (12 * depth * (64 * depth) ** 2 + gates + self.vocabulary * 64 * depth)

    @property
    def batch_scale(self) -> float:
        """Of all rates but smear's and backout's: √(tokens in a batch / 2^19)."""
        return math.sqrt(self.batch_size * self.window / 2**19)

    @property
    def scaled_decay(self) -> float:
        """Of the matrices: the same decay over a run as depth 12 has, where everything was tuned."""
        return self.weight_decay * self.batch_scale * self.horizon(12) / self.horizon(self.depth)


def tokenizer(options: Options) -> TokenizerConfig:
    """A byte-level BPE of the training titles."""
    return TokenizerConfig("bpe", options.vocabulary)


def batch(tokens: np.ndarray, end: int, options: Options, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets [B, T] whose first token is an end-of-text, after which a title begins."""
    begins = np.flatnonzero(tokens[: len(tokens) - options.window] == end)
    starts = generator(seed, "nanochat's batches", step).choice(begins, options.batch_size)
    places = starts[:, None] + np.arange(options.window)
    return tokens[places].astype(np.int32), tokens[places + 1].astype(np.int32)


def has_values(layer: int, depth: int) -> bool:
    """Whether a layer has value embeddings: the last, and every other before it."""
    return layer % 2 == (depth - 1) % 2


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def rotate(x_BHTK: Tensor) -> Tensor:
    """Turn pairs (k, k + K/2) by their position."""
    T, K = x_BHTK.shape[-2:]
    angles = torch.outer(torch.arange(T), 100_000.0 ** (-torch.arange(0, K, 2) / K))
    left, right = x_BHTK.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([left * cos + right * sin, right * cos - left * sin], -1)


class Block(nn.Module):
    """Attention and ReLU², each of a normed stream and added to it."""

    def __init__(self, options: Options, layer: int) -> None:
        super().__init__()
        dim, self.heads = options.dim, options.depth
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
        self.gate = nn.Linear(GATED, self.heads, bias=False) if has_values(layer, options.depth) else None
        bound = math.sqrt(3 / dim)
        for linear, reach in ((self.query, 1), (self.key, 1), (self.value, 1), (self.up, 0.4)):
            nn.init.uniform_(linear.weight, -bound * reach, bound * reach)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)
        if self.gate is not None:
            nn.init.uniform_(self.gate.weight, 0, 0.02)

    def forward(self, x_BTD: Tensor, values_BTD: Tensor | None) -> Tensor:
        h = norm(x_BTD)
        query, key, value = (layer(h).unflatten(2, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        if self.gate is not None and values_BTD is not None:
            share = 3 * self.gate(h[..., :GATED]).sigmoid().unsqueeze(-1)
            value = value + share * values_BTD.unflatten(2, (self.heads, -1))
        query, key = (SHARPER * norm(rotate(part.transpose(1, 2))) for part in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value.transpose(1, 2), is_causal=True)
        x_BTD = x_BTD + self.out(attended.transpose(1, 2).flatten(2))
        return x_BTD + self.down(self.up(norm(x_BTD)).relu().square())


class Model(nn.Module):
    """Ids [B, T] -> logits [B, T, V]."""

    def __init__(self, options: Options, vocabulary: int) -> None:
        super().__init__()
        depth, dim = options.depth, options.dim
        self.num_layers, self.attention_width = depth, dim
        self.tokens, self.head = nn.Embedding(vocabulary, dim), nn.Linear(dim, vocabulary, bias=False)
        self.blocks = nn.ModuleList(Block(options, layer) for layer in range(depth))
        layers = [str(layer) for layer in range(depth) if has_values(layer, depth)]
        self.values = nn.ModuleDict({layer: nn.Embedding(vocabulary, dim) for layer in layers})
        places = torch.arange(depth) / max(1, depth - 1)
        self.stream_scale, self.first_scale = nn.Parameter(1.15 - 0.10 * places), nn.Parameter(0.20 - 0.15 * places)
        self.smear_gate, self.smear = nn.Linear(SMEARED, 1, bias=False), nn.Parameter(torch.zeros(1))
        self.backout = nn.Parameter(torch.full((1,), 0.2))
        nn.init.normal_(self.tokens.weight, std=0.8)
        nn.init.normal_(self.head.weight, std=0.001)
        nn.init.uniform_(self.smear_gate.weight, 0, 0.02)
        for table in self.values.values():
            nn.init.uniform_(table.weight, -math.sqrt(3 / dim), math.sqrt(3 / dim))

    def forward(self, ids_BT: Tensor) -> Tensor:
        x = norm(self.tokens(ids_BT))
        before = self.smear * self.smear_gate(x[:, 1:, :SMEARED]).sigmoid() * x[:, :-1]
        x = first = torch.cat([x[:, :1], x[:, 1:] + before], 1)
        middle = x
        for i, block in enumerate(self.blocks):
            values = self.values[str(i)](ids_BT) if str(i) in self.values else None
            x = block(self.stream_scale[i] * x + self.first_scale[i] * first, values)
            middle = x if i == len(self.blocks) // 2 else middle
        return SOFT_CAP * torch.tanh(self.head(norm(x - self.backout * middle)) / SOFT_CAP)


class Updater:
    """Muon for the blocks' matrices, AdamW for the rest, and the schedules of both."""

    def __init__(self, model: Model, options: Options) -> None:
        self.model, self.options, scale = model, options, options.batch_scale
        narrow = scale * (options.dim / 768) ** -0.5
        groups = (
            ([model.head.weight], options.head_rate * narrow, (0.8, 0.96), 0.01),
            ([model.tokens.weight], options.embedding_rate * narrow, (0.8, 0.995), 0.001),
            (list(model.values.parameters()), options.embedding_rate * narrow / 2, (0.8, 0.995), 0.01),
            ([model.stream_scale], options.scalar_rate * scale / 100, (0.8, 0.95), 0.05),
            ([model.first_scale], options.scalar_rate * scale, (0.96, 0.95), 0.0),
            ([model.smear_gate.weight, model.smear, model.backout], 0.2, (0.8, 0.95), 0.0),
        )
        named = [dict(zip(("params", "lr", "betas", "weight_decay"), group, strict=True)) for group in groups]
        self.adamw = torch.optim.AdamW(named, eps=1e-10, fused=True)
        self.rates = [group[1] for group in groups]
        self.muon = [Muon(parameter) for parameter in model.blocks.parameters()]

    def update(self, step: int, total: int) -> None:
        """Step and clear; nothing is clipped."""
        options, share = self.options, rate_share(self.options, step, total)
        for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.adamw.step()
        decay = options.scaled_decay * (1 + math.cos(math.pi * min(1.0, step / total))) / 2
        rate, momentum = options.matrix_rate * options.batch_scale * share, muon_momentum(options, step, total)
        for muon in self.muon:
            muon.step(rate, momentum, decay)
        self.model.zero_grad(set_to_none=True)


class Muon:
    """Muon of one matrix."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight, self.average = weight, torch.zeros_like(weight)
        self.dim = 1 if weight.shape[0] >= weight.shape[1] else 0
        self.squares = torch.zeros_like(weight.sum(self.dim, keepdim=True))

    @torch.no_grad()
    def step(self, rate: float, momentum: float, decay: float) -> None:
        """Nesterov's momentum, made orthogonal, each row or column by its own size, and a decay that agrees with it."""
        weight, gradient = self.weight, self.weight.grad
        self.average.lerp_(gradient, 1 - momentum)
        update = orthogonalise(gradient.lerp(self.average, momentum))
        self.squares.lerp_(update.square().mean(self.dim, keepdim=True), 0.1)
        even = update * self.squares.clamp_min(1e-10).rsqrt()
        update = even * (update.norm() / even.norm().clamp_min(1e-10))
        rate *= math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
        weight -= rate * (update + decay * weight * (update * weight >= 0))


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix with equal singular values, roughly, with the norm of one whose are 1."""
    rows, least = matrix.shape[0], math.sqrt(min(matrix.shape))
    matrix = matrix * (matrix.norm() / math.sqrt(rows) / matrix.norm(dim=1, keepdim=True).clamp_min(1e-6))
    tall = rows > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (1.01 * matrix.norm() + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x) * (least / x.norm().clamp_min(1e-6))


def rate_share(options: Options, step: int, total: int) -> float:
    """Share of the peak rate: up, flat, and down to a twentieth at the end."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    left = min(1.0, max(0.0, (total - step) / max(1, round(options.warmdown_share * total))))
    return left + (1 - left) * 0.05


def muon_momentum(options: Options, step: int, total: int) -> float:
    """0.85 to 0.97 over the first 400 steps, and down to 0.90 in the warm-down."""
    if step < 400:
        return 0.85 + (0.97 - 0.85) * step / 400
    warmdown = round(options.warmdown_share * total)
    return 0.97 - (0.97 - 0.90) * min(1.0, max(0.0, (step - total + warmdown) / max(1, warmdown)))
