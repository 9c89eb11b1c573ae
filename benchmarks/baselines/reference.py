"""The original's algorithm in plain PyTorch: all logits at once, no key-value cache, an optimiser in a loop.

Written by us from a description of it, so its speed stands for the algorithm, not for anyone's
code. It departs where the original could not have run or compared: GRPO rows share one prompt, so
nothing is padded; rows never stop early, as in the original.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faisca.bench.twin import timed
from faisca.bench.work import Work
from faisca.config import ModelConfig
from faisca.parameters import Parameters
from faisca.streams import generator

TOP_K = 30
TEMPERATURE = 0.8


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            config.dim, config.num_heads, config.attention_dropout, bias=config.attention_bias, batch_first=True
        )
        gelu = nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
        self.feed_forward = nn.Sequential(
            nn.Linear(config.dim, config.hidden_dim), gelu, nn.Linear(config.hidden_dim, config.dim)
        )
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        normed, T = self.norm1(x), x.shape[1]
        mask = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        x = x + self.dropout(self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0])
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class Model(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.dim)
        self.positional_embedding = nn.Embedding(config.context, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer_blocks = nn.Sequential(*(Block(config) for _ in range(config.num_layers)))
        self.final_layer_norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.out_head = nn.Linear(config.dim, config.vocabulary_size, bias=False)
        if config.tie_embeddings:
            self.out_head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.positional_embedding(positions))
        return self.out_head(self.final_layer_norm(self.transformer_blocks(x)))


class Reference:
    """The whole original: training step, sampling, GRPO step."""

    def __init__(self, work: Work, device: str) -> None:
        self.work, self.device = work, device
        self.model = self.make_model()

    def describe(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": "float32", "torch": torch.__version__}

    def make_model(self) -> Model:
        with torch.device(self.device):
            model = Model(self.work.model)
        model.load_state_dict(self.tensors(self.work.parameters()), strict=not self.work.model.tie_embeddings)
        return model.eval()

    def tensors(self, parameters: Parameters) -> dict[str, Tensor]:
        renamed = {"in_proj.weight": "in_proj_weight", "in_proj.bias": "in_proj_bias"}
        renamed |= {"feed_forward.up": "feed_forward.0", "feed_forward.down": "feed_forward.2"}
        tensors = {}
        for name, value in parameters.items():
            for ours, theirs in renamed.items():
                name = name.replace(ours, theirs)
            tensors[name] = torch.tensor(value)
        return tensors

    def batch(self, stage: str) -> tuple[Tensor, Tensor]:
        inputs, targets = (torch.tensor(ids.astype(np.int64), device=self.device) for ids in self.work.batch(stage))
        return inputs, targets

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        ids, wanted = (torch.tensor(a.astype(np.int64), device=self.device) for a in (inputs, targets))
        with torch.inference_mode():
            return F.cross_entropy(self.model(ids).flatten(0, 1), wanted.flatten()).item()

    def cases(self) -> dict[str, Callable[[], float]]:
        cases = {
            "pretrain": self.training("pretrain"),
            "sft": self.training("sft"),
            "rollout": lambda: timed(self.roll_out),
            "generate_1": self.generation(1),
            "generate_24": self.generation(24),
        }
        policy, grpo = self.make_model(), self.work.config.grpo
        step = self.grpo_step(policy, torch.optim.Adam(policy.parameters(), grpo.learning_rate, foreach=False))
        return cases | {"grpo_full": step, "grpo_ending": step}

    def training(self, stage: str) -> Callable[[], float]:
        config, model = getattr(self.work.config, stage), self.make_model().train()
        optimizer = self.optimizer(model, config)
        inputs, targets = self.batch(stage)

        def step() -> None:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            loss.item()

        return lambda: timed(step)

    def optimizer(self, model: nn.Module, config: Any) -> torch.optim.Optimizer:
        rate, decay = config.learning_rate, config.weight_decay
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay, foreach=False)

    def roll_out(self) -> Tensor:
        return self.sample(self.work.completions, self.work.config.grpo.max_new_tokens)

    def generation(self, rows: int) -> Callable[[], float]:
        return lambda: timed(lambda: self.sample(rows, self.work.sampling().max_new_tokens))

    @torch.inference_mode()
    def sample(self, rows: int, new_tokens: int) -> Tensor:
        """The whole sequence again for every token, and the logits of all its positions."""
        tokens = torch.tensor(self.work.prompts(rows), device=self.device)
        for _ in range(new_tokens):
            logits = self.model(tokens)[:, -1] / TEMPERATURE
            lowest = logits.topk(min(TOP_K, logits.shape[1])).values[:, -1:]
            probs = logits.masked_fill(logits < lowest, -torch.inf).softmax(1)
            tokens = torch.cat([tokens, torch.multinomial(probs, 1)], 1)
        return tokens.cpu()

    def grpo_step(self, policy: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], float]:
        grpo = self.work.config.grpo
        scores = generator(0, "bench advantages").standard_normal(self.work.completions).astype(np.float32)
        advantages = torch.tensor(scores, device=self.device)[:, None]
        start = len(self.work.prompts(1)[0]) - 1

        def log_probs(model: nn.Module, tokens: Tensor) -> Tensor:
            logits = model(tokens[:, :-1]).log_softmax(2)
            return logits.gather(2, tokens[:, 1:, None]).squeeze(2)[:, start:]

        def step() -> None:
            tokens = self.roll_out().to(self.device)
            parts = torch.arange(len(tokens), device=self.device).split(grpo.minibatch_size)
            with torch.no_grad():
                old = torch.cat([log_probs(policy, tokens[rows]) for rows in parts])
                reference = torch.cat([log_probs(self.model, tokens[rows]) for rows in parts])
            for _ in range(grpo.epochs):
                for rows in parts:
                    new = log_probs(policy, tokens[rows])
                    ratio, log_rho = (new - old[rows]).exp(), reference[rows] - new
                    clipped = ratio.clamp(1 - grpo.clip_low, 1 + grpo.clip_high)
                    losses = -torch.minimum(ratio * advantages[rows], clipped * advantages[rows])
                    (losses + grpo.kl_weight * (log_rho.exp() - log_rho - 1)).mean(1).mean().backward()
                    nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return lambda: timed(step)

    def device_memory(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def open_baseline(work: Work, device: str) -> Reference:
    """`device` is a name for torch, or auto."""
    if device in ("auto", "gpu"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Reference(work, device)
