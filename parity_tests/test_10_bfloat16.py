"""Rung 10: bfloat16 activations, with looser tolerances. Training in bfloat16 is in test_06_trajectories.py.

A bfloat16 has 8 bits of mantissa, so each rounding is up to 2^-9 = 2e-3 of the number. The twins
round in different places: torch's autocast keeps norms and the residual stream in float32, MLX
casts the weights and so rounds all activations; both sum the loss in float32.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import GPT2, Twin, make_case, option_id

from faisca.parity.command import in_bfloat16
from faisca.parity.differences import require_close
from faisca.parity.rungs import Side, gradients, log_probabilities, logits, losses, reinforce, trajectory, weights

MODELS = [{}, GPT2, {"attention_dropout": 1e-9}]


def short(twin: Twin) -> Side:
    return in_bfloat16(twin.side)


@pytest.mark.parametrize("options", MODELS, ids=option_id)
def test_forward_and_losses(yardstick: Side, twin: Twin, options: dict[str, Any]):
    case = make_case(**options)
    found = require_close(logits(yardstick, case), logits(short(twin), case), 3e-2)
    assert found[0].scaled > 1e-5, "something was computed in bfloat16"
    require_close(losses(yardstick, case), losses(short(twin), case), 1e-2)
    require_close(log_probabilities(yardstick, case), log_probabilities(short(twin), case), 3e-2)


def test_losses_are_summed_in_float32(twin: Twin):
    """1,000 equal losses: summed in bfloat16, they would be off by percents."""
    case = make_case(rows=50, length=20)
    loss = twin.side.backend.evaluate
    inputs, targets = case.batch()
    model = case.make_model(short(twin))
    parts = sum(loss(model=model, inputs=inputs[i : i + 1], targets=targets[i : i + 1]) for i in range(50))
    assert loss(model=model, inputs=inputs, targets=targets) == pytest.approx(parts, rel=1e-5)


def test_probabilities_are_float32(twin: Twin):
    """A head of zeros makes every token as likely: its log-probability, -log V, has more digits than a bfloat16."""
    case = make_case(tie_embeddings=False)
    head = np.zeros_like(case.parameters["out_head.weight"])
    case = dataclasses.replace(case, parameters={**case.parameters, "out_head.weight": head})
    for values in log_probabilities(short(twin), case).values():
        assert np.allclose(values[values != 0], -np.log(len(head)), rtol=1e-6)
    inputs, targets = case.batch()
    loss = twin.side.backend.evaluate(model=case.make_model(short(twin)), inputs=inputs, targets=targets)
    assert loss / targets.size == pytest.approx(np.log(len(head)), rel=1e-6)


@pytest.mark.parametrize("options", MODELS, ids=option_id)
def test_gradients(yardstick: Side, twin: Twin, options: dict[str, Any]):
    case = make_case(**options)
    both = [
        {"all": np.concatenate([gradient.ravel() for gradient in gradients(side, case).values()])}
        for side in (yardstick, short(twin))
    ]
    require_close(*both, 3e-2, "norm")


def test_weights_and_moments_stay_float32(twin: Twin):
    """What bfloat16 cannot hold survives in the weights."""
    case = make_case()
    require_close(dict(case.parameters), weights(short(twin), case), 0.0)


def test_training_and_grpo(yardstick: Side, twin: Twin):
    case = dataclasses.replace(make_case(), steps=20)
    require_close({"loss": trajectory(yardstick, case)["loss"]}, {"loss": trajectory(short(twin), case)["loss"]}, 1e-2)
    for a, b in zip(reinforce(yardstick, case)[1], reinforce(short(twin), case)[1], strict=True):
        for name in ("entropy", "ratio_mean"):
            assert a[name] == pytest.approx(b[name], rel=5e-2), name
