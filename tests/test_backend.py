"""The boundary: choosing a twin, and what both twins promise of a step, an evaluation and their state."""

import dataclasses
import platform

import numpy as np
import pytest
from small_models import SMALL, TWINS, cpu_runtime, same_arrays, small_model

from faisca import backends
from faisca.backend import BFLOAT16, PLACES_MULTIPLE, Rollouts, load_backend
from faisca.backends import BACKENDS, choose_backend
from faisca.config import RunConfig, TrainConfig
from faisca.errors import FaiscaError
from faisca.parameters import initial_parameters, parameter_shapes
from faisca.streams import generator

BATCH = np.random.Generator(np.random.Philox(5)).integers(0, 12, (8, 9)).astype(np.int32)
INPUTS, TARGETS = BATCH[:, :-1], BATCH[:, 1:]
PLAIN = TrainConfig(weight_decay=0.0, clip_norm=0.0)


def step(twin, learner, *, learning_rate=1e-2, micro_batch_size=0, dropout_seed=0, targets=TARGETS):
    metrics = twin.train_step(
        learner=learner,
        inputs=INPUTS,
        targets=targets,
        learning_rate=learning_rate,
        micro_batch_size=micro_batch_size,
        dropout_seed=dropout_seed,
    )
    return twin.read_metrics(metrics=[metrics])[0]


def trained(twin, config=SMALL, optimizer=PLAIN, *, steps=2, runtime=None, **options):
    """A learner after some steps, and the metrics of the last."""
    learner = twin.make_learner(model=small_model(twin, config, **(runtime or {})), config=optimizer)
    metrics = [step(twin, learner, **options) for _ in range(steps)][-1]
    return learner, metrics


def weights(twin, learner) -> dict[str, np.ndarray]:
    return twin.get_parameters(model=learner.model)


def distance(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    """Largest difference of any weight."""
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


# --- which twin ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "machine", "installed", "chosen"),
    [
        ("Darwin", "arm64", {"mlx", "torch"}, "mlx"),
        ("Darwin", "arm64", {"torch"}, "torch"),
        ("Darwin", "x86_64", {"mlx", "torch"}, "torch"),
        ("Linux", "x86_64", {"mlx", "torch"}, "torch"),
        ("Linux", "arm64", {"mlx"}, "mlx"),
    ],
)
def test_auto_takes_the_native_backend(monkeypatch, system, machine, installed, chosen):
    monkeypatch.setattr(backends.platform, "system", lambda: system)
    monkeypatch.setattr(backends.platform, "machine", lambda: machine)
    monkeypatch.setattr(backends, "importable", lambda module: module.partition(".")[0] in installed)
    assert choose_backend("auto")[0] == chosen
    assert choose_backend("torch") == ("torch", "asked for")


def test_a_backend_that_is_not_there_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(backends, "importable", lambda module: False)
    extras = {"torch": "torch", "mlx": "mlx" if platform.system() == "Darwin" else "mlx-cpu"}
    for name in TWINS:
        with pytest.raises(FaiscaError, match=rf'backend {name} needs .*pip install "\.\[{extras[name]}\]"'):
            load_backend(name)
    assert choose_backend("auto")[0] == "mlx"  # whose error load_backend then raises


def test_a_missing_parent_package_is_just_not_installed(monkeypatch):
    assert not dataclasses.replace(BACKENDS["mlx"], needs="no_such_package.core").installed


def test_an_unknown_backend_is_named():
    with pytest.raises(FaiscaError, match="backend 'jax' is unknown: choose auto, torch, mlx"):
        load_backend("jax")


def test_a_runtime_says_why(twin):
    runtime = twin.open_runtime(config=RunConfig(loss_chunk=77, gradient_checkpointing=True))
    assert [reason.split()[0] for reason in runtime.reasons[:3]] == ["device", "dtype", "compile"]
    assert runtime.loss_chunk == 77 and runtime.gradient_checkpointing
    assert runtime.backend in TWINS and runtime.details[runtime.backend]
    assert cpu_runtime(twin).reasons == ("device cpu: asked for", "dtype float32: asked for", "compile off: asked for")


def test_what_bfloat16_means_is_said(twin):
    """And for torch, cuBLAS may no longer add up the parts of a product in bfloat16."""
    reason = cpu_runtime(twin, dtype="bfloat16").reasons[1]
    assert reason.startswith(f"dtype bfloat16: asked for; {BFLOAT16}") and "the product that makes logits" in reason
    if twin.__name__ == "faisca_torch":
        import torch

        assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_the_product_that_only_cuda_has_is_there():
    """No CUDA here: torch knows the call that `losses._project` makes there, and says that the CPU has it not."""
    torch = pytest.importorskip("torch")
    a, out = torch.ones(2, 2, dtype=torch.bfloat16), torch.empty(2, 2)
    with pytest.raises(NotImplementedError, match=r"aten::mm\.dtype_out"):
        torch.mm(a, a.T, out_dtype=out.dtype, out=out)


def test_a_device_that_is_not_there_is_refused(twin):
    missing = "cuda" if twin.__name__ == "faisca_torch" else "mps"
    if twin.open_runtime(config=RunConfig()).device != "cpu":
        pytest.skip("there is a GPU here: no device to miss")
    for device in (missing, "gpu"):
        with pytest.raises(FaiscaError, match=f"device {device} is not available .* choose among .*cpu"):
            twin.open_runtime(config=RunConfig(device=device))


def test_memory_is_counted_in_whole_bytes(twin):
    counted = twin.memory(runtime=cpu_runtime(twin), reset_peak=True)
    assert set(counted) in (set(), {"peak", "active", "cache"})
    assert all(isinstance(value, int) and value >= 0 for value in counted.values())


# --- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": True}, {"attention_bias": True, "activation": "gelu_tanh"}])
def test_parameters_come_back_as_they_went_in(twin, options):
    config = dataclasses.replace(SMALL, **options)
    given = initial_parameters(config, 3)
    model = twin.make_model(config=config, parameters=given, runtime=cpu_runtime(twin))
    returned = twin.get_parameters(model=model)
    assert {name: returned[name].tobytes() for name in given} == {name: given[name].tobytes() for name in given}
    assert set(returned) == set(parameter_shapes(config)) and not model.training


def test_parameters_are_copies_in_both_directions(twin):
    given = initial_parameters(SMALL, 0)
    model = twin.make_model(config=SMALL, parameters=given, runtime=cpu_runtime(twin))
    before = twin.logits(model=model, tokens=INPUTS)
    for array in given.values():
        array += 1
    for array in twin.get_parameters(model=model).values():
        array += 1
    assert np.array_equal(twin.logits(model=model, tokens=INPUTS), before)


def test_weights_of_another_model_are_refused(twin):
    with pytest.raises(FaiscaError, match="these weights do not fit"):
        twin.make_model(config=SMALL, parameters={}, runtime=cpu_runtime(twin))


def test_logits_are_causal(twin):
    model = small_model(twin)
    before = twin.logits(model=model, tokens=INPUTS)
    changed = INPUTS.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % 12
    after = twin.logits(model=model, tokens=changed)
    assert before.dtype == np.float32 and before.shape == (8, 8, 12)
    assert np.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not np.allclose(before[:, 5:], after[:, 5:], atol=1e-2)


def test_log_probs_are_the_log_softmax_of_logits_over_temperature(twin):
    model = small_model(twin)
    logits = twin.logits(model=model, tokens=BATCH)[:, :-1].astype(np.float64) / 0.7
    expected = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    found = twin.token_log_probs(model=model, tokens=BATCH, temperature=0.7, places=None)
    assert found.dtype == np.float32 and found.shape == TARGETS.shape
    assert np.allclose(found, np.take_along_axis(expected, TARGETS[..., None], 2)[..., 0], atol=1e-5)


def test_log_probs_of_some_places_are_those_of_all(twin):
    model, places = small_model(twin), np.array([9, 0, 30, 11, 63, 2], np.int32)
    all_of_them = twin.token_log_probs(model=model, tokens=BATCH, temperature=0.7, places=None)
    found = twin.token_log_probs(model=model, tokens=BATCH, temperature=0.7, places=places)
    assert np.allclose(found.ravel()[places], all_of_them.ravel()[places], atol=1e-6)
    assert np.count_nonzero(found) == len(places)


def test_places_are_what_the_mask_counts_and_then_some_to_a_multiple():
    for counted, expected in (
        (0, PLACES_MULTIPLE),
        (1, PLACES_MULTIPLE),
        (PLACES_MULTIPLE, PLACES_MULTIPLE),
        (PLACES_MULTIPLE + 1, 2 * PLACES_MULTIPLE),
        (390, 400),
    ):
        mask = np.zeros(400, np.float32)
        mask[generator(0, "counted").permutation(400)[:counted]] = 1
        nothing = np.zeros((20, 20), np.float32)
        tokens = np.zeros((20, 21), np.int32)
        places = Rollouts(tokens, mask.reshape(20, 20), nothing[0], nothing, nothing, 1.0).places
        assert len(places) == len(set(places.tolist())) == expected and places.dtype == np.int32
        assert mask[places].sum() == counted


def test_negative_targets_are_left_out(twin):
    model = small_model(twin)
    holes = np.where(np.arange(8) % 3 == 0, -1, TARGETS)
    log_probs = twin.token_log_probs(model=model, tokens=BATCH, temperature=1.0, places=None)
    found = twin.evaluate(model=model, inputs=INPUTS, targets=holes.astype(np.int32))
    assert found == pytest.approx(-float(log_probs[holes >= 0].sum()), rel=1e-5)
    assert twin.evaluate(model=model, inputs=INPUTS, targets=np.full_like(TARGETS, -1)) == 0


# --- steps --------------------------------------------------------------------------------------


def test_steps_lower_the_loss_that_they_report(twin):
    model = small_model(twin)
    before = twin.evaluate(model=model, inputs=INPUTS, targets=TARGETS) / TARGETS.size
    learner = twin.make_learner(model=model, config=PLAIN)
    measured = [step(twin, learner) for _ in range(30)]
    assert set(measured[0]) == {"loss", "grad_norm", "skipped"} and measured[0]["skipped"] == 0
    assert measured[0]["loss"] == pytest.approx(before, rel=1e-5) and measured[0]["grad_norm"] > 0
    assert measured[-1]["loss"] < before - 1


def test_metrics_are_read_in_order_and_none_are_none(twin):
    learner = twin.make_learner(model=small_model(twin), config=PLAIN)
    kept = []
    for rate in (1e-2, 1e-2, 1e-2):
        arguments = {"inputs": INPUTS, "targets": TARGETS, "learning_rate": rate}
        kept.append(twin.train_step(learner=learner, **arguments, micro_batch_size=0, dropout_seed=0))
    losses = [metrics["loss"] for metrics in twin.read_metrics(metrics=kept)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 3
    assert twin.read_metrics(metrics=[]) == []


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_micro_batches_add_up_to_the_batch(twin, size):
    whole, parts = trained(twin, steps=1)[1], trained(twin, steps=1, micro_batch_size=size)[1]
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("runtime", [{"loss_chunk": 1}, {"loss_chunk": 7}, {"gradient_checkpointing": True}])
def test_memory_savers_change_no_number(twin, runtime):
    (plain, before), (saving, after) = trained(twin), trained(twin, runtime=runtime)
    assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-5)
    assert distance(weights(twin, plain), weights(twin, saving)) < 1e-4


def test_the_learning_rate_scales_the_first_step(twin):
    start = initial_parameters(SMALL, 0)
    moved = [distance(weights(twin, trained(twin, steps=1, learning_rate=rate)[0]), start) for rate in (1e-3, 1e-2)]
    assert moved == pytest.approx([1e-3, 1e-2], rel=1e-3)  # Adam's first step is the rate times a sign


def test_the_gradient_norm_is_measured_before_clipping(twin):
    free = trained(twin, steps=1)[1]["grad_norm"]
    bound = dataclasses.replace(PLAIN, clip_norm=free / 100)
    clipped, metrics = trained(twin, steps=1, optimizer=bound)
    assert metrics["grad_norm"] == pytest.approx(free, rel=1e-6)
    moments = twin.get_optimizer_state(learner=clipped)
    norm = np.sqrt(sum((moments[name] ** 2).sum() for name in moments if name.startswith("first_moment")))
    assert norm == pytest.approx(0.1 * free / 100, rel=1e-3)  # (1 - beta1) times the clipped gradient


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_weight_decay_reaches_what_it_should(twin, decay):
    """With the gradient the same, decayed weights differ by rate × decay × weight, others not at all."""
    start = initial_parameters(SMALL, 0)
    decaying = dataclasses.replace(PLAIN, weight_decay=0.5, decay=decay)
    plain, decayed = (weights(twin, trained(twin, steps=1, optimizer=o)[0]) for o in (PLAIN, decaying))
    for name, value in start.items():
        expected = 1e-2 * 0.5 * value if decay == "all" or value.ndim == 2 else np.zeros_like(value)
        assert np.allclose(plain[name] - decayed[name], expected, atol=1e-6), name


def test_dropout_follows_its_seed(twin):
    config = dataclasses.replace(SMALL, dropout=0.5, attention_dropout=0.5)
    losses = [trained(twin, config, steps=1, dropout_seed=seed)[1]["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert trained(twin, SMALL, steps=1)[1]["loss"] not in losses


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_the_loss_with_dropout_and_recomputed_blocks(twin, checkpointing):
    """Along the gradient, the loss rises by its norm; a block recomputed with other dropout would not fit."""
    config = dataclasses.replace(SMALL, dropout=0.3, attention_dropout=0.2)

    def learner_at(parameters):
        runtime = cpu_runtime(twin, gradient_checkpointing=checkpointing)
        model = twin.make_model(config=config, parameters=parameters, runtime=runtime)
        return twin.make_learner(model=model, config=PLAIN)

    start = initial_parameters(config, 0)
    learner = learner_at(start)
    norm = step(twin, learner, learning_rate=0.0, dropout_seed=5)["grad_norm"]
    moments = twin.get_optimizer_state(learner=learner)
    direction = {name: moments[f"first_moment.{name}"] / ((1 - PLAIN.beta1) * norm) for name in start}
    losses = []
    for distance in (-1e-2, 1e-2):
        moved = {name: (value + distance * direction[name]).astype(np.float32) for name, value in start.items()}
        losses.append(step(twin, learner_at(moved), learning_rate=0.0, dropout_seed=5)["loss"])
    assert (losses[1] - losses[0]) / 2e-2 == pytest.approx(norm, rel=0.01)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
def test_a_step_that_is_not_finite_changes_nothing(twin, poison):
    learner, _ = trained(twin, optimizer=dataclasses.replace(PLAIN, clip_norm=1.0, weight_decay=0.1))
    good = weights(twin, learner)
    bad = {name: value.copy() for name, value in good.items()}
    bad["out_head.weight"][3] = poison
    model = twin.make_model(config=SMALL, parameters=bad, runtime=cpu_runtime(twin))
    poisoned = twin.make_learner(model=model, config=learner.config)
    twin.set_optimizer_state(learner=poisoned, state=twin.get_optimizer_state(learner=learner))
    state = twin.get_optimizer_state(learner=poisoned)
    assert step(twin, poisoned)["skipped"] == 1
    assert same_arrays(twin.get_optimizer_state(learner=poisoned), state) and state["step"] == 2
    assert all(np.array_equal(value, bad[name], equal_nan=True) for name, value in weights(twin, poisoned).items())


def test_optimizer_state_goes_out_and_in_bit_for_bit(twin):
    learner, _ = trained(twin, steps=3)
    state = twin.get_optimizer_state(learner=learner)
    names = [f"{moment}.{name}" for moment in ("first_moment", "second_moment") for name in parameter_shapes(SMALL)]
    assert set(state) == {*names, "step"} and state["step"] == 3 and state["step"].dtype == np.int64
    model = twin.make_model(config=SMALL, parameters=weights(twin, learner), runtime=cpu_runtime(twin))
    other = twin.make_learner(model=model, config=PLAIN)
    twin.set_optimizer_state(learner=other, state=state)
    assert same_arrays(twin.get_optimizer_state(learner=other), state)
    assert step(twin, learner) == step(twin, other)
    assert same_arrays(weights(twin, learner), weights(twin, other))


def test_a_fresh_learner_has_zero_moments(twin):
    state = twin.get_optimizer_state(learner=twin.make_learner(model=small_model(twin), config=PLAIN))
    assert all((value == 0).all() for value in state.values())
