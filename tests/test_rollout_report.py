"""What people see of a GRPO step: the best and the worst completion, and warnings about rewards that say nothing."""

import json
import math

import numpy as np
import pytest

from faisca.data.prompts import Task
from faisca.rewards.advantages import group_advantages
from faisca.rewards.built_in import football
from faisca.rewards.judge import Scores
from faisca.runs.log import RunLog
from faisca.training.rollout_report import MEANING, Round, Watch, measure_round, missing_signal, notes, state_note

NAN = math.nan


def made(rewards: list[float], answers: list[str] | None = None, **more) -> Round:
    """A step with these rewards, in groups of two."""
    total, n = np.array(rewards, float), len(rewards)
    options = {
        "tasks": [Task("O")] * n,
        "completions": [[1, 2]] * n,
        "answers": answers or [f" {chr(97 + i)}" for i in range(n)],
        "ended": [True] * n,
        "scores": Scores(total, {"mine": total}, {}),
        "advantages": group_advantages(total, 2, "group"),
        "group_size": 2,
        "phrases": [],
    }
    return Round(**options | more)


def test_the_best_and_the_worst():
    measured = measure_round(made([NAN, 2.0, -1.0, 2.0], advantages=np.array([0.0, 0.5, -1.0, 0.5])), [])
    assert measured["best"] == {"text": "O b", "reward": 2.0, "advantage": 0.5}
    assert measured["worst"] == {"text": "O c", "reward": -1.0, "advantage": -1.0}
    assert notes(measured["best"], measured["worst"]) == [
        ("best   reward 2.00  advantage +0.50", "O b"),
        ("worst  reward -1.00  advantage -1.00", "O c"),
    ]


@pytest.mark.parametrize(
    ("value", "words"), [(3.0, "all have reward 3.00, as"), (NAN, "no completion could be scored, as")]
)
def test_completions_that_are_all_alike_are_one_note(value, words):
    measured = measure_round(made([value] * 2), [])
    assert notes(measured["best"], measured["worst"]) == [(words, "O a")]


def test_each_reward_and_what_texts_are_like_is_measured():
    scores = Scores(np.array([1.0, 0, 3, 2]), {"a": np.array([1.0, 0, NAN, 2]), "b": np.full(4, NAN)}, {"b": 4})
    answers = ["golo golo golo", "a b", "golo de a", "!"]
    found = measure_round(made([0] * 4, answers, scores=scores, phrases=[football]), [])
    assert (found["reward/a_mean"], found["reward/a_std"]) == (1.0, 1.0)
    assert (found["reward/b_mean"], found["reward/b_std"]) == (None, None)
    assert (found["reward/a_failed"], found["reward/b_failed"]) == (0, 4)
    assert found["repeated_word_share"] == pytest.approx((2 / 3) / 4)
    assert found["keyword_share"] == pytest.approx((1 + 1 / 3) / 4)
    assert found["equal_groups_share"] == 0


def test_a_step_in_two_lines_for_the_terminal():
    measured = {
        "entropy": 2.5,
        "truncated_share": 0.25,
        "ratio_max": None,
        "clip_low_share": 0.001,
        "seconds_update": 2,
    }
    assert state_note(measured) == ("entropy 2.50 · cut 25 %", "clipped low 0.1 % · update 2.0 s")


def test_records_of_completions():
    messages = [{"role": "user", "content": "2 + 2?"}]
    tasks = [Task(messages, {"answer": "4"})] * 2
    step = made([1.0, NAN], tasks=tasks, ended=[True, False])
    rows = step.rows(7)
    assert rows[0] == {
        **{"step": 7, "prompt": messages, "completion": " a", "reward": 1.0, "rewards": {"mine": 1.0}},
        **{"advantage": 0.0, "ended": True, "columns": {"answer": "4"}},
    }
    assert not rows[1]["ended"] and step.shown(0) == "2 + 2? → a"


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


def test_a_row_of_steps_without_a_signal_is_named_once_and_explained_once(tmp_path, capsys):
    with RunLog(tmp_path) as log:
        watch = Watch(32, log)
        for step, flat in enumerate([True, True, False, True, True], start=1):
            assert watch.look(step, made([1.0, 1.0 if flat else 0.0]), {})["warnings"] == []
    problem = "the reward is 1 for every completion"
    said = " ".join(capsys.readouterr().out.split())
    assert said == f"grpo step 1: {problem}: {MEANING} grpo step 4: {problem}"


def test_a_resumed_watch_knows_the_steps_before_it(tmp_path, capsys):
    """Warnings of steps are the same as without a stop, and said once."""
    found = []
    for stop in (30, 12):
        folder = tmp_path / str(stop)
        with RunLog(folder) as log:
            watch = Watch(32, log)
            for step in range(1, 21):
                if step == stop:
                    watch = Watch(32, log, step - 1)
                measured = {"reward_mean": 0.1, "entropy": 3.0 if step < 8 else 0.01}
                log.record(stage="grpo", step=step, **watch.look(step, made([1.0, 0.0]), measured))
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found.append([record["warnings"] for record in records])
        assert capsys.readouterr().out.count("entropy collapse: ") == 1
    assert found[0] == found[1] and found[0][-1] == ["entropy collapse"]
