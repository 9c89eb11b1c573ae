"""The learning rate: warm-up, constant, and the two ends of the cosine."""

from itertools import pairwise

import pytest

from faisca.config import TrainConfig
from faisca.training.schedule import learning_rate


def rates(total: int, **options) -> list[float]:
    config = TrainConfig(**{"learning_rate": 0.5, "warmup_steps": 4, "min_learning_rate_share": 0.1} | options)
    return [learning_rate(config, step, total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up_rises_by_equal_steps_to_the_peak(schedule):
    assert rates(20, schedule=schedule)[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])


def test_constant_stays_at_the_peak():
    assert set(rates(20, schedule="constant", warmup_steps=0)) == {0.5}


def test_cosine_falls_from_the_peak_to_its_share_at_the_last_step():
    all_rates = rates(21, schedule="cosine", warmup_steps=0)
    assert all_rates[0] == 0.5 and all_rates[-1] == pytest.approx(0.05, rel=1e-12)
    assert all_rates[10] == pytest.approx((0.5 + 0.05) / 2, rel=1e-12)  # half-way: the mean of both ends
    assert all(left > right for left, right in pairwise(all_rates))


def test_cosine_with_warm_up_ends_at_its_share_too():
    assert rates(11, schedule="cosine")[-1] == pytest.approx(0.05, rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_ends_of_the_share(share):
    assert rates(9, schedule="cosine", min_learning_rate_share=share)[-1] == pytest.approx(0.5 * share, abs=1e-15)


@pytest.mark.parametrize("total", [1, 3, 4, 5])
def test_short_stages_stay_between_zero_and_the_peak(total):
    assert all(0 < rate <= 0.5 for rate in rates(total, schedule="cosine"))


def test_steps_beyond_the_total_stay_at_the_floor():
    config = TrainConfig(learning_rate=0.5, warmup_steps=0, min_learning_rate_share=0.1)
    assert learning_rate(config, 500, 20) == pytest.approx(0.05)


def test_wsd_is_stable_and_then_falls_by_equal_steps_to_its_share_at_the_last():
    found = rates(20, schedule="wsd", decay_share=0.25)
    assert found[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert set(found[3:15]) == {0.5}
    assert found[15:] == pytest.approx([0.41, 0.32, 0.23, 0.14, 0.05])


def test_wsd_may_decay_all_the_way_and_beyond_the_end_it_stays():
    assert rates(5, schedule="wsd", decay_share=1.0, warmup_steps=0) == pytest.approx([0.41, 0.32, 0.23, 0.14, 0.05])
    assert rates(3, schedule="wsd", decay_share=0.01, warmup_steps=0) == pytest.approx([0.5, 0.5, 0.05])
    config = TrainConfig(learning_rate=0.5, warmup_steps=0, schedule="wsd")
    assert learning_rate(config, 500, 20) == pytest.approx(0.05)
