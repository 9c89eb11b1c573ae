"""A step in nanoGPT's style: fused attention, fused AdamW, all logits at once, `torch.compile`.

Written by us; it samples as nanoGPT does, without a key-value cache but with the last position's
logits only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faisca.backend import Runtime
from faisca.bench.twin import timed
from faisca.bench.work import Work
from faisca_torch.model import GPT, make_model


class NanoGPT:
    """Our model's blocks, which are nanoGPT's too, with nanoGPT's loss, step and sampling."""

    def __init__(self, work: Work, device: str) -> None:
        self.work, self.device = work, device
        self.model = self.make_model()

    def describe(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": "float32", "compile": True, "torch": torch.__version__}

    def make_model(self) -> GPT:
        runtime = Runtime("torch", self.device, "float32", True)
        return make_model(config=self.work.model, parameters=self.work.parameters(), runtime=runtime)

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        ids, wanted = (torch.tensor(a.astype(np.int64), device=self.device) for a in (inputs, targets))
        with torch.inference_mode():
            return full_loss(self.model, ids, wanted).item()

    def cases(self) -> dict[str, Callable[[], float]]:
        return {
            "pretrain": self.training(),
            "rollout": lambda: timed(lambda: self.sample(self.work.completions, self.work.config.grpo.max_new_tokens)),
            "generate_1": lambda: timed(lambda: self.sample(1, self.work.sampling().max_new_tokens)),
            "generate_24": lambda: timed(lambda: self.sample(24, self.work.sampling().max_new_tokens)),
        }

    def training(self) -> Callable[[], float]:
        config, model = self.work.config.pretrain, self.make_model().train()
        optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        inputs, targets = (torch.tensor(a.astype(np.int64), device=self.device) for a in self.work.batch())
        compiled = torch.compile(full_loss)

        def step() -> None:
            loss = compiled(model, inputs, targets)
            loss.backward()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

        return lambda: timed(step)

    @torch.inference_mode()
    def sample(self, rows: int, new_tokens: int) -> None:
        tokens = torch.tensor(self.work.prompts(rows), device=self.device)
        for _ in range(new_tokens):
            logits = self.model(tokens)[:, -1] @ self.model.head.weight_VD.T
            tokens = torch.cat([tokens, torch.multinomial(logits.softmax(1), 1)], 1)
        tokens.cpu()

    def device_memory(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def full_loss(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of all logits at once."""
    return F.cross_entropy((model(inputs) @ model.head.weight_VD.T).flatten(0, 1), targets.flatten())


def open_nanogpt(work: Work, device: str) -> NanoGPT:
    """`device` is a name for torch, or auto."""
    if device in ("auto", "gpu"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return NanoGPT(work, device)
