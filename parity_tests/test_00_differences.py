"""The helper that all rungs rest on: it reports names, sizes and places, and it can fail."""

import numpy as np
import pytest
from cases import make_case
from close import require_close

from faisca.errors import VerificationError
from faisca.parity.cases import Side, uneven_parameters
from faisca.parity.differences import differences
from faisca.parity.rungs import logits, weights


def test_a_difference_says_how_much_and_where():
    expected = np.array([[1.0, 2.0], [3.0, -4.0]])
    actual = expected + np.array([[0.0, 0.0], [0.5, 0.0]])
    (found,) = differences({"weight": expected}, {"weight": actual})
    assert (found.name, found.absolute, found.scaled, found.where) == ("weight", 0.5, 0.125, (1, 0))
    assert found.norm == pytest.approx(0.5 / np.sqrt(30))
    assert str(found).startswith("weight[1, 0]: 3.5 instead of 3; largest difference 0.5, 0.125 of the scale")


def test_equal_arrays_pass_at_tolerance_zero():
    values = {"weight": np.array([1.0, np.inf]), "empty": np.zeros((0, 3)), "zero": np.zeros(2)}
    assert [found.absolute for found in require_close(values, values, 0.0)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("measure", ["absolute", "scaled", "norm"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_passes(measure: str, bad: float):
    with pytest.raises(VerificationError, match=r"weight\[1\]"):
        require_close({"weight": np.ones(2)}, {"weight": np.array([1.0, bad])}, 1e30, measure)


def test_nan_on_both_sides_never_passes():
    with pytest.raises(VerificationError, match="weight"):
        require_close({"weight": np.array([np.nan])}, {"weight": np.array([np.nan])}, 1e30)


def test_something_where_nothing_is_expected_never_passes():
    with pytest.raises(VerificationError, match="inf of the scale"):
        require_close({"weight": np.zeros(2)}, {"weight": np.array([0.0, 1e-30])}, 1e30)


def test_names_and_shapes_are_strict():
    one = {"a": np.zeros(2), "b": np.zeros(2)}
    with pytest.raises(VerificationError, match="missing b, unknown c"):
        differences(one, {"a": np.zeros(2), "c": np.zeros(2)})
    with pytest.raises(VerificationError, match=r"b has shape \[3\] instead of \[2\]"):
        differences(one, {"a": np.zeros(2), "b": np.zeros(3)})


@pytest.mark.parametrize("name", list(uneven_parameters(make_case().model, 0)))
def test_one_perturbed_weight_is_found(yardstick: Side, name: str):
    """A single number of a single weight, off by 1 %: named, placed, and seen in the logits."""
    case, changed = make_case(), make_case()
    weight = changed.parameters[name]
    place = np.unravel_index(np.abs(weight[: case.length]).argmax(), weight[: case.length].shape)
    if name == "token_embedding.weight":
        place = (int(case.batch()[0][0, 0]), 0)
    weight[place] *= 1.01
    with pytest.raises(VerificationError) as failure:
        require_close(weights(yardstick, case), weights(yardstick, changed), 0.0)
    assert f"{name}[{', '.join(map(str, place))}]" in str(failure.value)
    with pytest.raises(VerificationError, match="logits"):
        require_close(logits(yardstick, case), logits(yardstick, changed), 1e-5)
