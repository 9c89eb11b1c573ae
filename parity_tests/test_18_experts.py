"""Mixtures of experts: whom a router picks, what it adds to the loss, and that no token is left out."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import COMPILED, EXPERTS, MIXTURE, TWINS, Twin, make_case, option_id
from close import require_close
from reference import Reference
from reference_experts import CLEAR, choose, narrowest_choice, router_metrics
from test_04_gradients import reference_gradients, train_once
from test_17_architectures import WAYS

from faisca.config import OptimizerConfig
from faisca.parity.cases import Case
from faisca.parity.rungs import gradients, logits, policy_steps, train
from faisca.parity.sampling import agreement

TIED = np.array([[0, 0, 0, 0, 0], [1, 2, 2, 2, 1], [3, 1, 3, 1, 3], [-1, -2, -1, -3, -1], [0, 0, 0, 0, 1]], np.float32)


def with_equal_logits(**options: Any) -> Case:
    """A case whose routers find no difference: all tokens go to the first experts, by the rule for ties."""
    case = make_case(**MIXTURE | options)
    for name, value in case.parameters.items():
        if name.endswith("router.weight"):
            value[...] = 0
    return case


def with_a_favourite() -> Case:
    """A case in which the last expert is every token's first choice, for most by far."""
    case = make_case(**MIXTURE | {"norm": "layer", "experts_per_token": 1})
    for name, value in case.parameters.items():
        if "norm2.bias" in name:
            value[...] = 5
        if name.endswith("router.weight"):
            value[:-1] -= 1
    return case


@pytest.mark.parametrize("count", [1, 2, 4])
def test_of_equal_logits_the_first_expert_is_picked(twin: Twin, count: int):
    expected = [choose(row, count) for row in TIED]
    assert expected[0] == list(range(count)) and expected[2][:2] == [0, 2][:count] and expected[4][0] == 4
    inside = twin.inside
    assert inside.numpy(inside.experts.choose(inside.array(TIED), count)).tolist() == expected


@pytest.mark.parametrize("case", [with_equal_logits(), with_a_favourite()], ids=["ties", "a favourite"])
def test_an_expert_takes_all_tokens_and_drops_none(twin: Twin, case: Case):
    """All 80 tokens of a batch go to the same experts, and each gets what they compute."""
    reference = Reference(case.model, case.parameters)
    require_close({"logits": reference.logits(case.batch()[0])}, logits(twin.side, case), 1e-5)
    require_close(reference_gradients(case), gradients(twin.side, case), 1e-5, "norm")
    _, (metrics,) = train(twin.side, case, OptimizerConfig(), steps=1)
    assert metrics["expert_load_max"] == case.model.num_experts / case.model.experts_per_token
    assert metrics["dropped_share"] == 0


@pytest.mark.parametrize("micro_batch_size", [0, 2])
@pytest.mark.parametrize("options", EXPERTS, ids=option_id)
def test_router_losses_and_what_is_watched(twin: Twin, options: dict, micro_batch_size: int):
    """Those of a step are the means over its micro-batches; `loss` is the cross-entropy alone."""
    case = make_case(**options)
    reference, (inputs, targets), found = Reference(case.model, case.parameters), case.batch(), []
    for rows in np.split(inputs, 2 if micro_batch_size else 1):
        reference.hidden_states(rows)
        assert narrowest_choice(reference.routed, case.model) > CLEAR
        found.append(router_metrics(reference.routed, case.model))
    _, (metrics,) = train(twin.side, case, OptimizerConfig(), steps=1, micro_batch_size=micro_batch_size)
    for name in found[0]:
        assert metrics[name] == pytest.approx(np.mean([part[name] for part in found]), rel=1e-5, abs=1e-7), name
    assert metrics["loss"] == pytest.approx(reference.losses(inputs, targets).mean(), rel=1e-6)


@pytest.mark.full  # a minute and more of g++
@pytest.mark.parametrize("side", COMPILED, ids=str)
def test_a_compiled_step_is_the_same(side: Twin):
    case = make_case(**MIXTURE, num_layers=1)
    require_close(reference_gradients(case), gradients(side.side, case), 1e-5, "norm")


def test_in_bfloat16_the_router_stays_float32(twin: Twin):
    """Few choices change, and what the experts compute is as near as other layers'."""
    case = make_case(**MIXTURE)
    plain, short = (train_once(twin, case, dtype=dtype) for dtype in ("float32", "bfloat16"))
    require_close(plain, short, 0.1, "norm")
    model = case.make_model(twin.side, dtype="bfloat16", weights="bfloat16")
    _, routed = model.hidden_and_routed(twin.inside.array(case.batch()[0]))
    assert [str(array.dtype).rpartition(".")[2] for array in routed] == ["float32"] * 2


def test_samples_with_a_cache(other: Twin):
    """One token at a time goes where it went among others."""
    case = make_case(**EXPERTS[1])
    for sampling in WAYS:
        outcome = agreement(TWINS[0].side, other.side, case, sampling, rows=6)
        assert not outcome.wrong, (sampling, outcome.wrong)


def test_policies_learn_without_the_routers_losses(twin: Twin):
    """And the twins agree on GRPO's updates of a mixture."""
    with_losses = make_case(**MIXTURE | {"balance_weight": 9.0, "router_z_weight": 9.0})
    without = dataclasses.replace(with_losses, model=dataclasses.replace(with_losses.model, balance_weight=0.0))
    found = [policy_steps(twin.side, case) for case in (with_losses, without)]
    require_close(*found, 1e-7)
    require_close(policy_steps(TWINS[0].side, without), found[1], 1e-4)
