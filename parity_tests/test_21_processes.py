"""Several processes on each framework's own engine: the trajectory of one process, and equal weights to the bit.

`several.py` says what is computed, there in 2 and 4 processes, here in one. And one job over both frameworks.
"""

import os
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cases import TWINS, installed
from several import MICRO, ROWS, SHARDED, WORKS, perform

from faisca.commands.launch import launcher
from faisca.group import ALONE

pytestmark = pytest.mark.xdist_group("processes")  # one after the other: they look for free ports
Arrays = dict[str, np.ndarray]
HERE = Path(__file__).parent
BACKENDS = [twin.name for twin in TWINS if twin.device == "cpu"]
LIMIT = 600
"""seconds, for a machine with much else to do"""


def together(backend: str, size: int, out: Path, names: list[str]) -> Arrays:
    """What the processes computed; those of both backends meet on torch's engine."""
    engine = "mlx" if backend == "mlx" else "torch"
    command = [*launcher(engine, size), str(HERE / "several.py"), backend, str(out), *names]
    environment = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, env=environment, stdin=subprocess.DEVNULL
    )
    assert out.exists(), done.stdout + done.stderr
    return dict(np.load(out))


@cache
def alone(backend: str, name: str) -> Arrays:
    """The same in one process; micro-batches are those of a process."""
    return perform((WORKS | SHARDED)[name], backend, ALONE)


@pytest.fixture(scope="module", params=[(backend, size) for backend in BACKENDS for size in (2, 4)], ids=str)
def launched(request, tmp_path_factory) -> tuple[str, int, Arrays]:
    """All works in as many processes of a backend."""
    backend, size = request.param
    names = [name for name in WORKS if name != "200 steps" or size == 2]
    return backend, size, together(backend, size, tmp_path_factory.mktemp("several") / "found.npz", names)


# Largest differences measured: 1.2e-6 of losses, 3e-6 of weights.
@pytest.mark.parametrize("name", WORKS)
def test_it_is_the_trajectory_of_one_process(launched, name: str):
    backend, size, found = launched
    if name == "200 steps" and size > 2:
        pytest.skip("with two processes")
    require_same(alone(backend, name), found, name, "bfloat16" in name)


def require_same(expected: Arrays, found: Arrays, name: str, narrow: bool = False) -> None:
    """Every number of every step, and every weight."""
    band, weights = (1e-2, 2e-3) if narrow else (2e-5, 2e-5)
    for what, value in expected.items():
        there = found[f"{name}: {what}"]
        scale = max(1.0, float(np.abs(value).max()))
        assert np.abs(there - value).max() <= (weights if what.startswith("weights") else band) * scale, what
    assert {key.removeprefix(f"{name}: ") for key in found if key.startswith(f"{name}: ")} == set(expected)


def test_the_works_can_tell():
    """Losses fall or move, a wrong share of the targets would show, and micro-batches are a process's rows at four."""
    assert ROWS // 4 == MICRO
    for backend in BACKENDS:
        for name in ("GPT-2", "mixture", "uneven targets"):
            loss = alone(backend, name)["loss"]
            assert loss[0] - loss[-1] > 0.02, (name, loss)
        weights = alone(backend, "grpo"), alone(backend, "grpo, sequences and entropy")
        assert all(np.ptp(one["loss"]) > 1e-3 for one in weights)


@pytest.mark.skipif("torch" not in BACKENDS, reason="FSDP2 is torch's")
def test_weights_that_processes_share(tmp_path):
    found = together("torch", 2, tmp_path / "found.npz", list(SHARDED))
    for name in SHARDED:
        require_same(alone("torch", name), found, name)


@pytest.mark.skipif(not (installed("torch") and installed("mlx")), reason="needs both frameworks")
def test_one_job_over_both_frameworks(tmp_path):
    """Process 0 is torch's, process 1 MLX's; their gradients meet as arrays."""
    names = ["200 steps", "uneven targets", "mixture", "grpo"]
    found = together("torch,mlx", 2, tmp_path / "found.npz", names)
    theirs = {key.removeprefix("last "): value for key, value in found.items() if key.startswith("last ")}
    for name in names:
        require_same(alone("torch", name), found, name)
        require_same(alone("mlx", name), theirs, name)
        for key, value in theirs.items():
            if key.startswith(f"{name}: loss"):
                assert np.array_equal(value, found[key]), "numbers of a step are those of all"
