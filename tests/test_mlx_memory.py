"""The MLX twin's headline: memory that is bounded, stays where it was, and few traces."""

import gc
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")

import faisca_mlx as twin  # noqa: E402
from faisca.backend import Rollouts  # noqa: E402
from faisca.config import GRPOConfig, ModelConfig, OptimizerConfig, RunConfig  # noqa: E402
from faisca.parameters import initial_parameters  # noqa: E402
from faisca_mlx import train as mlx_train  # noqa: E402

ORIGINAL = ModelConfig(
    context=256, num_heads=4, dropout=0.1, attention_dropout=0.1, vocabulary_size=50_257
)  # 64 windows of 256: the logits alone are 3.3 GB
SMALL = ModelConfig(context=32, dim=32, num_layers=2, hidden_dim=64, dropout=0.1, vocabulary_size=400)


def learner_for(config: ModelConfig, run: RunConfig | None = None, optimizer: OptimizerConfig | None = None):
    runtime = twin.open_runtime(config=run or RunConfig(device="cpu"))
    model = twin.make_model(config=config, parameters=initial_parameters(config, 0), runtime=runtime)
    return twin.make_learner(model=model, config=optimizer or OptimizerConfig())


def train(learner, *, rows: int, micro: int, step: int = 0) -> dict[str, float]:
    config = learner.model.config
    ids = np.random.default_rng(step).integers(0, config.vocabulary_size, (rows, config.context + 1))
    metrics = twin.train_step(
        learner=learner,
        inputs=ids[:, :-1],
        targets=ids[:, 1:],
        learning_rate=1e-3,
        micro_batch_size=micro,
        dropout_seed=step,
    )
    return twin.read_metrics(metrics=[metrics])[0]


def rollouts(config: ModelConfig, rows: int, length: int, seed: int = 0) -> Rollouts:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, config.vocabulary_size, (rows, length + 1)).astype(np.int32)
    log_probs = random.normal(-5, 1, (rows, length)).astype(np.float32)
    advantages = random.normal(size=rows).astype(np.float32)
    return Rollouts(tokens, np.ones((rows, length), np.float32), advantages, log_probs, log_probs, rows * length)


@pytest.fixture
def fresh_memory() -> Iterator[None]:
    """A peak of its own, and no buffer cache: a buffer taken from it may be larger than what was asked for."""
    gc.collect()
    limit = mx.set_cache_limit(0)
    mx.reset_peak_memory()
    yield
    mx.set_cache_limit(limit)


def test_a_step_of_the_originals_full_batch_stays_under_its_bound(fresh_memory: None) -> None:
    learner = learner_for(ORIGINAL)
    held = mx.get_active_memory()
    measured = train(learner, rows=64, micro=16)
    assert measured["loss"] == pytest.approx(np.log(50_257), abs=0.5)
    assert mx.get_peak_memory() - held < 1.3e9  # the naive step needs more than 12e9


def test_scoring_keeps_no_exponentials(fresh_memory: None) -> None:
    """A gradient would keep 1,280 × 50,257 of them: 0.42 GB in all, against 0.21 GB."""
    model = learner_for(ORIGINAL).model
    held = mx.get_active_memory()
    batch = rollouts(ORIGINAL, rows=10, length=128)
    twin.token_log_probs(model=model, tokens=batch.tokens, temperature=0.8, places=None)
    assert mx.get_peak_memory() - held < 0.3e9


def test_a_grpo_step_of_the_originals_size_stays_under_its_bound(fresh_memory: None) -> None:
    learner = learner_for(ORIGINAL)
    held = mx.get_active_memory()
    batch = rollouts(ORIGINAL, rows=12, length=96)
    twin.token_log_probs(model=learner.model, tokens=batch.tokens, temperature=0.8, places=None)
    twin.grpo_step(learner=learner, rollouts=batch, config=GRPOConfig(), learning_rate=1e-5)
    assert mx.get_peak_memory() - held < 0.7e9  # one copy of its logits is 0.23e9, and a plain step keeps several


def test_no_step_leaves_anything_behind(fresh_memory: None) -> None:
    learner = learner_for(SMALL)
    held, losses = {}, []
    for step in range(1, 51):
        losses.append(train(learner, rows=4, micro=2, step=step)["loss"])
        held[step] = mx.get_active_memory()
    assert held[50] == held[5]
    assert np.isfinite(losses).all()


def test_no_policy_step_leaves_anything_behind(fresh_memory: None) -> None:
    learner = learner_for(SMALL, optimizer=GRPOConfig())
    held = {}
    for step in range(1, 51):
        batch = rollouts(SMALL, rows=4, length=16, seed=step)
        metrics = twin.grpo_step(learner=learner, rollouts=batch, config=GRPOConfig(), learning_rate=1e-4)
        assert twin.read_metrics(metrics=[metrics])[0]["skipped"] == 0
        del metrics
        held[step] = mx.get_active_memory()
    assert held[50] == held[5]


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles for the CPU with g++, which is not installed")
def test_a_compiled_step_is_traced_once_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    monkeypatch.setattr(
        mlx_train, "update", lambda traced=mlx_train.update, **given: (traces.append(1), traced(**given))[1]
    )
    learner = learner_for(SMALL, RunConfig(device="cpu", compile="on"))
    first = [train(learner, rows=4, micro=0, step=step)["loss"] for step in range(6)]
    assert len(traces) == 1  # rates, steps and dropout seeds change, the trace does not
    train(learner, rows=2, micro=0)
    assert len(traces) == 2
    plain = learner_for(SMALL, RunConfig(device="cpu", compile="off"))
    assert [train(plain, rows=4, micro=0, step=step)["loss"] for step in range(6)] == pytest.approx(first, rel=1e-5)


def test_dropout_is_a_function_of_its_seed() -> None:
    losses = []
    for seed in (7, 7, 8):
        learner = learner_for(SMALL)
        losses.append(train(learner, rows=4, micro=0, step=seed)["loss"])
    assert losses[0] == losses[1] != losses[2]
