"""Rung 1: the same initial values, bit for bit, under the same names."""

import numpy as np
import pytest
from cases import OPTIONS, Twin, make_case, model_config, option_id
from close import require_close

from faisca.errors import FaiscaError
from faisca.parameters import initial_parameters, parameter_shapes
from faisca.parity.cases import Case
from faisca.parity.rungs import weights


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_weights_come_back_bit_for_bit(twin: Twin, options: dict):
    config = model_config(**options)
    initial = initial_parameters(config, seed=3)
    returned = weights(twin.side, Case(config, initial, end_of_text=0))
    assert list(initial) == list(parameter_shapes(config))
    assert set(returned) == set(initial)
    assert {name: value.dtype for name, value in returned.items()} == dict.fromkeys(returned, np.dtype(np.float32))
    require_close(initial, returned, 0.0)


def test_what_comes_back_is_a_copy(twin: Twin):
    case = make_case()
    model = case.make_model(twin.side)
    taken = twin.side.backend.get_parameters(model=model)
    taken["out_head.weight"][:] = 0
    again = twin.side.backend.get_parameters(model=model)
    assert np.array_equal(again["out_head.weight"], case.parameters["out_head.weight"])


def test_names_and_shapes_are_strict(twin: Twin):
    case = make_case()
    for change, message in (
        ({"out_head.bias": np.zeros(3, np.float32)}, "unknown out_head.bias"),
        ({"out_head.weight": np.zeros((24, 101), np.float32)}, "has shape"),
    ):
        parameters = dict(case.parameters) | change
        with pytest.raises(FaiscaError, match=message):
            twin.side.backend.make_model(config=case.model, parameters=parameters, runtime=twin.side.open())
