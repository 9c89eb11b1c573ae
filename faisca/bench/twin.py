"""A twin as `faisca bench` times it: each case is a function that does its work once and returns the seconds.

The cases call what training, GRPO and generation call; nothing is rebuilt for the benchmark.
"""

import importlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np

from faisca.backend import Backend, Learner, Model, load_backend
from faisca.bench.work import Work, peak_size, training_products
from faisca.config import RunConfig
from faisca.streams import generator, uniforms
from faisca.training.generate import complete, rollout_sampling
from faisca.training.grpo import Completions, pack, update_policy, with_log_probs
from faisca.training.setup import Setup

CaseFunction = Callable[[], float]


class TwinSubject:
    """One backend on one device, with a model for training and two for sampling."""

    def __init__(self, name: str, work: Work, options: RunConfig) -> None:
        self.work = work
        self.backend: Backend = load_backend(name)
        self.runtime = self.backend.open_runtime(config=options)
        self.setup = Setup(work.config, self.backend, self.runtime, work.tokenizer(), work.model)
        self.seed = 0

    def describe(self) -> dict[str, Any]:
        """What it computes with."""
        runtime = self.runtime
        chosen = {"device": runtime.device, "dtype": runtime.dtype, "compile": runtime.compile}
        return chosen | {"loss_chunk": runtime.loss_chunk} | dict(runtime.details)

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """Mean cross-entropy (nats) without dropout: what a baseline has to compute too."""
        model = self._model()
        return self.backend.evaluate(model=model, inputs=inputs, targets=targets) / targets.size

    def cases(self) -> dict[str, CaseFunction]:
        """Everything that can be timed."""
        never, ending = self._model(), self._model(rows_end=True)
        grpo = replace(self.work.config.grpo, learning_rate=1e-12)  # every round the same work
        first_token = self._generation(never, 1, first_only=True)
        return {
            "pretrain": self.training(),
            "rollout": lambda: timed(lambda: self._roll_out(never)),
            "grpo_full": self._grpo_step(never, self.backend.make_learner(model=never, config=grpo)),
            "grpo_ending": self._grpo_step(ending, self.backend.make_learner(model=ending, config=grpo)),
            **{f"generate_{rows}": self._generation(never, rows) for rows in (1, 24, 64)},
            "first_token": first_token,
            "peak": self._products([(1, peak_size(self.work), peak_size(self.work), peak_size(self.work))]),
            "products": self._products(training_products(self.work, self.runtime.loss_chunk)),
        }

    def training(self) -> CaseFunction:
        """An optimiser step, metrics read."""
        config = self.work.config.pretrain
        learner = self.backend.make_learner(model=self._model(), config=config)
        inputs, targets = self.work.batch()

        def step() -> None:
            self.seed += 1
            metrics = self.backend.train_step(
                learner=learner,
                inputs=inputs,
                targets=targets,
                learning_rate=config.learning_rate,
                micro_batch_size=config.micro_batch_size,
                dropout_seed=self.seed,
            )
            (read,) = self.backend.read_metrics(metrics=[metrics])  # waits for the device
            assert not read["skipped"], "a step that was skipped is no measurement"

        return lambda: timed(step)

    def device_memory(self) -> int | None:
        """Peak bytes on the device, where it has a counter."""
        return self.backend.memory(runtime=self.runtime, reset_peak=False).get("peak")

    def _model(self, *, rows_end: bool = False) -> Model:
        return self.setup.make_model(self.work.parameters(rows_end=rows_end))

    def _roll_out(self, model: Model) -> Completions:
        sampling = rollout_sampling(self.work.config.grpo)
        prompts = self.work.prompts(self.work.completions)
        draws = uniforms(0, "bench rollout", step=0, rows=len(prompts), columns=sampling.max_new_tokens)
        return Completions([], prompts, list(complete(self.setup, model, prompts, sampling, draws)))

    def _grpo_step(self, model: Model, learner: Learner) -> CaseFunction:
        """Rollout, log-probabilities of both models, and all updates; rewards of texts are left out."""
        advantages = generator(0, "bench advantages").standard_normal(self.work.completions)
        reference = self.setup.make_model(self.backend.get_parameters(model=model))

        def step() -> None:
            rollouts = pack(self.setup, self._roll_out(model), advantages)
            rollouts = with_log_probs(self.setup, rollouts, model, reference)
            updates = update_policy(self.setup, learner, rollouts, 0, 1e-12)
            assert updates and not any(update["skipped"] for update in updates)

        return lambda: timed(step)

    def _generation(self, model: Model, rows: int, *, first_only: bool = False) -> CaseFunction:
        sampling = self.work.sampling()
        uniforms = generator(0, "bench generation").random((rows, sampling.max_new_tokens), np.float32)

        def generate() -> None:
            columns = self.backend.generate(
                model=model,
                prompts=self.work.prompts(rows),
                uniforms=uniforms,
                sampling=sampling,
                end_of_text=(self.work.end_of_text,),
            )
            count = 1 if first_only else sampling.max_new_tokens
            for _ in range(count):
                assert (next(columns) >= 0).all(), "a row ended that never should"

        return lambda: timed(generate)

    def _products(self, products: list[tuple[int, int, int, int]]) -> CaseFunction:
        device = importlib.import_module(f"faisca_{self.runtime.backend}.device")
        return lambda: cast(float, device.matmul_seconds(runtime=self.runtime, products=products))


def timed(action: Callable[[], Any]) -> float:
    """Seconds that a function takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
