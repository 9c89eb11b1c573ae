"""What `plan` and `tune` open: backend, runtime, the model's real vocabulary, and the memory that may be used."""

from dataclasses import dataclass, replace
from pathlib import Path

from faisca.backend import Backend, Runtime, load_backend
from faisca.backends import choose_backend
from faisca.config import Config, ModelConfig
from faisca.data.tokenizer import expected_tokens
from faisca.errors import FaiscaError
from faisca.planning.fit import usable_memory


@dataclass(frozen=True)
class Opened:
    """A configuration, and what computes it here."""

    config: Config
    model: ModelConfig
    """with its real vocabulary size"""
    backend: Backend
    runtime: Runtime
    memory: int
    """bytes that may be used"""
    memory_words: str
    """and who says so"""


def open_config(config: Config, memory_gb: float | None, start_from: Path | None = None) -> Opened:
    """Open what a configuration names; FaiscaError where it cannot be had, or the memory is no amount."""
    if memory_gb is not None and not 0 < memory_gb < float("inf"):
        raise FaiscaError(f"--memory {memory_gb} is out of range: use a number of gigabytes above 0")
    backend = load_backend(choose_backend(config.run.backend)[0])
    runtime = backend.open_runtime(config=config.run)
    if memory_gb is None:
        memory, words = usable_memory(backend, runtime), f"what {runtime.device} may use here"
    else:
        memory, words = round(memory_gb * 1e9), "asked for"
    return Opened(config, model_config(config, start_from), backend, runtime, memory, words)


def model_config(config: Config, start_from: Path | None) -> ModelConfig:
    """The model with its vocabulary: a checkpoint's, or the tokenizer's; a BPE may find fewer tokens than asked for."""
    if start_from is not None:
        from faisca.training.stages import saved_state

        return replace(config.model, vocabulary_size=saved_state(start_from).model.vocabulary_size)
    return replace(config.model, vocabulary_size=config.model.vocabulary_size or expected_tokens(config.tokenizer))
