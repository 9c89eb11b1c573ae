"""A twin as `faisca bench` times it: each case is a function that does its work once and returns the seconds.

The cases call what training, GRPO and generation call; nothing is rebuilt for the benchmark.
"""

import contextlib
import functools
import importlib
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from faisca.backend import Backend, Model, load_backend
from faisca.bench.products import Product, training_products
from faisca.bench.work import Work, peak_size
from faisca.config import RunConfig
from faisca.porting.formats import Portable
from faisca.porting.huggingface import config_json, needs_model_file, to_theirs
from faisca.streams import generator, uniforms
from faisca.training.generate import complete, rollout_sampling
from faisca.training.grpo import Completions, pack
from faisca.training.grpo_update import advantages_of, update_policy, with_log_probs
from faisca.training.setup import Setup

CaseFunction = Callable[[], float]
STILL = 1e-12
"""learning rate of a GRPO step that is timed: every round does the same work"""


class TwinSubject:
    """One backend on one device, with a model for training and two for sampling."""

    def __init__(self, name: str, work: Work, options: RunConfig) -> None:
        self.work = work
        self.backend: Backend = load_backend(name)
        self.runtime = self.backend.open_runtime(config=options)
        self._held = contextlib.ExitStack()  # as while training, until this process ends
        self._held.enter_context(self.backend.training_memory(runtime=self.runtime))
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
        never = self._model()
        first_token = self._generation(never, self.work.prompts(1), first_only=True)
        return {
            "pretrain": later(self.training),
            "rollout": self.rollout(never),
            "grpo_full": later(lambda: self._grpo_step(never)),
            "grpo_once": later(lambda: self._grpo_step(never, **once(self.work))),
            "grpo_ending": later(lambda: self._grpo_step(self._model(rows_end=True))),
            **{f"generate_{rows}": self._generation(never, self.work.prompts(rows)) for rows in (1, 16, 24, 64)},
            "first_token": first_token,
            **(
                {"prefill": self._generation(never, self.work.long_prompt(), first_only=True)}
                if self.work.has_prefill
                else {}
            ),
            "peak": self.products([(1, peak_size(self.work), peak_size(self.work), peak_size(self.work))]),
            "products": self.products(training_products(self.work, self.runtime.loss_chunk)),
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
            self.backend.tidy_memory(learner=learner)
            assert not read["skipped"], "a step that was skipped is no measurement"

        return lambda: timed(step)

    def rollout(self, model: Model | None = None) -> CaseFunction:
        """The completions of a GRPO step, which never end."""
        policy = self._model() if model is None else model
        return lambda: timed(lambda: self._roll_out(policy))

    def completions_of_a_rollout(self) -> list[list[int]]:
        """Token ids of the rows of a rollout."""
        return self._roll_out(self._model()).completions

    def device_memory(self) -> int | None:
        """Peak bytes on the device, where it has a counter."""
        return self.backend.memory(runtime=self.runtime, reset_peak=False).get("peak")

    def _model(self, *, rows_end: bool = False) -> Model:
        return self.setup.make_model(self.work.parameters(rows_end=rows_end))

    def _roll_out(self, model: Model) -> Completions:
        sampling = rollout_sampling(self.work.config.grpo)
        prompts = self.work.prompts(self.work.completions)
        draws = uniforms(0, "bench rollout", step=0, rows=len(prompts), columns=sampling.max_new_tokens)
        log_probs = np.zeros_like(draws)
        rows = list(complete(self.setup, model, prompts, sampling, draws, log_probs))
        return Completions([], prompts, rows, log_probs)

    def grpo_round(self, policy: Model | None = None, **changes: Any) -> Callable[[], dict[str, float]]:
        """A whole GRPO step with some options changed, as a function: the seconds of each of its parts."""
        model = self._model() if policy is None else policy
        config = replace(self.work.config.grpo, learning_rate=STILL, **changes)
        setup = replace(self.setup, config=replace(self.work.config, grpo=config))
        learner = self.backend.make_learner(model=model, config=config)
        reference = setup.make_model(self.backend.get_parameters(model=model), frozen=True)

        def parts() -> Iterator[str]:
            written = self._roll_out(model)
            yield "rollout"
            answers = list(map(setup.tokenizer.decode, written.completions, written.prompts))
            advantages = advantages_of(np.array(reward(answers)), config)
            yield "rewards"
            rollouts = with_log_probs(setup, pack(setup, written, advantages), model, reference)
            yield "log-probabilities"
            updates = update_policy(setup, learner, rollouts, 0, STILL)
            assert len(updates) == config.epochs * self.work.completions // config.minibatch_size
            assert not any(update["skipped"] for update in updates)
            yield "updates"

        def timed_parts() -> dict[str, float]:
            seconds, began = {}, time.perf_counter()
            for part in parts():
                ended = time.perf_counter()
                seconds[part], began = ended - began, ended
            return seconds

        return timed_parts

    def _grpo_step(self, model: Model, **changes: Any) -> CaseFunction:
        parts = self.grpo_round(model, **changes)
        return lambda: sum(parts().values())

    def _generation(self, model: Model, prompts: list[list[int]], *, first_only: bool = False) -> CaseFunction:
        sampling = self.work.sampling()
        uniforms = generator(0, "bench generation").random((len(prompts), sampling.max_new_tokens), np.float32)

        def generate() -> None:
            columns = self.backend.generate(
                model=model,
                prompts=prompts,
                uniforms=uniforms,
                sampling=sampling,
                end_of_text=(self.work.end_of_text,),
                log_probs=None,
            )
            count = 1 if first_only else sampling.max_new_tokens
            for _ in range(count):
                assert (next(columns) >= 0).all(), "a row ended that never should"

        return lambda: timed(generate)

    def products(self, products: list[Product]) -> CaseFunction:
        """These matrix products, alone."""
        device = importlib.import_module(f"faisca_{self.runtime.backend}.device")
        return lambda: cast(float, device.matmul_seconds(runtime=self.runtime, products=products))


def reward(completions: list[str]) -> list[float]:
    """The reward of GRPO steps that are timed, for baselines too: any two texts differ in it, so every row teaches."""
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]


def once(work: Work) -> dict[str, int]:
    """What changes a GRPO step to one update of all its completions."""
    return {"epochs": 1, "minibatch_size": work.completions}


def later(make: Callable[[], CaseFunction]) -> CaseFunction:
    """A case whose model and optimiser are made when it is first timed, outside of what it times."""
    made = functools.cache(make)
    return lambda: made()()


def timed(action: Callable[[], Any]) -> float:
    """Seconds that a function takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def their_model(work: Work, *, rows_end: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray], bool]:
    """For baselines: what `faisca port --to hf` writes of it, and whether mlx-lm needs a file of ours to compute it."""
    ends = (work.end_of_text,)
    tokenizer: Any = SimpleNamespace(end_of_text=work.end_of_text, ends=ends, beginning=ends, kind="bpe", companions={})
    weights = work.parameters(rows_end=rows_end)
    portable = Portable("faisca", "the benchmark's weights", work.model, weights, tokenizer, {})
    return config_json(portable), dict(to_theirs(portable)), needs_model_file(portable)
