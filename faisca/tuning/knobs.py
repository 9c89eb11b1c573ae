"""What `faisca tune` tries: settings that change speed and memory, and nothing that is learnt."""

import dataclasses
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from faisca.backend import Runtime
from faisca.backends import BACKENDS
from faisca.config import Config
from faisca.planning.fit import possible_rows
from faisca.planning.load import rows_of

CHUNKS = (64, 128, 256, 512, 1024)
Values = Callable[[Config, Runtime], list[Any]]


@dataclass(frozen=True)
class Knob:
    """Options that get one value together, and the values to try beside the present one."""

    options: tuple[str, ...]
    """as SECTION.NAME"""
    values: Values
    """what to try; empty where `why_not` says why nothing is"""
    why_not: Callable[[Config, Runtime], str] = lambda config, runtime: ""
    work: str = "step"
    """what is timed: a training step, or a rollout"""

    def set(self, config: Config, value: Any) -> Config:
        """The configuration with the value."""
        for option in self.options:
            section, _, name = option.partition(".")
            changed = dataclasses.replace(getattr(config, section), **{name: value})
            config = dataclasses.replace(config, **{section: changed})
        return config


def knobs(config: Config) -> Iterator[Knob]:
    """The knobs of a run's stages, in the order in which they are tried."""
    train = [stage for stage in config.run.stages if stage != "grpo"]
    if train:
        yield Knob(("run.loss_chunk",), _chunks)
        yield Knob(("run.attention",), _attentions, _no_attention)
        yield Knob(("run.compile",), _compilations, _no_compilation)
        yield Knob(("run.dtype",), _dtypes)
        yield Knob(("run.gradient_checkpointing",), lambda config, _: [not config.run.gradient_checkpointing])
    if "grpo" in config.run.stages:
        yield Knob(("grpo.rollout_batch",), _rollout_batches, work="rollout")
    if train:  # last, for it takes longest: steps of whole micro-batches
        yield Knob(_alike(config, train), _micro_batches)


def _alike(config: Config, train: list[str]) -> tuple[str, ...]:
    """The micro-batch options of the first training stage, and of others with the same batch."""
    first = getattr(config, train[0])
    same = [stage for stage in train if getattr(config, stage).batch_size == first.batch_size]
    return tuple(f"{stage}.micro_batch_size" for stage in same)


def _dtypes(config: Config, runtime: Runtime) -> list[str]:
    return ["bfloat16"] if runtime.dtype == "float32" else ["float32"]


def _attentions(config: Config, runtime: Runtime) -> list[str]:
    return [] if _no_attention(config, runtime) else [{"fused": "explicit", "explicit": "fused"}[runtime.attention]]


def _no_attention(config: Config, runtime: Runtime) -> str:
    unfused = config.model.attention_dropout > 0 and runtime.backend == "mlx"
    return "no choice: with attention_dropout it is explicit" if unfused else ""


def _compilations(config: Config, runtime: Runtime) -> list[str]:
    return [] if _no_compilation(config, runtime) else ["off" if runtime.compile else "on"]


def _no_compilation(config: Config, runtime: Runtime) -> str:
    if runtime.device == "cpu" and not BACKENDS[runtime.backend].compiles_quickly:
        return "not tried: on a CPU it compiles for longer than this measures"
    if runtime.device == "cpu" and platform.system() == "Linux" and shutil.which("g++") is None:
        return "not tried: it needs g++, which is not installed"
    return ""


def _chunks(config: Config, runtime: Runtime) -> list[int]:
    """The sizes next to the present one, below and above."""
    smaller = [chunk for chunk in CHUNKS if chunk < runtime.loss_chunk]
    larger = [chunk for chunk in CHUNKS if chunk > runtime.loss_chunk]
    return [*smaller[-1:], *larger[:1]]


def _micro_batches(config: Config, runtime: Runtime) -> list[int]:
    """The divisors of the batch next to the present one, below and above."""
    stage = next(stage for stage in config.run.stages if stage != "grpo")
    here, possible = rows_of(config, stage), possible_rows(config, stage)
    smaller = [rows for rows in possible if rows < here]
    larger = [rows for rows in possible if rows > here]
    return [*smaller[:1], *larger[-1:]]


def _rollout_batches(config: Config, runtime: Runtime) -> list[int]:
    """Half and a quarter of a step's completions at a time."""
    rows = config.grpo.group_size * config.grpo.prompts_per_step
    here = config.grpo.rollout_batch or rows
    return [size for size in dict.fromkeys((rows // 2, rows // 4)) if 0 < size != here]
