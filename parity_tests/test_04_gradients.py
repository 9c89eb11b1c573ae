"""Rung 4: the gradient of every parameter, by name."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import EXPERTS, GPT2, LLAMA, MIXTURE, MODERN, OPTIONS, Twin, make_case, option_id
from close import require_close
from reference import Reference

from faisca.config import OptimizerConfig
from faisca.parity.cases import Case, Side
from faisca.parity.rungs import gradients, train


def reference_gradients(case: Case) -> dict[str, np.ndarray]:
    """Of the mean loss of the case's first batch, and of the routers' losses."""
    inputs, targets = case.batch()
    reference = Reference(case.model, case.parameters)
    reference.with_router_loss = True
    return reference.backward(inputs, targets, np.full(targets.shape, -1 / targets.size))


def float64_gradients(case: Case) -> dict[str, np.ndarray]:
    """Of the torch twin, in float64, through its own chunked loss."""
    import torch

    from faisca_torch.experts import router_loss
    from faisca_torch.losses import linear_cross_entropy

    wide = {name: value.astype(np.float64) for name, value in case.parameters.items()}
    side = Twin("torch", "cpu").side
    model = side.backend.make_model(config=case.model, parameters=wide, runtime=side.open())
    inputs, targets = (torch.from_numpy(array.astype(np.int64)) for array in case.batch())
    hidden, routed = model.hidden_and_routed(inputs)
    loss = linear_cross_entropy(hidden.flatten(0, 1), model.head, targets.flatten(), 7, True) / targets.numel()
    (loss + router_loss(routed, case.model, 1.0)[0]).backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_against_the_reference(either: Twin, options: dict):
    case = make_case(**options)
    require_same(case, reference_gradients(case), gradients(either.side, case), 1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_between_twins(yardstick: Side, other: Twin, options: dict):
    case = make_case(**options)
    require_same(case, gradients(yardstick, case), gradients(other.side, case), 1e-5)


def require_same(case: Case, expected: dict[str, np.ndarray], found: dict[str, np.ndarray], tolerance: float) -> None:
    """By name, but for the biases of keys where these are not turned: their true gradient is 0, so only noise is there.

    Softmax ignores what all keys have in common; a bias that is turned differs from position to position.
    """
    model = case.model
    if model.attention_bias and model.positions == "learned" and not model.qk_norm:
        heads = np.cumsum([model.num_heads, model.kv_heads]) * model.head_width
        expected, found = (without_keys(gradients, heads) for gradients in (expected, found))
    require_close(expected, found, tolerance, "norm")


def without_keys(found: dict[str, np.ndarray], heads: np.ndarray) -> dict[str, np.ndarray]:
    cut = dict(found)
    for name in (name for name in found if name.endswith("in_proj.bias")):
        query, key, value = np.split(found[name], heads)
        assert np.abs(key).max() <= 1e-6 * max(np.abs(query).max(), np.abs(value).max())
        cut[name] = np.concatenate([query, value])
    return cut


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_torch_in_float64_against_the_reference(yardstick: Side, options: dict):
    case = make_case(**options)
    require_same(case, reference_gradients(case), float64_gradients(case), 1e-10)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("kept", [2**26, 0])
def test_gradcheck_of_the_custom_losses(yardstick: Side, kept: int, cap: float, monkeypatch: pytest.MonkeyPatch):
    """Finite differences of torch's own checker, in float64; the upstream gradient is not 1."""
    import torch

    from faisca_torch import log_probs as scored
    from faisca_torch.losses import linear_cross_entropy
    from faisca_torch.model import Head

    monkeypatch.setattr(scored, "KEPT_EXPONENTIALS", kept)
    torch.manual_seed(0)
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(9) % 5
    masked = torch.where(targets == 2, -1, targets)

    def loss(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return 3 * linear_cross_entropy(hidden, Head(head, cap), masked, 4, True)

    def log_probs(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return scored.linear_log_probs(hidden, Head(head, cap), targets, 0.7, 4, 1)[0]

    def log_probs_and_entropies(hidden: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return scored.linear_log_probs(hidden, Head(head, cap), targets, 0.7, 4, 2)

    assert torch.autograd.gradcheck(loss, (hidden, head))
    assert torch.autograd.gradcheck(log_probs, (hidden, head))
    assert torch.autograd.gradcheck(log_probs_and_entropies, (hidden, head))


@pytest.mark.parametrize("options", [GPT2 | {"tie_embeddings": False}, *MODERN, *EXPERTS], ids=option_id)
def test_the_reference_against_finite_differences(options: dict):
    """The oracle itself: the steepest number of every parameter."""
    case = make_case(**options)
    expected, reference = reference_gradients(case), Reference(case.model, case.parameters)
    inputs, targets = case.batch()
    for name, value in reference.weights.items():
        place = np.unravel_index(np.abs(expected[name]).argmax(), value.shape)
        kept, losses = value[place], []
        for bump in (1e-5, -1e-5):
            value[place] = kept + bump
            losses.append(reference.losses(inputs, targets).mean() + reference.router_loss())
        value[place] = kept
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(expected[name][place], rel=1e-6), name


def test_recomputing_blocks_changes_no_gradient(twin: Twin):
    """Gradient checkpointing against the plain backward pass."""
    for options in ({"attention_bias": True}, LLAMA, MIXTURE):
        case = make_case(**options)
        require_close(*(train_once(twin, case, gradient_checkpointing=on) for on in (False, True)), 1e-6, "norm")


def test_explicit_attention_has_the_same_gradients(twin: Twin):
    for options in ({"attention_bias": True}, LLAMA, MIXTURE):
        case = make_case(**options)
        require_same(case, *(train_once(twin, case, attention=way) for way in ("fused", "explicit")), 1e-5)


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
