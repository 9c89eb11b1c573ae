"""Scales of the residual stream: against the reference, as if there were none at first, and never decayed."""

import dataclasses

import numpy as np
from cases import LLAMA, Twin, make_case
from close import require_close
from reference import Reference
from test_04_gradients import reference_gradients

from faisca.config import OptimizerConfig
from faisca.parameters import SCALES, initial_parameters
from faisca.parity.cases import Case
from faisca.parity.rungs import gradients, learner_parameters, logits, train


def test_logits_and_gradients_against_the_reference(twin: Twin):
    for options in ({}, LLAMA | {"num_layers": 3}):
        case = make_case(residual_scales=True, **options)
        expected = Reference(case.model, case.parameters).logits(case.batch()[0])
        require_close({"logits": expected}, logits(twin.side, case), 1e-5)
        expected_gradients, found = reference_gradients(case), gradients(twin.side, case)
        assert all(np.abs(found[name]).min() > 1e-6 for name in SCALES)
        require_close(expected_gradients, found, 1e-5, "norm")


# MLX's own sum over 524,288 numbers is 9.0e-6 off; ours, and torch's, 1.5e-6 at most
def test_their_gradients_are_exact_over_many_numbers(twin: Twin):
    case = make_case(residual_scales=True, rows=32, length=128, context=128, dim=128, hidden_dim=32)
    expected, found = reference_gradients(case), gradients(twin.side, case)
    require_close(*({name: side[name] for name in SCALES} for side in (expected, found)), 4e-6, "norm")


def test_at_first_they_change_nothing(twin: Twin):
    plain, scaled = (make_case(residual_scales=on) for on in (False, True))
    made = [
        Case(case.model, initial_parameters(case.model, 1), 0, rows=4, length=20, steps=1) for case in (plain, scaled)
    ]
    require_close(*(logits(twin.side, case) for case in made), 0.0)


def test_they_never_decay(twin: Twin):
    case, config = make_case(steps=1, residual_scales=True), OptimizerConfig(decay="all", weight_decay=0.9)
    still = dataclasses.replace(config, weight_decay=0.0)
    one, two = (learner_parameters(twin.side, train(twin.side, case, c, steps=1)[0]) for c in (config, still))
    for name in SCALES:
        assert np.array_equal(one[name], two[name]) and not np.array_equal(one[name], case.parameters[name])
    assert not np.array_equal(one["final_layer_norm.weight"], two["final_layer_norm.weight"])
