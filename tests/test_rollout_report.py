"""What people see of a GRPO step: the best and the worst completion, and warnings about rewards that say nothing."""

import math

import numpy as np
import pytest

from faisca.rewards.advantages import group_advantages
from faisca.training.rollout_report import MEANING, SignalWatch, best_and_worst, missing_signal, notes

NAN = math.nan


def test_the_best_and_the_worst():
    found = best_and_worst(list("abcd"), np.array([NAN, 2.0, -1.0, 2.0]), np.array([0.0, 0.5, -1.0, 0.5]))
    assert found["best"] == {"text": "b", "reward": 2.0, "advantage": 0.5}
    assert found["worst"] == {"text": "c", "reward": -1.0, "advantage": -1.0}
    assert notes(**found) == [
        ("best   reward 2.00  advantage +0.50", "b"),
        ("worst  reward -1.00  advantage -1.00", "c"),
    ]


@pytest.mark.parametrize(
    ("value", "words"), [(3.0, "all have reward 3.00, as"), (NAN, "no completion could be scored, as")]
)
def test_completions_that_are_all_alike_are_one_note(value, words):
    found = best_and_worst(list("ab"), np.array([value] * 2), np.zeros(2))
    assert notes(**found) == [(words, "a")]


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [
        ([0, 0, 1, 0], None),
        ([2, 2, 2, 2], "the reward is 2 for every completion"),
        ([1, 1, 0, 0], "rewards differ in no group"),
        ([NAN] * 4, "the reward is NaN for every completion"),
        ([NAN, 1, NAN, NAN], "the reward is 1 for every completion"),
        ([NAN, 1, 0, 1], None),
    ],
)
def test_what_is_no_signal(rewards, problem):
    rewards = np.array(rewards, float)
    assert missing_signal(rewards, group_advantages(rewards, 2, "group")) == problem


def test_a_row_of_steps_without_a_signal_is_named_once_and_explained_once():
    said: list[str] = []
    watch = SignalWatch(said.append)
    for step, flat in enumerate([True, True, False, True, True], start=1):
        rewards = np.array([1.0, 1.0 if flat else 0.0])
        watch.look(step, rewards, group_advantages(rewards, 2, "group"))
    problem = "the reward is 1 for every completion"
    assert said == [f"grpo step 1: {problem}: {MEANING}", f"grpo step 4: {problem}"]
