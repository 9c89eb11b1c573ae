"""Muon on the ladder: its orthogonal matrices, its steps against the reference, between twins, resumed and skipped."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import LLAMA, MIXTURE, Twin, make_case, option_id
from close import require_close
from reference import Reference
from reference_steps import adamw, muon, orthogonal
from test_04_gradients import reference_gradients
from test_05_optimizer import outcome

from faisca.config import OptimizerConfig
from faisca.muon import is_muons, moments_of
from faisca.parameters import decays
from faisca.parity.cases import Case, Side
from faisca.parity.rungs import learner_parameters, train

SHAPES = [(24, 24), (12, 40), (40, 12), (3, 16, 7), (2, 3, 5, 9), (1, 8), (130, 70)]
MODELS: list[dict[str, Any]] = [{}, LLAMA, MIXTURE | {"shared_expert_dim": 9}]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 0.0, "clip_norm": 0.0},
    "decay": {"weight_decay": 0.5, "clip_norm": 0.0},
    "clipped": {"weight_decay": 0.1, "clip_norm": 0.05},
    "a rate of its own": {"muon_learning_rate": 0.02, "weight_decay": 0.2, "clip_norm": 0.0},
    "short memory": {"muon_momentum": 0.5, "weight_decay": 0.0, "clip_norm": 0.0},
}


def make_config(setting: str = "clipped") -> OptimizerConfig:
    common = {"optimizer": "muon", "epsilon": 1e-4, "warmup_steps": 0, "schedule": "constant"}
    return OptimizerConfig(**(common | SETTINGS[setting]))


def random_matrices(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(0, 1e-3, shape).astype(np.float32)


def loss_gradients(case: Case, parameters: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    inputs, targets = case.batch(step)
    reference = Reference(case.model, parameters)
    reference.with_router_loss = True
    return reference.backward(inputs, targets, np.full(targets.shape, -1 / targets.size))
