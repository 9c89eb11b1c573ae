"""mlx-lm with our weights: its trainer's loss and compiled step, its `generate_step` and batch generation.

Its models have no dropout, so its training step does less than ours where the preset has any.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faisca_mlx  # isort: skip  # first: it puts a fast BLAS in place before MLX is loaded
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import safetensors.numpy
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.utils import load_model

from faisca.bench.twin import later, their_model, timed
from faisca.bench.work import Work
from faisca.config import RunConfig
from faisca.porting.huggingface import MODEL_FILE


class MlxLm:
    """mlx-lm's model, trainer and generators."""

    def __init__(self, work: Work, device: str) -> None:
        self.work = work
        self.runtime = faisca_mlx.open_runtime(config=RunConfig(backend="mlx", device=device))
        self.model = self.make_model()

    def describe(self) -> dict[str, Any]:
        return {"device": self.runtime.device, "dtype": "float32", "mlx_lm": version("mlx-lm")} | dict(
            self.runtime.details
        )

    def make_model(self, *, rows_end: bool = False) -> Any:
        """A folder as `faisca port --to hf` writes it, without a tokenizer, loaded by mlx-lm."""
        config, weights, own_file = their_model(self.work, rows_end=rows_end)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            if own_file:
                shutil.copy(MODEL_FILE, folder)
            return load_model(folder, trust_remote_code=own_file)[0]

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        return default_loss(self.model.eval(), *batch_of(inputs, targets))[0].item()

    def cases(self) -> dict[str, Callable[[], float]]:
        most = self.work.sampling().max_new_tokens
        return {
            "pretrain": later(self.training),
            "rollout": self.batch_generation(self.work.completions, self.work.config.grpo.max_new_tokens),
            "generate_1": self.generation(self.work.prompts(1), most),
            "generate_16": self.batch_generation(16, most),
            "generate_24": self.batch_generation(24, most),
            "generate_64": self.batch_generation(64, most),
            "first_token": self.generation(self.work.prompts(1), 1),
            **({"prefill": self.generation(self.work.long_prompt(), 1)} if self.work.has_prefill else {}),
        }

    def training(self) -> Callable[[], float]:
        """The step of its trainer, which compiles it."""
        config, model = self.work.config.pretrain, self.make_model().train()
        optimizer = optim.AdamW(config.learning_rate, weight_decay=config.weight_decay)
        batch = batch_of(*self.work.batch())
        loss_and_grad = nn.value_and_grad(model, default_loss)
        state = [model.state, optimizer.state, mx.random.state]

        @partial(mx.compile, inputs=state, outputs=state)
        def update(tokens: mx.array, lengths: mx.array) -> mx.array:
            (loss, _), gradients = loss_and_grad(model, tokens, lengths)
            optimizer.update(model, gradients)
            return loss

        def step() -> None:
            mx.eval(state, update(*batch))

        return lambda: timed(step)

    def generation(self, prompts: list[list[int]], new_tokens: int) -> Callable[[], float]:
        prompt = mx.array(prompts[0])

        def generate() -> None:
            tokens = [
                token for token, _ in generate_step(prompt, self.model, max_tokens=new_tokens, sampler=self.sampler)
            ]
            assert len(tokens) == new_tokens

        return lambda: timed(generate)

    def batch_generation(self, rows: int, new_tokens: int) -> Callable[[], float]:
        prompts = self.work.prompts(rows)

        def generate() -> None:
            generator = BatchGenerator(
                self.model,
                max_tokens=new_tokens,
                sampler=self.sampler,
                completion_batch_size=rows,
                prefill_batch_size=rows,
            )
            generator.insert(prompts)
            count = 0
            while found := generator.next_generated():
                count += len(found)
            generator.close()
            assert count == rows * new_tokens, f"{count} tokens, not {rows} x {new_tokens}"

        return lambda: timed(generate)

    @property
    def sampler(self) -> Any:
        sample = self.work.config.sample
        return make_sampler(temp=sample.temperature, top_k=sample.top_k)

    def device_memory(self) -> int | None:
        return mx.get_peak_memory()


def batch_of(inputs: np.ndarray, targets: np.ndarray) -> tuple[mx.array, mx.array]:
    """Rows with their last target, and from which to which position each counts, as the trainer wants them."""
    rows = np.concatenate([inputs, targets[:, -1:]], axis=1)
    return mx.array(rows), mx.array([[1, inputs.shape[1]]] * len(rows))


def open_mlx_lm(work: Work, device: str) -> MlxLm:
    """`device` as in `faisca bench --device`."""
    return MlxLm(work, device)
