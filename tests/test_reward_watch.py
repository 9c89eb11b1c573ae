"""Warnings of what nobody wanted: each is provoked, with its guard, and healthy runs say nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bandits import WORDS, learn, reward_file
from small_models import TWINS, open_twin

from faisca.config import GRPOConfig
from faisca.rewards.watch import CHECKS, WINDOW, DriftWatch

STEPS = 30
HEALTHY = {
    "entropy": (4.0, 2.0),
    "distinct_share": (1.0, 0.7),
    "repeated_word_share": (0.05, 0.15),
    "keyword_share": (0.02, 0.35),
    "completion_length_mean": (12.0, 18.0),
    "reward_mean": (0.1, 0.95),
}


def records(**changes: tuple[float, float]) -> list[dict[str, Any]]:
    """Measures that go from one value to another along a straight line."""
    lines = {name: np.linspace(*ends, STEPS) for name, ends in (HEALTHY | changes).items()}
    return [{name: float(line[i]) for name, line in lines.items()} for i in range(STEPS)]


def watched(steps: list[dict[str, Any]], past: int = 0) -> tuple[list[str], list[list[str]]]:
    """What was said, and the warnings of each step."""
    watch = DriftWatch(32)
    said, names = [], []
    for i, step in enumerate(steps):
        if past and i == past:
            watch = DriftWatch(32, [one | {"warnings": names[j]} for j, one in enumerate(steps[:past])])
        said += watch.look(step)
        names.append(watch.names)
    return said, names


BAD = {
    "words again and again": ({"repeated_word_share": (0.05, 0.7)}, "keyword spam", "distinct"),
    "keywords only": ({"keyword_share": (0.05, 0.9)}, "keyword spam", "--grpo.kl-weight"),
    "to the cap": ({"completion_length_mean": (10.0, 31.9)}, "length bias", "--grpo.mask-truncated"),
    "to nothing": ({"completion_length_mean": (10.0, 1.0)}, "length bias", "length:LEAST-MOST"),
    "no entropy": ({"entropy": (4.0, 0.1)}, "entropy collapse", "--grpo.temperature"),
    "one text": ({"distinct_share": (1.0, 0.04)}, "entropy collapse", "--grpo.kl-weight"),
}


@pytest.mark.parametrize(("changes", "name", "remedy"), BAD.values(), ids=BAD)
def test_what_goes_wrong_is_said_once_with_its_remedy(changes, name, remedy):
    said, names = watched(records(**changes))
    assert len(said) == 1 and said[0].startswith(f"{name}: ") and remedy in said[0]
    assert names[0] == [] and names[-1] == [name]


def test_healthy_steps_say_nothing():
    assert watched(records()) == ([], [[]] * STEPS)
    assert watched(records(reward_mean=(0.9, 0.1), completion_length_mean=(10.0, 31.9))) == ([], [[]] * STEPS)
    assert watched(records(completion_length_mean=(1.0, 1.0))) == ([], [[]] * STEPS)


def test_few_steps_are_no_trend():
    steps = records(**{name: ends for changes, *_ in BAD.values() for name, ends in changes.items()})
    assert watched([steps[0], steps[-1]] * (WINDOW - 1)) == ([], [[]] * (2 * WINDOW - 2))


def test_measures_that_are_missing_are_no_measure():
    steps = [{"reward_mean": None, "entropy": float("nan")} for _ in range(STEPS)]
    assert watched(steps) == ([], [[]] * STEPS)
    assert set(CHECKS) == {"keyword spam", "length bias", "entropy collapse"}


@pytest.mark.parametrize("past", range(3, STEPS, 4))
def test_a_resumed_run_warns_as_the_unbroken_one(past):
    for changes, *_ in BAD.values():
        assert watched(records(**changes), past) == watched(records(**changes))


def test_a_run_on_the_embedded_headlines_is_healthy():
    """The measures of a whole run of `spark` (torch, seed 1337), as its metrics.jsonl had them."""
    steps = json.loads((Path(__file__).parent / "fixtures" / "healthy_grpo.json").read_text())
    watch = DriftWatch(32)
    assert [watch.look(step) for step in steps] == [[]] * len(steps) and len(steps) == 40


# --- provoked, and prevented --------------------------------------------------------------------

COUNT = "def f(texts):\n    return [t.split().count('vento') for t in texts]\n"
LONG = "def f(texts):\n    return [float(len(t.split())) for t in texts]\n"
SHORT = "def f(texts):\n    return [-float(len(t.split())) for t in texts]\n"
ONCE = {"reward": ("keywords:vento", "distinct", "length:20-40"), "reward_weights": (1.0, 2.0, 2.0)}
PROVOKED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a reward that counts a word": (COUNT, "keyword spam", ONCE),
    "a reward for length": (LONG, "length bias", {"reward": ("FILE", "length:10-25"), "reward_weights": (0.1, 10.0)}),
    "a reward for brevity": (SHORT, "length bias", {"reward": ("FILE", "length:10-25"), "reward_weights": (0.1, 10.0)}),
    "a reward for one word": (COUNT, "entropy collapse", {"kl_weight": 2.0}),
}
"""what provokes it, its name, and the options that prevent it"""


@pytest.mark.parametrize(("body", "name", "guard"), PROVOKED.values(), ids=PROVOKED)
def test_what_a_bad_reward_does_is_seen_and_the_remedy_prevents_it(body, name, guard, tmp_path):
    file = reward_file(tmp_path, body)
    warned = []
    for options in ({"reward": (file,)}, {"reward": (file,)} | guard):
        names = tuple(file if one == "FILE" else one for one in options["reward"])
        common = {"group_size": 32, "minibatch_size": 32, "epochs": 1, "max_new_tokens": 12, "kl_weight": 0.0}
        grpo = GRPOConfig(**common | options | {"reward": names})
        rounds, said = learn(open_twin(TWINS[0]), grpo, steps=50, rate=1e-2, tokenizer=WORDS)
        warned.append([words.partition(":")[0] for words in said])
        assert np.mean([one["reward_mean"] for one in rounds[-5:]]) > rounds[0]["reward_mean"], "it learns all the same"
    assert name in warned[0] and name not in warned[1]
