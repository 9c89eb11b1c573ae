"""What several test files share: a twin that is installed, and models small enough for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faisca.backend import Backend, Model, Runtime, load_backend
from faisca.backends import BACKENDS
from faisca.config import Config, ModelConfig, RunConfig
from faisca.parameters import initial_parameters
from faisca.runs.state import Progress, State, versions

TWINS = ("torch", "mlx")
END = 11
"""end-of-text of SMALL: the last of so few tokens that sampled rows meet it"""
SMALL = ModelConfig(context=16, dim=16, num_layers=2, num_heads=2, hidden_dim=32, vocabulary_size=12)


def open_twin(name: str) -> Backend:
    """The twin, or a skip with its reason."""
    if not BACKENDS[name].installed:
        pytest.skip(f"the framework of the {name} twin is not installed")
    return load_backend(name)


def cpu_runtime(twin: Backend, **options: object) -> Runtime:
    """Float32 on the CPU, not compiled."""
    return twin.open_runtime(config=RunConfig(**{"device": "cpu", "dtype": "float32", "compile": "off"} | options))


def small_model(twin: Backend, config: ModelConfig = SMALL, *, seed: int = 0, **options: object) -> Model:
    """A model with initial values."""
    parameters = initial_parameters(config, seed)
    return twin.make_model(config=config, parameters=parameters, runtime=cpu_runtime(twin, **options))


def same_arrays(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    """Whether both have the same names in the same order, and bit-identical arrays."""
    return list(left) == list(right) and all(left[name].tobytes() == right[name].tobytes() for name in left)


def run_faisca(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`faisca ARGV` in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "faisca", *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=environment, check=False, capture_output=True, text=True, timeout=300)


def read_lines(path: Path) -> list[dict]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def state_of(progress: Progress, config: Config, model: ModelConfig) -> State:
    """The state of a run under way."""
    return State(
        progress=progress,
        finished=False,
        config=config,
        model=model,
        backend="torch",
        device="cpu",
        dtype="float32",
        versions=versions({"torch": "0"}),
        tokenizer={},
        stages=[],
        metrics_bytes=0,
        seconds=0.0,
    )
