"""What a twin makes of an option: each changes the numbers of its step, its tokens, or what it needs of the device.

That the core hands the options over is in test_options_reach.py.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from every_option import choices
from small_models import SMALL, cpu_runtime, open_twin

from faisca.backend import Backend, Rollouts, Sampling
from faisca.config import Config, GRPOConfig, ModelConfig, OptimizerConfig
from faisca.config.rules import EXPERTS
from faisca.errors import FaiscaError
from faisca.parameters import in_block, initial_parameters
from faisca.parity.cases import uneven_parameters
from faisca.training.setup import Setup

INPUTS = np.random.default_rng(0).integers(0, 11, (4, 9)).astype(np.int32)
OPTIMIZER = OptimizerConfig(weight_decay=0.1, clip_norm=0.01)
POLICY = GRPOConfig(weight_decay=0.1, clip_norm=0.0, kl_weight=0.3)


def model_of(twin: Backend, config: ModelConfig = SMALL, **run: Any) -> Any:
    runtime = cpu_runtime(twin, **run)
    return twin.make_model(config=config, parameters=uneven_parameters(config, 0), runtime=runtime)


def logits(twin: Backend, config: ModelConfig, **run: Any) -> bytes:
    found = twin.logits(model=model_of(twin, config, **run), tokens=INPUTS)
    assert np.isfinite(found).all()
    return found.tobytes()


def train(twin: Backend, learner: Any, rate: float = 1e-2, **more: Any) -> dict[str, float]:
    given = {"inputs": INPUTS[:, :-1], "targets": INPUTS[:, 1:], "micro_batch_size": 0, "dropout_seed": 1} | more
    return twin.read_metrics(metrics=[twin.train_step(learner=learner, learning_rate=rate, **given)])[0]


def rows(twin: Backend, config: ModelConfig, sampling: Sampling) -> list[list[int]]:
    draws = np.random.default_rng(1).random((6, sampling.max_new_tokens), np.float32)
    given = {"prompts": [[1, 2]] * 6, "uniforms": draws, "sampling": sampling, "end_of_text": (11,), "log_probs": None}
    return np.stack(list(twin.generate(model=model_of(twin, config), **given)), 1).tolist()


MODEL = {"context": 9, "num_heads": 4, "norm_epsilon": 0.1, "dropout": 0.4, "attention_dropout": 0.4}
MODEL |= {"dim": 12, "num_layers": 1, "hidden_dim": 20, "vocabulary_size": 14, "num_kv_heads": 1, "head_dim": 6}
MODEL |= {"rope_base": 50.0, "rope_factor": 3.0, "rope_low_frequency": 0.2, "rope_high_frequency": 9.0}
MODEL |= {"rope_original_context": 9, "initial_range": 0.5, "logit_soft_cap": 0.7, "bigram_rows": 5}
MODEL |= {"num_experts": 5, "experts_per_token": 1, "expert_dim": 11, "shared_expert_dim": 7}
MODEL |= {"balance_weight": 0.5, "router_z_weight": 0.5}
MIXTURE = {"num_experts": 4, "feed_forward_bias": False}
STRETCHED = {"positions": "rope", "rope_base": 20.0, "rope_factor": 2.0, "rope_original_context": 32}


def model_effect(twin: Backend, name: str, config: ModelConfig) -> Any:
    """Logits; the loss in training for dropout; for the context, how long a row becomes; else initial values."""
    if name == "context":
        return len(rows(twin, config, Sampling(1.0, 0, 1.0, 20))[0])
    if name in ("initial_range", "zero_outputs"):
        return b"".join(value.tobytes() for value in initial_parameters(config, 0).values())
    if "dropout" in name:
        return train(twin, twin.make_learner(model=model_of(twin, config), config=OPTIMIZER))["loss"]
    if name in ("balance_weight", "router_z_weight"):
        return train(twin, twin.make_learner(model=model_of(twin, config), config=OPTIMIZER))["grad_norm"]
    return logits(twin, config)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ModelConfig)])
def test_a_model_option_reaches_the_twins_arithmetic(twin: Backend, name: str) -> None:
    model = dataclasses.replace(SMALL, **STRETCHED) if name.startswith("rope") else SMALL
    if name in EXPERTS:
        model = dataclasses.replace(SMALL, **MIXTURE)
    elif name == "qk_norm_over":
        model = dataclasses.replace(SMALL, qk_norm=True)
    elif name == "num_experts":  # experts have no biases
        model = dataclasses.replace(SMALL, feed_forward_bias=False)
    base = getattr(model, name)
    values = choices(f"model.{name}", base, MODEL.get(name))
    if name == "attention_output_bias":  # auto, the default, is one of the others
        base, values = "off", ["on"]
    effects = [model_effect(twin, name, dataclasses.replace(model, **{name: value})) for value in (base, *values)]
    assert len(set(effects)) == len(effects) > 1


def trained_weights(twin: Backend, config: OptimizerConfig) -> bytes:
    """Weights after three steps, in which moments, decay and clipping have had their say."""
    learner = twin.make_learner(model=model_of(twin), config=config)
    for _ in range(3):
        train(twin, learner)
    return b"".join(value.tobytes() for value in twin.get_parameters(model=learner.model).values())


ROLLOUTS = Rollouts(
    tokens=INPUTS,
    mask=np.array([[0, 1, 1, 1, 0, 0, 0, 0], [0] + [1] * 7, [1] * 8, [0, 0, 1, 1, 1, 0, 0, 0]], np.float32),
    advantages=np.array([1.5, -1.0, 0.5, -2.0], np.float32),
    old_log_probs=np.random.default_rng(2).normal(-2.5, 1.0, (4, 8)).astype(np.float32),
    reference_log_probs=np.random.default_rng(3).normal(-2.5, 1.0, (4, 8)).astype(np.float32),
    step_tokens=30.0,
)


def policy_weights(twin: Backend, config: GRPOConfig) -> bytes:
    """Weights after two GRPO steps: one has ratios on both sides of the clip, the other a momentum."""
    learner = twin.make_learner(model=model_of(twin), config=config)
    for _ in range(2):
        twin.grpo_step(learner=learner, rollouts=ROLLOUTS, config=config, learning_rate=1e-2, dropout_seed=0)
    return b"".join(value.tobytes() for value in twin.get_parameters(model=learner.model).values())


ADAM = {"weight_decay": 0.3, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-2, "clip_norm": 0.5}


MUON = {"muon_learning_rate": 0.02, "muon_momentum": 0.5}


@pytest.mark.parametrize("name", ["decay", "optimizer", *ADAM, *MUON])
@pytest.mark.parametrize("weights", [trained_weights, policy_weights])
def test_an_optimiser_option_reaches_the_twins_steps(twin: Backend, weights: Callable, name: str) -> None:
    base = OPTIMIZER if weights is trained_weights else POLICY
    if name in MUON:
        base = dataclasses.replace(base, optimizer="muon")
    values = choices(f"pretrain.{name}", getattr(base, name), (ADAM | MUON).get(name))
    effects = [weights(twin, base), *(weights(twin, dataclasses.replace(base, **{name: value})) for value in values)]
    assert len(set(effects)) == len(effects) > 1


LOSS = {"clip_low": 0.5, "clip_high": 0.6, "cispo_cap": 1.1, "kl_weight": 0.6, "temperature": 0.7, "max_new_tokens": 8}
LOSS |= {"delta": 1.3, "sapo_temperature_pos": 0.5, "sapo_temperature_neg": 2.0, "entropy_weight": 0.3}
LOSS |= {"micro_batch_size": 2}
NEEDS = {"cispo_cap": {"objective": "cispo"}, "max_new_tokens": {"loss": "dr_grpo"}}
NEEDS |= {name: {"objective": "sapo"} for name in LOSS if name.startswith("sapo")}
NEEDS |= {"loss": {"micro_batch_size": 2}, "micro_batch_size": {"loss": "bnpo"}}
LITERALS = ("loss", "objective", "importance", "kl_bias_correction")
RATE = ("learning_rate", "schedule", "warmup_steps", "min_learning_rate_share", "decay_share")


@pytest.mark.parametrize("name", [*LOSS, *LITERALS])
def test_an_option_of_the_policy_loss_reaches_the_twins_steps(twin: Backend, name: str) -> None:
    base = dataclasses.replace(POLICY, **NEEDS.get(name, {}))
    values = choices(f"grpo.{name}", getattr(base, name), LOSS.get(name))
    assert getattr(base, name) not in values
    effects = [policy_weights(twin, dataclasses.replace(base, **{name: value})) for value in values]
    assert len({policy_weights(twin, base), *effects}) == len(effects) + 1 > 1


def test_only_known_options_of_grpo_are_the_cores_alone() -> None:
    """A new option of the policy's step must be tried on the twins too."""
    core = {*RATE, *ADAM, *MUON, "decay", "optimizer"}
    core |= {"steps", "prompts", "prompts_per_step", "group_size", "top_k", "epochs"}
    core |= {"minibatch_size", "rollout_batch", "reward", "scale_rewards", "mask_truncated", "baseline"}
    core |= {"rollout_correction", "rollout_correction_cap", "prompts_file", "save_completions"}
    core |= {"reward_weights", "reward_timeout", "reward_workers"}
    core |= {"lora_rank", "lora_alpha", "lora_targets", "lora_dropout", "lora_dora"}
    assert {field.name for field in dataclasses.fields(GRPOConfig)} == core | set(LOSS) | set(LITERALS)
    assert {field.name for field in dataclasses.fields(OptimizerConfig)} == {*RATE, *ADAM, *MUON, "decay", "optimizer"}


SAMPLED = {"temperature": 0.2, "top_k": 2, "top_p": 0.3, "max_new_tokens": 3}


@pytest.mark.parametrize("name", SAMPLED)
def test_an_option_of_sampling_reaches_the_twins_tokens(twin: Backend, name: str) -> None:
    base = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=6)
    assert {field.name for field in dataclasses.fields(Sampling)} == set(SAMPLED)
    assert rows(twin, SMALL, base) != rows(twin, SMALL, dataclasses.replace(base, **{name: SAMPLED[name]}))


def test_arguments_of_a_step_reach_it(twin: Backend) -> None:
    """Rate and seed of a training step; the rate of a policy step."""
    config = dataclasses.replace(SMALL, dropout=0.3)

    def moved(**given: Any) -> bytes:
        learner = twin.make_learner(model=model_of(twin, config), config=OPTIMIZER)
        train(twin, learner, **given)
        return twin.get_parameters(model=learner.model)["out_head.weight"].tobytes()

    assert len({moved(), moved(rate=2e-2), moved(dropout_seed=2)}) == 3
    after = []
    for rate in (1e-2, 2e-2):
        learner = twin.make_learner(model=model_of(twin), config=POLICY)
        twin.grpo_step(learner=learner, rollouts=ROLLOUTS, config=POLICY, learning_rate=rate, dropout_seed=0)
        after.append(twin.get_parameters(model=learner.model)["out_head.weight"])
    assert not np.array_equal(*after)


# --- what a twin does with the options of its runtime -------------------------------------------


def test_dtype_reaches_the_arithmetic(twin: Backend) -> None:
    found = {logits(twin, SMALL, dtype=dtype) for dtype in ("float32", "bfloat16")}
    assert len(found) == 2 and logits(twin, SMALL, dtype="auto") in found


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the twins ask their frameworks to compile; nothing is."""
    asked: list[Any] = []
    for module in ("torch", "mlx.core"):
        if module in sys.modules:
            monkeypatch.setattr(sys.modules[module], "compile", lambda what, **more: (asked.append(what), what)[1])
    yield asked
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)  # what compiling for the CPU sets


def test_compile_reaches_the_step(twin: Backend, compilations: list[Any]) -> None:
    for choice in ("off", "on"):
        train(twin, twin.make_learner(model=model_of(twin, compile=choice), config=OPTIMIZER))
        assert bool(compilations) == (choice == "on")


def test_a_device_that_is_asked_for_is_taken_or_missed(twin: Backend) -> None:
    taken = {}
    for device in ("cpu", "gpu", "cuda", "mps"):
        try:
            taken[device] = cpu_runtime(twin, device=device).device
        except FaiscaError as error:
            assert f"device {device} is not available" in str(error)
    assert taken.pop("cpu") == "cpu" and "cpu" not in taken.values()


class Largest:
    """The most numbers that any array of a step has, and how many are kept for the backward pass, in torch."""

    def __enter__(self) -> "Largest":
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        self.largest = self.kept = 0

        class Watching(TorchDispatchMode):
            def __torch_dispatch__(_, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = function(*args, **(kwargs or {}))
                if isinstance(out, torch.Tensor):
                    self.largest = max(self.largest, out.numel())
                return out

        def keep(tensor: Any) -> Any:
            self.kept += tensor.numel()
            return tensor

        self.modes = [Watching(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)]
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in self.modes[::-1]:
            mode.__exit__(*error)


def footprint(twin: Backend, config: ModelConfig, **run: Any) -> tuple[int, int]:
    """How much a training step needs: its largest array and what it keeps in torch, its peak in MLX."""
    learner = twin.make_learner(model=model_of(twin, config, **run), config=OPTIMIZER)
    tokens = np.random.default_rng(0).integers(0, 12, (8, 65)).astype(np.int32)
    given = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    train(twin, learner, **given)
    runtime = learner.model.runtime
    if runtime.backend == "torch":
        with Largest() as seen:
            train(twin, learner, **given)
        return seen.largest, seen.kept
    before = twin.memory(runtime=runtime, reset_peak=True)["active"]
    train(twin, learner, **given)
    return (twin.memory(runtime=runtime, reset_peak=False)["peak"] - before,) * 2


def test_loss_chunk_bounds_the_logits(twin: Backend) -> None:
    """512 tokens and 4,000 words: all logits at once, or those of 16 tokens at a time."""
    wide = dataclasses.replace(SMALL, context=64, vocabulary_size=4000, num_layers=1)
    whole, chunked = (footprint(twin, wide, loss_chunk=chunk)[0] for chunk in (512, 16))
    assert whole > 4 * chunked


def test_gradient_checkpointing_keeps_less(twin: Backend) -> None:
    deep = dataclasses.replace(SMALL, context=64, num_layers=6, hidden_dim=128)
    kept, recomputed = (footprint(twin, deep, gradient_checkpointing=choice)[1] for choice in (False, True))
    assert kept > 1.5 * recomputed


def test_frozen_weights_in_bfloat16_are_their_rounded_selves(twin: Backend) -> None:
    """Matrices of blocks alone; products stay in the runtime's dtype, so nothing else is rounded."""
    parameters = uneven_parameters(SMALL, 0)
    kept = twin.make_model(config=SMALL, parameters=parameters, runtime=cpu_runtime(twin, weights="bfloat16"))
    found = twin.get_parameters(model=kept)
    for name, value in parameters.items():
        rounded = (value.view(np.uint32) + 0x7FFF + (value.view(np.uint32) >> 16 & 1)) & 0xFFFF0000
        expected = rounded.astype(np.uint32).view(np.float32) if in_block(name, value.shape) else value
        assert np.array_equal(found[name], expected), name
    assert sum(in_block(name, value.shape) for name, value in parameters.items()) == 8
    plain = twin.make_model(config=SMALL, parameters=found, runtime=cpu_runtime(twin))
    one, two = (twin.logits(model=model, tokens=INPUTS) for model in (kept, plain))
    assert np.abs(one - two).max() < 1e-5


def test_only_what_is_frozen_is_kept_in_bfloat16(twin: Backend) -> None:
    runtime = cpu_runtime(twin, weights="bfloat16")
    setup = Setup(Config(), twin, runtime, None, SMALL)  # type: ignore[arg-type]
    parameters = uneven_parameters(SMALL, 0)
    name = "transformer_blocks.0.attention.in_proj.weight"
    trained, frozen = (
        twin.get_parameters(model=setup.make_model(parameters, frozen=frozen))[name] for frozen in (False, True)
    )
    assert np.array_equal(trained, parameters[name]) and not np.array_equal(frozen, parameters[name])


def test_explicit_attention_leaves_the_fused_kernel_alone(twin: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the fused kernel was called")

    fused, explicit = (model_of(twin, SMALL, attention=choice) for choice in ("fused", "explicit"))
    name = "torch.nn.functional" if fused.runtime.backend == "torch" else "mlx.core.fast"
    monkeypatch.setattr(f"{name}.scaled_dot_product_attention", refuse)
    twin.logits(model=explicit, tokens=np.zeros((1, 3), np.int32))
    with pytest.raises(AssertionError, match="fused"):
        twin.logits(model=fused, tokens=np.zeros((1, 3), np.int32))


def test_the_cache_limit_reaches_mlx() -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    twin = open_twin("mlx")
    free = mx.set_cache_limit(2**34)
    try:
        for limit, wanted in ((0.5, 2**29), (0.25, 2**28)):
            cpu_runtime(twin, cache_limit_gb=limit)
            assert mx.set_cache_limit(2**34) == wanted
        cpu_runtime(twin, cache_limit_gb=0.0)
        assert mx.set_cache_limit(2**34) == 2**34
    finally:
        mx.set_cache_limit(free)
