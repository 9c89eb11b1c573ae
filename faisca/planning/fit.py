"""What fits: the largest micro-batch, and what would help where nothing does."""

from collections.abc import Iterator
from dataclasses import replace

from faisca.backend import Backend, Runtime
from faisca.config import Config, ModelConfig
from faisca.planning.load import rows_of
from faisca.planning.plan import plan
from faisca.system.memory import physical_memory
from faisca.text import format_bytes

SMALLEST_CHUNK = 32
"""rows of logits below which the loss only gets slower"""


def batch_option(stage: str) -> str:
    """The option that says how much a stage computes at a time."""
    return f"{stage}.micro_batch_size"


def with_rows(config: Config, stage: str, rows: int) -> Config:
    """The configuration with another micro-batch of a stage."""
    return replace(config, **{stage: replace(getattr(config, stage), micro_batch_size=rows)})


def possible_rows(config: Config, stage: str) -> list[int]:
    """The micro-batches that a stage can have, largest first: divisors of its batch."""
    whole = config.grpo.minibatch_size if stage == "grpo" else getattr(config, stage).batch_size
    return [rows for rows in range(whole, 0, -1) if whole % rows == 0]


def largest_rows(config: Config, model: ModelConfig, runtime: Runtime, stage: str, memory: float) -> int | None:
    """The largest micro-batch of a stage that fits so many bytes; None where none does."""
    for rows in possible_rows(config, stage):
        if plan(with_rows(config, stage, rows), model, runtime, stage).total <= memory:
            return rows
    return None


def remedy(config: Config, model: ModelConfig, runtime: Runtime, stage: str, memory: float) -> str:
    """What makes a stage fit that does not, as options; else what it needs at least."""
    least = plan(config, model, runtime, stage).total
    for words, changed in _cheaper(runtime, stage, getattr(getattr(config, stage), "lora_dropout", 0.0)):
        rows = largest_rows(config, model, changed, stage, memory)
        if rows is not None:
            kept = f"--{batch_option(stage).replace('_', '-')} {rows}" if rows < rows_of(config, stage) else ""
            return "try " + " ".join(filter(None, (kept, words)))
        least = min(least, plan(with_rows(config, stage, 1), model, changed, stage).total)
    return f"nothing makes it fit: with one row at a time it takes {format_bytes(least)}; take a smaller model"


def usable_memory(backend: Backend, runtime: Runtime) -> int:
    """Bytes that a run may use: what the device says (Metal's recommended working set), else the machine's memory."""
    return backend.memory(runtime=runtime, reset_peak=False).get("limit") or physical_memory()


def warnings(config: Config, model: ModelConfig, runtime: Runtime, memory: float) -> Iterator[str]:
    """A line for each stage of a run that plans more than the bytes that may be used."""
    for stage in config.run.stages:
        total = plan(config, model, runtime, stage).total
        if total > memory:
            yield (
                f"memory: {stage} needs about {format_bytes(total)}, and {runtime.device} may use "
                f"{format_bytes(memory)}: {remedy(config, model, runtime, stage, memory)} (faisca plan shows all)"
            )


def _cheaper(runtime: Runtime, stage: str, lora_dropout: float) -> Iterator[tuple[str, Runtime]]:
    """The runtime, and others that take less memory, with the options that make them."""
    chunk = min(runtime.loss_chunk, SMALLEST_CHUNK)
    smaller = replace(runtime, loss_chunk=chunk)
    yield "", runtime
    yield f"--run.loss-chunk {chunk}", smaller
    # GRPO's updates are never computed again, and nothing that an adapter drops may be.
    if stage != "grpo" and not lora_dropout:
        flag = "--run.gradient-checkpointing"
        yield flag, replace(runtime, gradient_checkpointing=True)
        yield f"{flag} --run.loss-chunk {chunk}", replace(smaller, gradient_checkpointing=True)
