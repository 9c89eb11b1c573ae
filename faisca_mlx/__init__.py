"""Faísca's MLX twin: Apple silicon first, Linux too. `faisca.backend.Backend` says what each function does."""

from faisca.system.fast_blas import load_fast_blas

load_fast_blas()  # has to come before MLX's library is loaded

from faisca_mlx.device import (  # noqa: E402
    get_optimizer_state,
    get_parameters,
    memory,
    open_runtime,
    set_optimizer_state,
    tidy_memory,
    training_memory,
)
from faisca_mlx.generate import generate  # noqa: E402
from faisca_mlx.grpo import grpo_step  # noqa: E402
from faisca_mlx.log_probs import token_log_probs  # noqa: E402
from faisca_mlx.lora import base_of  # noqa: E402
from faisca_mlx.model import make_model  # noqa: E402
from faisca_mlx.optimizer import make_learner  # noqa: E402
from faisca_mlx.processes import join  # noqa: E402
from faisca_mlx.train import evaluate, logits, read_metrics, train_step  # noqa: E402

__all__ = [
    "base_of",
    "evaluate",
    "generate",
    "get_optimizer_state",
    "get_parameters",
    "grpo_step",
    "join",
    "logits",
    "make_learner",
    "make_model",
    "memory",
    "open_runtime",
    "read_metrics",
    "set_optimizer_state",
    "tidy_memory",
    "token_log_probs",
    "train_step",
    "training_memory",
]
