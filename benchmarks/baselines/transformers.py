"""Hugging Face's GPT-2 or Llama with our weights: its own loss with labels, its own `generate` with its cache."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from faisca.bench.twin import later, their_model, timed
from faisca.bench.work import Work


class HuggingFace:
    """GPT2LMHeadModel or LlamaForCausalLM, with torch's default AdamW."""

    def __init__(self, work: Work, device: str) -> None:
        self.work, self.device = work, device
        self.model = self.make_model()

    def describe(self) -> dict[str, Any]:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        return {"device": self.device, "dtype": "float32"} | versions

    def make_model(self, *, rows_end: bool = False) -> Any:
        config, weights, _ = their_model(self.work, rows_end=rows_end)
        known = transformers.AutoConfig.for_model(**config, loss_type="ForCausalLM")
        model = transformers.AutoModelForCausalLM.from_config(known)
        prefixed = {
            f"transformer.{name}" if name.split(".")[0] in ("wte", "wpe", "h", "ln_f") else name: torch.tensor(value)
            for name, value in weights.items()
        }
        missing, unexpected = model.load_state_dict(prefixed, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        model.tie_weights()
        return model.to(self.device).eval()

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """From its logits: its own loss shifts the labels, so it leaves each row's last target out."""
        ids = torch.tensor(inputs.astype(np.int64), device=self.device)
        wanted = torch.tensor(targets.astype(np.int64), device=self.device)
        with torch.inference_mode():
            logits = self.model(ids).logits
            return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()).item()

    def cases(self) -> dict[str, Callable[[], float]]:
        return {
            "pretrain": later(self.training),
            "rollout": self.generation(self.work.prompts(self.work.completions), self.work.config.grpo.max_new_tokens),
            **{
                f"generate_{n}": self.generation(self.work.prompts(n), self.work.sampling().max_new_tokens)
                for n in (1, 16, 24, 64)
            },
            "first_token": self.generation(self.work.prompts(1), 1),
            **({"prefill": self.generation(self.work.long_prompt(), 1)} if self.work.has_prefill else {}),
        }

    def training(self) -> Callable[[], float]:
        config, model = self.work.config.pretrain, self.make_model().train()
        optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        ids = torch.tensor(self.work.batch()[0].astype(np.int64), device=self.device)

        def step() -> None:
            optimizer.zero_grad()
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            loss.item()

        return lambda: timed(step)

    def generation(self, rows: list[list[int]], new_tokens: int) -> Callable[[], float]:
        prompts = torch.tensor(rows, device=self.device)
        sample, end = self.work.config.sample, self.work.end_of_text

        def generate() -> None:
            tokens = self.model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                temperature=sample.temperature or 1.0,
                top_k=sample.top_k,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                pad_token_id=end,
            )
            assert tokens.shape[1] == prompts.shape[1] + new_tokens

        return lambda: timed(generate)

    def device_memory(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def open_transformers(work: Work, device: str) -> HuggingFace:
    """`device` is a name for torch, or auto."""
    if device in ("auto", "gpu"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return HuggingFace(work, device)
