"""The MLX twin's headline: memory that is bounded, stays where it was, and few traces."""

import dataclasses
import gc
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")

import faisca_mlx as twin  # noqa: E402
from faisca.backend import Rollouts  # noqa: E402
from faisca.config import GRPOConfig, ModelConfig, OptimizerConfig, RunConfig  # noqa: E402
from faisca.parameters import initial_parameters  # noqa: E402
from faisca_mlx import device, losses, optimizer  # noqa: E402
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
    twin.grpo_step(learner=learner, rollouts=batch, config=GRPOConfig(), learning_rate=1e-5, dropout_seed=0)
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
        metrics = twin.grpo_step(
            learner=learner, rollouts=batch, config=GRPOConfig(), learning_rate=1e-4, dropout_seed=0
        )
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


# --- the fused loss -----------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True], ids=["explicit", "fused"])
def test_one_chunk_of_logits_is_alive_at_a_time(fresh_memory: None, fused: bool) -> None:
    """32 chunks, each with 5 MB of logits: measured on the CPU 34 MB and 62 MB; over 300 MB where none waits."""
    hidden, head = mx.random.normal((2048, 64)), mx.random.normal((20_000, 64))
    targets = mx.arange(2048) - 7
    mx.eval(hidden, head, targets)

    def loss_of(hidden: mx.array, head: mx.array) -> mx.array:
        return losses.linear_cross_entropy(hidden, losses.Head(head), targets, 64, True, fused)

    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss_of, (0, 1))(hidden, head))
    assert mx.get_peak_memory() - held < 1e8


def test_a_gpu_takes_the_fused_loss_and_a_cpu_does_not() -> None:
    assert device._choose_loss("gpu") == (True, "fused cross-entropy in each chunk")
    runtime = twin.open_runtime(config=RunConfig(device="cpu"))
    assert not runtime.fused_loss and runtime.details["loss"] == "explicit: no fused cross-entropy on the CPU"


def test_a_model_computes_its_loss_as_its_runtime_says(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, kernel = [], mx.fast.cross_entropy
    monkeypatch.setattr(mx.fast, "cross_entropy", lambda *given: (calls.append(1), kernel(*given))[1])
    learner = learner_for(SMALL)
    for fused in (False, True):
        learner.model.runtime = dataclasses.replace(learner.model.runtime, fused_loss=fused)
        train(learner, rows=2, micro=0)
        assert bool(calls) == fused
        twin.evaluate(model=learner.model, inputs=np.ones((1, 4), np.int32), targets=np.ones((1, 4), np.int32))
        assert len(calls) == 2 * fused  # one in the step, one in the evaluation: 64 and 4 rows are a chunk each


# --- memory that cannot creep -------------------------------------------------------------------


def test_shapes_beyond_the_cap_drop_the_graphs_and_say_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "MOST_TRACES", 3)
    learner, traced = learner_for(SMALL, RunConfig(device="cpu", compile="on")), []

    def step(learner: object, x: mx.array) -> mx.array:  # a single product: nothing to compile with g++
        traced.append(x.shape)
        return x @ x.T

    for size in (1, 2, 3, 1, 2, 3):
        mx.eval(learner.compiled(step)(mx.ones((size, 2))))
    assert len(traced) == 3 and twin.tidy_memory(learner=learner) == []
    for size in (4, 1, 2, 3, 4):
        mx.eval(learner.compiled(step)(mx.ones((size, 2))))
    assert [shape[0] for shape in traced] == [1, 2, 3, 4, 1, 2, 3, 4]  # at 4 and at 3 all graphs were dropped
    (line,) = twin.tidy_memory(learner=learner)
    assert "more than 3 shapes" in line and "--run.compile off" in line
    assert twin.tidy_memory(learner=learner) == []


def test_dropped_graphs_are_freed(fresh_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each graph holds a constant of its own of 0.4 MB: forty shapes at most hold a cap of five."""
    monkeypatch.setattr(device, "MOST_TRACES", 5)
    learner = learner_for(SMALL, RunConfig(device="cpu", compile="on"))

    def constant(learner: object, x: mx.array) -> mx.array:
        return x @ mx.array(np.full((2, 50_000), 1, np.float32))

    held = mx.get_active_memory()
    for size in range(1, 41):
        mx.eval(learner.compiled(constant)(mx.ones((size, 2))).shape)
    assert 0.4e6 < mx.get_active_memory() - held < 6 * 0.4e6 + 1e5


def test_the_cache_is_emptied_above_its_threshold_only(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared: list[int] = []
    monkeypatch.setattr(optimizer.mx, "clear_cache", lambda: cleared.append(1))
    monkeypatch.setattr(optimizer.mx, "get_cache_memory", lambda: 3_000_000_000)
    learner = learner_for(SMALL)
    said = []
    for threshold in (0, 3_000_000_000, *[2_000_000_000] * 100):
        learner.model.runtime = dataclasses.replace(learner.model.runtime, cache_threshold=threshold)
        said += twin.tidy_memory(learner=learner)
    assert len(cleared) == learner.cleared == 100
    assert (
        said[0] == "MLX held 3.0 GB of free buffers, over 2.0 GB: emptied, 1 ×" and len(said) == 3
    )  # 1st, 10th, 100th


class Gpu:
    """`mlx.core` of a machine with Metal: what is set is recorded, everything else is this machine's."""

    def __init__(self) -> None:
        self.limits = [0]
        self.metal = SimpleNamespace(is_available=lambda: True)
        self.cuda = SimpleNamespace(is_available=lambda: False)

    def __getattr__(self, name: str) -> object:
        return getattr(mx, name)

    def device_info(self) -> dict[str, object]:
        return {"device_name": "Apple M3", "max_recommended_working_set_size": 12_000_000_000}

    def set_default_device(self, chosen: object) -> None:
        pass

    def set_wired_limit(self, limit: int) -> int:
        self.limits.append(limit)
        return self.limits[-2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    metal = Gpu()
    monkeypatch.setattr(device, "mx", metal)
    return metal


def test_the_cache_threshold_is_a_quarter_of_what_the_gpu_may_use(gpu: Gpu) -> None:
    runtime = twin.open_runtime(config=RunConfig(device="gpu"))
    assert runtime.fused_loss and runtime.cache_threshold == 3_000_000_000
    assert twin.open_runtime(config=RunConfig(device="cpu")).cache_threshold == 0


def test_a_cache_limit_of_ones_own_comes_first(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(gpu, "set_cache_limit", limits.append, raising=False)
    assert twin.open_runtime(config=RunConfig(device="gpu", cache_limit_gb=2)).cache_threshold == 0
    assert limits == [2 * 2**30]


def test_the_wired_limit_is_set_while_training_and_restored(gpu: Gpu) -> None:
    runtime = twin.open_runtime(config=RunConfig(device="gpu"))
    gpu.limits = [5]
    with pytest.raises(KeyboardInterrupt), twin.training_memory(runtime=runtime):
        assert gpu.limits == [5, 12_000_000_000]
        raise KeyboardInterrupt
    assert gpu.limits == [5, 12_000_000_000, 5]
    with twin.training_memory(runtime=dataclasses.replace(runtime, device="cpu")):
        assert len(gpu.limits) == 3


@pytest.mark.skipif(not mx.metal.is_available(), reason="wired memory is Metal's")
def test_metal_takes_the_wired_limit() -> None:
    runtime = twin.open_runtime(config=RunConfig(device="gpu"))
    wanted = mx.device_info()["max_recommended_working_set_size"]
    with twin.training_memory(runtime=runtime):
        found = mx.set_wired_limit(wanted)
    assert found == wanted and mx.set_wired_limit(0) == 0
