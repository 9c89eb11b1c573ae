"""Adapters on the ladder: beginnings, products, gradients, steps, GRPO, resuming, and that nothing else is trained."""

import dataclasses
import shutil
from typing import Any

import numpy as np
import pytest
from cases import COMPILED, LLAMA, MIXTURE, TWINS, Twin, make_adapted, option_id
from close import require_close
from reference import Reference
from reference_steps import adamw
from test_04_gradients import reference_gradients
from test_05_optimizer import outcome
from test_19_muon import resumed

from faisca.config import GRPOConfig, ModelConfig, OptimizerConfig, adapter_of, plain
from faisca.lora import merged, split
from faisca.parameters import decays, in_adapter, initial_parameters, parameter_shapes
from faisca.parity.cases import Case, Side, completions
from faisca.parity.rungs import gradients, learner_parameters, log_probabilities, logits, policy_steps, reinforce, train

FAMILIES: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": True, "attention_bias": True, "activation": "gelu_tanh", "num_heads": 4},
    LLAMA,
    LLAMA | {"qk_norm": True, "qk_norm_over": "all", "head_dim": 10, "logit_soft_cap": 5.0},
    MIXTURE,
    MIXTURE | {"shared_expert_dim": 9, "normalise_experts": False},
]
SOME: list[dict[str, Any]] = [
    LLAMA | {"lora_targets": ("query", "value")},
    LLAMA | {"lora_targets": ("key", "output", "gate"), "lora_rank": 1, "lora_alpha": 0.5},
    MIXTURE | {"lora_targets": ("experts",)},
    {"lora_targets": ("down", "up"), "lora_rank": 30},
]
DORA: list[dict[str, Any]] = [
    {"lora_dora": True, "attention_bias": True, "activation": "gelu_tanh", "num_heads": 4},
    LLAMA | {"lora_dora": True, "qk_norm": True, "head_dim": 10},
    LLAMA | {"lora_dora": True, "lora_targets": ("query", "value", "down")},
]
ALL = FAMILIES + SOME + DORA


def own(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The adapter's."""
    return {name: value for name, value in arrays.items() if in_adapter(name)}


# --- beginnings and products --------------------------------------------------------------------


@pytest.mark.parametrize("options", ALL, ids=option_id)
def test_the_names_are_those_of_the_targets(options: dict):
    case = make_adapted(**options)
    adapter = adapter_of(case.model)
    assert adapter is not None
    found = {name.split(".lora.")[1].rpartition(".")[0] for name in own(dict(case.parameters))}
    ofs = {"experts": {"gate", "up", "down"}}
    assert found == set().union(*(ofs.get(target, {target}) for target in adapter.targets))
    for name, shape in parameter_shapes(case.model).items():
        if in_adapter(name):
            assert name.endswith(".m") or adapter.rank == (shape[-2] if name.endswith(".a") else shape[-1]), name
            assert adapter.dora or not name.endswith(".m")
    assert set(parameter_shapes(plain(case.model))) == {n for n in case.parameters if not in_adapter(n)}


@pytest.mark.parametrize("options", FAMILIES, ids=option_id)
def test_at_first_an_adapter_changes_nothing(twin: Twin, options: dict):
    case = make_adapted(**options)
    values = initial_parameters(case.model, 7)
    fresh = dataclasses.replace(case, parameters=values)
    bare = dataclasses.replace(case, parameters=dict(split(values)[0]), model=plain(case.model))
    for name, value in own(values).items():
        bound = 1 / np.sqrt(value.shape[-1])
        assert not value.any() if name.endswith(".b") else 0.8 * bound < np.abs(value).max() <= bound, name
    require_close(logits(twin.side, bare), logits(twin.side, fresh), 0.0)


@pytest.mark.parametrize("options", DORA, ids=option_id)
def test_at_first_rows_are_as_long_as_the_bases(twin: Twin, options: dict):
    case = make_adapted(**options)
    values = initial_parameters(case.model, 7)
    fresh = dataclasses.replace(case, parameters=values)
    bare = dataclasses.replace(case, parameters=dict(split(values)[0]), model=plain(case.model))
    require_close(logits(twin.side, bare), logits(twin.side, fresh), 1e-6)
    key, base = "transformer_blocks.1.feed_forward.down", split(values)[0]
    expected = np.sqrt((base[f"{key}.weight"].astype(np.float64) ** 2).sum(1))
    assert np.allclose(values[f"{key}.lora.down.m"], expected, rtol=1e-6)


# Largest differences measured, with either twin: 9.5e-7 of logits, 6.5e-7 of gradients.
@pytest.mark.parametrize("options", ALL, ids=option_id)
def test_logits_and_gradients_against_the_reference(either: Twin, options: dict):
    case = make_adapted(**options)
    expected = Reference(case.model, case.parameters).logits(case.batch()[0])
    require_close({"logits": expected}, logits(either.side, case), 1e-5)
    require_close(own(reference_gradients(case)), gradients(either.side, case), 1e-5, "norm")


@pytest.mark.parametrize("options", FAMILIES + DORA[:2], ids=option_id)
def test_the_merged_model_is_the_same(twin: Twin, options: dict):
    case = make_adapted(**options)
    one = dataclasses.replace(case, parameters=dict(merged(case.parameters, case.model)), model=plain(case.model))
    require_close(logits(twin.side, case), logits(twin.side, one), 1e-5)
    require_close(log_probabilities(twin.side, case), log_probabilities(twin.side, one), 1e-5)


# --- steps --------------------------------------------------------------------------------------


def adapter_config(**changes: Any) -> OptimizerConfig:
    return OptimizerConfig(**({"epsilon": 1e-4, "warmup_steps": 0, "schedule": "constant"} | changes))


@pytest.mark.parametrize("options", [{}, LLAMA, MIXTURE, DORA[1]], ids=option_id)
@pytest.mark.parametrize("setting", [{"weight_decay": 0.5, "clip_norm": 0.0}, {"clip_norm": 0.03}], ids=option_id)
def test_a_step_clips_and_decays_the_adapter_alone(either: Twin, options: dict, setting: dict):
    case, config = make_adapted(steps=1, **options), adapter_config(**setting)
    gradient, weights = own(reference_gradients(case)), own(dict(case.parameters))
    expected, first, second = adamw(
        weights, [gradient], config, config.learning_rate, lambda name, shape: decays(name, shape, config.decay)
    )
    found = outcome(either.side, case, config)
    assert {name.partition(".")[2] for name in found if "." in name} == set(weights)
    require_close(expected, {n: found[f"weight.{n}"] for n in weights}, 1e-6, "absolute")
    require_close(first, {n: found[f"first_moment.{n}"] for n in weights}, 1e-5, "norm")
    require_close(second, {n: found[f"second_moment.{n}"] for n in weights}, 2e-5, "norm")


@pytest.mark.parametrize("options", FAMILIES + DORA[:2], ids=option_id)
def test_the_base_stays_bit_for_bit(stepped: Twin, options: dict):
    if stepped.compile == "on" and options:
        pytest.skip("one family is compiled: each takes seconds")
    case, backend = make_adapted(steps=3, **options), stepped.side.backend
    bare = dataclasses.replace(case, parameters=dict(split(case.parameters)[0]), model=plain(case.model))
    learner, metrics = train(stepped.side, case, adapter_config(weight_decay=0.9, decay="all"), steps=3)
    tokens = case.batch()[0]
    before = logits(stepped.side, bare)["logits"]
    assert np.array_equal(before, backend.logits(model=backend.base_of(model=learner.model), tokens=tokens))
    after = learner_parameters(stepped.side, learner)
    assert all(not np.array_equal(value, case.parameters[name]) for name, value in after.items())
    assert metrics[2]["loss"] != metrics[0]["loss"]


# 2.4e-6 of losses measured
@pytest.mark.parametrize("options", FAMILIES + DORA[:2], ids=option_id)
def test_twenty_steps_between_twins(yardstick: Side, other: Twin, options: dict):
    compare_training(yardstick, other.side, make_adapted(**options))


@pytest.mark.parametrize("side", COMPILED, ids=str)
def test_twenty_compiled_steps(yardstick: Side, side: Twin):
    compare_training(yardstick, side.side, make_adapted(**LLAMA | {"num_layers": 1}))


def compare_training(one_side: Side, two_side: Side, case: Case) -> None:
    """Losses and norms of each step, and the adapters at the end, in micro-batches."""
    config = adapter_config(learning_rate=3e-3, weight_decay=0.1)
    (one, said), (two, told) = (
        train(side, case, config, steps=case.steps, micro_batch_size=2) for side in (one_side, two_side)
    )
    for key in ("loss", "grad_norm"):
        require_close(*({key: np.array([step[key] for step in steps])} for steps in (said, told)), 1e-5)
    require_close(*(learner_parameters(*pair) for pair in ((one_side, one), (two_side, two))), 1e-4, "absolute")
    moved = [np.abs(value - case.parameters[name]).max() for name, value in learner_parameters(one_side, one).items()]
    assert min(moved) > 1e-2  # a hundred times what the twins may differ by


def test_a_restored_state_goes_on_as_if_never_stopped(twin: Twin, yardstick: Side):
    """On the same twin bit for bit; a state of torch's goes on in MLX as in torch."""
    case, config = make_adapted(steps=2, **LLAMA), adapter_config()
    learner, _ = train(twin.side, case, config, steps=2)
    after_one, _ = train(twin.side, case, config, steps=1)
    state = twin.side.backend.get_optimizer_state(learner=after_one)
    again = dataclasses.replace(case, parameters={**case.parameters, **learner_parameters(twin.side, after_one)})
    require_close(learner_parameters(twin.side, learner), resumed(twin.side, again, config, state), 0.0)
    require_close(*(resumed(side, again, config, state) for side in (yardstick, twin.side)), 1e-6, "absolute")


# 0.3 to 1.3 % measured
def test_in_bfloat16_gradients_stay_near_and_the_adapter_float32(twin: Twin):
    case = make_adapted(**LLAMA)
    found = []
    for dtype in ("float32", "bfloat16"):
        config = OptimizerConfig(beta1=0.0, clip_norm=0.0)
        learner, _ = train(twin.side, case, config, steps=1, dtype=dtype)
        state = twin.side.backend.get_optimizer_state(learner=learner)
        found.append({name: value for name, value in state.items() if name.startswith("first_moment")})
        assert {str(value.dtype) for value in learner_parameters(twin.side, learner).values()} == {"float32"}
    require_close(*found, 0.1, "norm")
    with pytest.raises(Exception, match="arrays differ"):
        require_close(*found, 1e-4, "norm")


def test_a_base_in_bfloat16_is_that_base_rounded(twin: Twin):
    """Its matrices are rounded, the adapter is not; gradients are those of the rounded base."""
    from faisca.parameters import in_block
    from faisca.system.tensors import rounded

    case = make_adapted(**LLAMA)
    halves = {n: rounded(v, "bfloat16") if in_block(n, v.shape) else v for n, v in case.parameters.items()}
    config = OptimizerConfig(beta1=0.0, clip_norm=0.0)
    learner, _ = train(twin.side, case, config, steps=1, weights="bfloat16")
    state = twin.side.backend.get_optimizer_state(learner=learner)
    expected = own(reference_gradients(dataclasses.replace(case, parameters=halves)))
    require_close(expected, {n: state[f"first_moment.{n}"] for n in expected}, 1e-5, "norm")


# --- GRPO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, LLAMA, MIXTURE, DORA[1]], ids=option_id)
def test_a_policy_is_moved_alike(yardstick: Side, other: Twin, options: dict):
    case = make_adapted(**options)
    require_close(*(policy_steps(side, case) for side in (yardstick, other.side)), 1e-4)
    moved = []
    for side in (yardstick, other.side):
        learner, _ = reinforce(side, case, GRPOConfig(epsilon=1e-6, clip_high=0.28, kl_weight=0.1, entropy_weight=0.01))
        moved.append({n: v - case.parameters[n] for n, v in learner_parameters(side, learner).items()})
    together = [{"change": np.concatenate([v.ravel() for v in one.values()])} for one in moved]
    require_close(*together, 1e-3, "norm")


REACHED = [*TWINS, *COMPILED, *(dataclasses.replace(t, compile="on") for t in TWINS if t.name == "torch")]


@pytest.mark.parametrize("side", REACHED, ids=str)
def test_the_reward_reaches_every_trained_number(side: Twin):
    """Of two policies that differ in what was rewarded alone, every number of the adapter differs; compiled or not.

    A public trainer's gradient was exactly 0 for months under `compile`.
    """
    if side.compile == "on" and shutil.which("g++") is None:
        pytest.skip("compiling for the CPU needs g++, which is not installed")
    case = make_adapted(**LLAMA | {"num_layers": 1}, rows=8, length=16)
    config = GRPOConfig(epsilon=1e-12, kl_weight=0.0, clip_norm=0.0)
    changed = [policy_after(side.side, case, config, sign) for sign in (1.0, -1.0, 0.0)]
    for name, value in changed[0].items():
        assert (value != changed[1][name]).all(), name
        assert (changed[1][name] != case.parameters[name]).all() and (value != case.parameters[name]).all(), name
        assert np.array_equal(changed[2][name], case.parameters[name]), name


def policy_after(side: Side, case: Case, config: GRPOConfig, sign: float) -> dict[str, np.ndarray]:
    """The adapter after two updates that make some completions likelier, or with the other sign less likely."""
    from faisca.backend import Rollouts

    learner = side.backend.make_learner(model=case.make_model(side), config=config)
    tokens, mask, advantages = completions(case)
    old = side.backend.token_log_probs(model=learner.model, tokens=tokens, temperature=1.0, places=None)
    rollouts = Rollouts(tokens, mask, np.float32(sign) * advantages, old, old, step_tokens=float(mask.sum()))
    for _ in range(2):
        side.backend.grpo_step(learner=learner, rollouts=rollouts, config=config, learning_rate=1e-3, dropout_seed=0)
    return learner_parameters(side, learner)


@pytest.mark.parametrize("options", FAMILIES + DORA[:2], ids=option_id)
def test_without_its_adapter_it_is_the_base_and_shares_its_arrays(twin: Twin, options: dict):
    """GRPO's reference, for which no second model is in memory; also after steps, and in bfloat16."""
    case, backend = make_adapted(**options), twin.side.backend
    bare = dataclasses.replace(case, parameters=dict(split(case.parameters)[0]), model=plain(case.model))
    tokens = case.batch()[0]
    score = {"tokens": tokens, "temperature": 0.7, "places": None}
    for weights in ("float32", "bfloat16"):
        expected = backend.token_log_probs(model=bare.make_model(twin.side, weights=weights), **score)
        learner, _ = train(twin.side, case, adapter_config(), steps=1, weights=weights)
        reference = backend.base_of(model=learner.model)
        assert np.array_equal(expected, backend.token_log_probs(model=reference, **score))
        assert not np.array_equal(expected, backend.token_log_probs(model=learner.model, **score))
        owned, shared = addresses(twin, learner.model), addresses(twin, reference)
        assert shared and shared == {name: owned[name] for name in shared}


def addresses(twin: Twin, model: Any) -> dict[str, int]:
    """Where each weight lies in memory."""
    if twin.name == "torch":
        return {name: weight.data_ptr() for name, weight in model.named_parameters()}
    from mlx.utils import tree_flatten

    pointer = lambda weight: np.array(weight, copy=False).__array_interface__["data"][0]  # noqa: E731
    arrays = dict(tree_flatten(model.parameters()))
    return {name: pointer(value) for name, value in arrays.items() if "bfloat16" not in str(value.dtype)}


def test_a_model_without_an_adapter_trains_all(twin: Twin):
    case = make_adapted()
    bare = dataclasses.replace(case, parameters=dict(split(case.parameters)[0]), model=plain(case.model))
    assert type(bare.model) is ModelConfig
    learner, _ = train(twin.side, bare, adapter_config(), steps=1)
    assert set(learner_parameters(twin.side, learner)) == set(bare.parameters)
