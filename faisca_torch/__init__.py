"""Faísca's PyTorch twin: CUDA, CPU and MPS. `faisca.backend.Backend` says what each function does."""

from faisca_torch.device import (
    get_optimizer_state,
    get_parameters,
    memory,
    open_runtime,
    set_optimizer_state,
    tidy_memory,
    training_memory,
)
from faisca_torch.generate import generate
from faisca_torch.grpo import grpo_step
from faisca_torch.log_probs import token_log_probs
from faisca_torch.lora import base_of
from faisca_torch.model import make_model
from faisca_torch.optimizer import make_learner
from faisca_torch.processes import join
from faisca_torch.train import evaluate, logits, read_metrics, train_step

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
