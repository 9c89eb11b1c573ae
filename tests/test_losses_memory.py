"""Peak memory of the losses: a chunk of logits at a time, never all of them.

4,096 tokens and GPT-2's 50,257 make 823 MB of logits; training and scoring have to grow by less
than that. Each measurement has a process of its own, and a control shows that the bound can be
exceeded: the same step with one chunk of all rows.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import TWINS, open_twin

ROOT = Path(__file__).parent.parent
LOGITS = 4096 * 50_257 * 4
BOUND = 0.4 * LOGITS

PROGRAM = """
import sys
import numpy as np
import faisca
from small_models import open_twin, small_model
from faisca.backend import Rollouts
from faisca.config import GRPOConfig, ModelConfig, TrainConfig
from faisca.system.memory import peak_resident_bytes, reset_peak

name, action, chunk = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = ModelConfig(context=64, dim=16, num_layers=1, num_heads=1, hidden_dim=16, vocabulary_size=50_257)
twin = open_twin(name)
model = small_model(twin, config, loss_chunk=chunk)
learner = twin.make_learner(model=model, config=TrainConfig())


def act(rows):
    tokens = np.random.default_rng(0).integers(0, 50_257, (rows, 65)).astype(np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if action == "train":
        arguments = {"learning_rate": 1e-3, "micro_batch_size": 0, "dropout_seed": 0}
        metrics = twin.train_step(learner=learner, inputs=inputs, targets=targets, **arguments)
        return twin.read_metrics(metrics=[metrics])[0]["loss"]
    if action == "evaluate":
        return twin.evaluate(model=model, inputs=inputs, targets=targets)
    ones = np.ones((rows, 64), np.float32)
    rollouts = Rollouts(tokens, ones, ones[:, 0], -10 * ones, -10 * ones, ones.sum())
    given = {"rollouts": rollouts, "config": GRPOConfig(), "learning_rate": 1e-3, "dropout_seed": 0}
    metrics = twin.grpo_step(learner=learner, **given)
    return twin.read_metrics(metrics=[metrics])[0]["loss"]


assert faisca.__file__.startswith(sys.argv[4]), f"{faisca.__file__} is another copy of the code"
act(1)  # libraries, optimiser state, buffers of one row
reset_peak()
before = peak_resident_bytes()
assert np.isfinite(act(64))
print(peak_resident_bytes() - before)
"""


def growth(name: str, action: str, chunk: int) -> int:
    """Bytes by which the peak of resident memory grows in one pass over 4,096 tokens."""
    open_twin(name)
    paths = f"{os.environ['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", PROGRAM, name, action, str(chunk), str(ROOT)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("action", ["train", "evaluate", "grpo"])
def test_a_chunk_of_logits_at_a_time(name, action):
    assert growth(name, action, chunk=256) < BOUND


@pytest.mark.parametrize("name", TWINS)
def test_all_logits_at_once_exceed_the_bound(name):
    assert growth(name, "train", chunk=4096) > BOUND
