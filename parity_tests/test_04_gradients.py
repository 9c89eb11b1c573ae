"""Rung 4: the gradient of every parameter, by name."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import OPTIONS, Twin, make_case, option_id
from close import require_close
from reference import Reference

from faisca.config import OptimizerConfig
from faisca.parity.cases import Case, Side
from faisca.parity.rungs import gradients, train


def reference_gradients(case: Case) -> dict[str, np.ndarray]:
    """Of the mean loss of the case's first batch."""
    inputs, targets = case.batch()
    return Reference(case.model, case.parameters).backward(inputs, targets, np.full(targets.shape, -1 / targets.size))


def float64_gradients(case: Case) -> dict[str, np.ndarray]:
    """Of the torch twin, in float64, through its own chunked loss."""
    import torch

    from faisca_torch.losses import linear_cross_entropy

    wide = {name: value.astype(np.float64) for name, value in case.parameters.items()}
    side = Twin("torch", "cpu").side
    model = side.backend.make_model(config=case.model, parameters=wide, runtime=side.open())
    inputs, targets = (torch.from_numpy(array.astype(np.int64)) for array in case.batch())
    hidden = model(inputs).flatten(0, 1)
    (linear_cross_entropy(hidden, model.head_VD, targets.flatten(), 7, True) / targets.numel()).backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_against_the_reference(twin: Twin, options: dict):
    case = make_case(**options)
    require_close(trimmed(reference_gradients(case)), trimmed(gradients(twin.side, case)), 1e-5, "norm")


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_between_twins(yardstick: Side, other: Twin, options: dict):
    case = make_case(**options)
    require_close(trimmed(gradients(yardstick, case)), trimmed(gradients(other.side, case)), 1e-5, "norm")


def trimmed(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the biases of keys: their true gradient is 0, as softmax ignores them, so only noise is there."""
    cut = dict(found)
    for name in found:
        if name.endswith("in_proj.bias"):
            query, key, value = np.split(found[name], 3)
            assert np.abs(key).max() <= 1e-6 * max(np.abs(query).max(), np.abs(value).max())
            cut[name] = np.concatenate([query, value])
    return cut


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_torch_in_float64_against_the_reference(yardstick: Side, options: dict):
    case = make_case(**options)
    require_close(trimmed(reference_gradients(case)), trimmed(float64_gradients(case)), 1e-10, "norm")


@pytest.mark.parametrize("kept", [2**26, 0])
def test_gradcheck_of_the_custom_losses(yardstick: Side, kept: int, monkeypatch: pytest.MonkeyPatch):
    """Finite differences of torch's own checker, in float64; the upstream gradient is not 1."""
    import torch

    from faisca_torch import losses
    from faisca_torch.losses import linear_cross_entropy, linear_log_probs

    monkeypatch.setattr(losses, "KEPT_EXPONENTIALS", kept)
    torch.manual_seed(0)
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(9) % 5
    masked = torch.where(targets == 2, -1, targets)
    assert torch.autograd.gradcheck(lambda h, w: 3 * linear_cross_entropy(h, w, masked, 4, True), (hidden, head))
    assert torch.autograd.gradcheck(lambda h, w: linear_log_probs(h, w, targets, 0.7, 4, True)[0], (hidden, head))


def test_the_reference_against_finite_differences():
    """The oracle itself: a few numbers of every parameter."""
    case = make_case(activation="gelu_tanh", attention_bias=True)
    expected, reference = reference_gradients(case), Reference(case.model, case.parameters)
    inputs, targets = case.batch()
    for name, value in reference.weights.items():
        place = np.unravel_index(np.abs(expected[name]).argmax(), value.shape)
        kept, losses = value[place], []
        for bump in (1e-5, -1e-5):
            value[place] = kept + bump
            losses.append(reference.losses(inputs, targets).mean())
        value[place] = kept
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(expected[name][place], rel=1e-6), name


def test_recomputing_blocks_changes_no_gradient(twin: Twin):
    """Gradient checkpointing against the plain backward pass."""
    case = make_case(attention_bias=True)
    require_close(*(train_once(twin, case, gradient_checkpointing=on) for on in (False, True)), 1e-6, "norm")


def test_explicit_attention_has_the_same_gradients(twin: Twin):
    case = make_case(attention_bias=True)
    fused, explicit = (train_once(twin, case, attention=way) for way in ("fused", "explicit"))
    assert fused.keys() == explicit.keys()
    for name in fused:
        if not name.endswith("in_proj.bias"):  # a key's bias has a gradient of rounding noise alone
            require_close({name: fused[name]}, {name: explicit[name]}, 1e-5, "norm")


@pytest.mark.parametrize("dropouts", [{"dropout": 0.5}, {"attention_dropout": 0.5}], ids=option_id)
def test_recomputed_blocks_drop_the_same_again(twin: Twin, dropouts: dict):
    """With dropout, a gradient is that of the loss of the same step: it predicts the loss a small step away."""
    case, changes = make_case(**dropouts), {"gradient_checkpointing": True}
    gradient = {name.removeprefix("first_moment."): g for name, g in train_once(twin, case, **changes).items()}
    length, moved = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values())), []
    for step in (1e-2, -1e-2):
        away = {
            name: value + (step / length * gradient[name]).astype(np.float32) for name, value in case.parameters.items()
        }
        _, (metrics,) = train(
            twin.side, dataclasses.replace(case, parameters=away), OptimizerConfig(), steps=1, **changes
        )
        moved.append(metrics["loss"])
    assert (moved[0] - moved[1]) / 2e-2 == pytest.approx(length, rel=1e-2)


def train_once(twin: Twin, case: Case, **changes: Any) -> dict[str, np.ndarray]:
    """Gradients of one step, through Adam's first moment."""
    config = OptimizerConfig(beta1=0.0, clip_norm=0.0)
    learner, _ = train(twin.side, case, config, steps=1, **changes)
    state = twin.side.backend.get_optimizer_state(learner=learner)
    return {name: value for name, value in state.items() if name.startswith("first_moment.")}
