"""The single-file lessons as `faisca bench` times them: the original's algorithm, all logits at once and no cache.

`reference` is the one in PyTorch, `naive_mlx` the one in MLX: both do with their framework what its
examples do. Speed stands for the algorithm, not for anyone's code. Two things are as the original
has them and the lessons have not: rows never stop early, and `grpo.minibatch_size` is the preset's.
"""

import importlib.util
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from faisca.bench.twin import later, once, reward, timed
from faisca.bench.work import Work
from faisca.config import RunConfig
from faisca.rewards.advantages import group_advantages
from faisca.streams import generator

LESSONS = Path(__file__).parent.parent.parent / "lessons"
NEVER = -1
"""an end-of-text that no row meets"""
TEMPERATURE = 0.8


class Lesson:
    """One lesson with the benchmark's weights: training step, sampling, GRPO step."""

    offered: tuple[str, ...] = (
        "pretrain",
        "rollout",
        "generate_1",
        "generate_24",
        "grpo_full",
        "grpo_once",
        "grpo_ending",
    )

    def __init__(self, script: ModuleType, work: Work, described: dict[str, Any]) -> None:
        self.script, self.work, self.described = script, work, described
        self.model = self.make_model()

    def describe(self) -> dict[str, Any]:
        return self.described

    def make_model(self) -> Any:
        model = self.work.model
        sizes = {"vocabulary": model.vocabulary_size, "hidden": model.hidden_dim, "heads": model.num_heads}
        sizes |= {"context": model.context, "dim": model.dim, "layers": model.num_layers, "dropout": model.dropout}
        return self.script.make_model(Namespace(seed=0, **sizes), self.work.parameters())

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        return self.script.cross_entropy(self.model.eval(), inputs, targets).item()

    def cases(self) -> dict[str, Callable[[], float]]:
        cases = {
            "pretrain": self.training(),
            "rollout": lambda: timed(self.roll_out),
            "generate_1": self.generation(1),
            "generate_24": self.generation(24),
            "grpo_full": later(self.grpo_step),
            "grpo_once": later(lambda: self.grpo_step(**once(self.work))),
            "grpo_ending": later(self.grpo_step),
        }
        return {name: case for name, case in cases.items() if name in self.offered}

    def training(self) -> Callable[[], float]:
        config, model = self.work.config.pretrain, self.make_model().train()
        optimizer = self.script.make_optimizer(model, config.weight_decay)
        loss_of = partial(self.script.cross_entropy, model, *self.work.batch())
        return lambda: timed(lambda: self.script.update(model, optimizer, loss_of, config.learning_rate))

    def sample(self, model: Any, rows: int, new_tokens: int) -> np.ndarray:
        uniforms = generator(0, "bench generation").random((rows, new_tokens), np.float32)
        return self.script.sample(model, self.work.prompts(1)[0], uniforms, TEMPERATURE, NEVER)

    def roll_out(self, model: Any = None) -> np.ndarray:
        return self.sample(model or self.model, self.work.completions, self.work.config.grpo.max_new_tokens)

    def generation(self, rows: int) -> Callable[[], float]:
        return lambda: timed(lambda: self.sample(self.model, rows, self.work.sampling().max_new_tokens))

    def grpo_step(self, **changes: int) -> Callable[[], float]:
        script, grpo, policy = self.script, replace(self.work.config.grpo, **changes), self.make_model()
        optimizer, decode = script.make_optimizer(policy, 0.0), self.work.tokenizer().decode
        parts, prompt = np.arange(self.work.completions).reshape(-1, grpo.minibatch_size), self.work.prompts(1)[0]

        def scores(model: Any, tokens: np.ndarray) -> np.ndarray:
            return np.concatenate([self.numpy(script.log_probs(model, tokens[rows], TEMPERATURE)) for rows in parts])

        def step() -> None:
            tokens = self.roll_out(policy)
            mask = script.completion_mask(tokens, len(prompt), NEVER)
            rewards = np.array(reward([decode(ids, prompt) for ids in tokens[:, len(prompt) :].tolist()]))
            advantages = group_advantages(rewards, grpo.group_size, "group").astype(np.float32)
            old, reference = (scores(model, tokens) for model in (policy, self.model))
            rollouts = script.Rollouts(tokens, mask, advantages, old, reference)
            for rows in np.concatenate([parts] * grpo.epochs):
                loss_of = partial(script.policy_loss, policy, rollouts.rows(rows), TEMPERATURE)
                script.update(policy, optimizer, loss_of, grpo.learning_rate)

        return lambda: timed(step)


class Torch(Lesson):
    """The one in PyTorch."""

    def numpy(self, array: Any) -> np.ndarray:
        return array.detach().cpu().numpy()

    def device_memory(self) -> int | None:
        cuda = self.script.torch.cuda
        return cuda.max_memory_allocated() if self.script.DEVICE == "cuda" else None


class Mlx(Lesson):
    """The one in MLX."""

    offered = ("pretrain", "rollout", "generate_1")  # the others would take most of a benchmark's time on a CPU

    def numpy(self, array: Any) -> np.ndarray:
        return np.array(array)

    def device_memory(self) -> int | None:
        return self.script.mx.get_peak_memory()


def open_reference(work: Work, device: str) -> Lesson:
    """`device` is a name for torch, or auto."""
    script = load("torch_in_one_file")
    if device not in ("auto", "gpu"):
        script.DEVICE = device
    described = {"device": script.DEVICE, "dtype": "float32", "torch": script.torch.__version__}
    return Torch(script, work, described)


def open_naive_mlx(work: Work, device: str) -> Lesson:
    """`device` as in `faisca bench --device`; with the fast BLAS that the MLX backend has."""
    import faisca_mlx  # before MLX, so that the fast BLAS is in place

    runtime = faisca_mlx.open_runtime(config=RunConfig(backend="mlx", device=device, compile="off"))
    described = {"device": runtime.device, "dtype": "float32"} | dict(runtime.details)
    return Mlx(load("mlx_in_one_file"), work, described)


def load(name: str) -> ModuleType:
    """The script as a module; nothing runs."""
    spec = importlib.util.spec_from_file_location(name, LESSONS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
