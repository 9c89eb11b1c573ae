"""Random streams: pure functions of seed, purpose, step and row."""

import numpy as np
import pytest

from faisca.streams import generator, integer_seed, permutation, uniforms


def draw(rows: int, columns: int = 6, **other) -> np.ndarray:
    return uniforms(
        other.get("seed", 1337), other.get("purpose", "a"), step=other.get("step", 3), rows=rows, columns=columns
    )


# Known answers: another value here means that no earlier run can be repeated.


def test_known_answers():
    assert generator(1337, "a", 5, 7).bit_generator.random_raw(3).tolist() == [
        12362271126747805407,
        11051362070922613903,
        7376702071618156698,
    ]
    assert permutation(1337, "a", 8).tolist() == [7, 5, 0, 2, 1, 4, 3, 6]
    assert uniforms(1337, "a", step=3, rows=2, columns=2).tolist() == [
        [0.973452091217041, 0.9878263473510742],
        [0.5079801082611084, 0.1733425259590149],
    ]
    assert integer_seed(1337, "a", 5) == 3865385600567716007


def test_a_row_does_not_depend_on_how_many_rows_there_are():
    assert np.array_equal(draw(3), draw(50)[:3])


def test_a_row_begins_the_same_whatever_its_length():
    assert np.array_equal(draw(4, 5), draw(4, 9)[:, :5])


def test_the_order_of_calls_does_not_matter():
    first, second = draw(2, step=1), draw(2, step=2)
    again = [draw(2, step=2), draw(2, step=1)][::-1]
    assert np.array_equal(first, again[0]) and np.array_equal(second, again[1])


def test_numpy_and_python_random_states_are_not_touched():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    draw(4), permutation(1, "a", 5), integer_seed(1, "a")
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("other", [{"seed": 1338}, {"purpose": "b"}, {"step": 4}, {"seed": 2**63 - 1}, {"step": 2**40}])
def test_seed_purpose_and_step_each_give_another_stream(other):
    assert not np.intersect1d(draw(20), draw(20, **other)).size


def test_no_two_rows_share_a_number():
    numbers = draw(100, 50, step=0)
    assert len(np.unique(numbers)) > 0.999 * numbers.size  # float32 has 2**24 values: a few coincide


def test_uniforms_are_float32_and_uniform_along_rows_and_columns():
    numbers = draw(400, 300)
    assert numbers.dtype == np.float32 and numbers.shape == (400, 300)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    expected = numbers.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square, 19 degrees: p about 1e-4
    for pair in (numbers[:-1].ravel(), numbers[1:].ravel()), (numbers[:, :-1].ravel(), numbers[:, 1:].ravel()):
        assert abs(np.corrcoef(*pair)[0, 1]) < 4 / np.sqrt(len(pair[0]))


def test_permutation_is_one_and_changes_with_the_step():
    orders = [permutation(1, "order", 100, step) for step in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(100)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 3


def test_integer_seeds_fit_in_63_bits_and_differ():
    seeds = [integer_seed(1, "dropout", step) for step in range(200)]
    assert len(set(seeds)) == 200 and all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # all the bits are used
