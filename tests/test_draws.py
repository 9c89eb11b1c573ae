"""Every random number that crosses the boundary in a run: none is used twice, and the run's seed decides all.

Two runs of three stages, of one seed and of another, with a note of every call that brings random
numbers to the twin: orders of windows and completions, seeds of dropout, uniform numbers.
"""

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from setups import small_setup
from small_models import open_twin
from small_runs import start, write_material
from stand_in import StandIn

from faisca.backend import Rollouts
from faisca.config import GRPOConfig, RunConfig
from faisca.training.grpo_update import update_policy

pytestmark = pytest.mark.xdist_group("draws")
SEEDS = (1337, 7)
SHOWN, COUNTED, GROUP = 3, 10, 8
OPTIONS = f"""
    --pretrain.max-titles 250 --sft.max-titles 250
    --pretrain.max-steps 0 --pretrain.epochs 2 --pretrain.evaluate-every 0
    --sft.max-steps 0 --sft.epochs 2 --sft.evaluate-every 0 --sft.batch-size 16 --sft.url-contains .
    --sample.count {SHOWN} --sample.counted {COUNTED} --grpo.group-size {GROUP} --grpo.minibatch-size 4
"""
NOTED = ("train_step", "generate", "grpo_step")


def noted_run(material: Path, folder: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The arguments of the twin's calls, by function, in order."""
    twin, notes = open_twin("torch"), defaultdict(list)

    def noting(name: str) -> Any:
        original = getattr(twin, name)

        def call(**values: Any) -> Any:
            notes[name].append(values)
            return original(**values)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in NOTED:
            patch.setattr(twin, name, noting(name))
        start(material, folder, "torch", *OPTIONS.split(), "--seed", str(seed))
    return notes


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[dict[str, list[dict[str, Any]]]]:
    open_twin("torch")
    folder = tmp_path_factory.mktemp("draws")
    material = write_material(folder)
    return [noted_run(material, folder / str(seed), seed) for seed in SEEDS]


def rows_drawn(run: dict[str, list[dict[str, Any]]], rows: int) -> list[list[tuple[float, ...]]]:
    """The first numbers of each row, of the calls of so many rows: by them, streams are told apart."""
    return [[tuple(row[:4].tolist()) for row in c["uniforms"]] for c in run["generate"] if len(c["uniforms"]) == rows]


def test_the_kinds_of_calls_can_be_told_apart(runs):
    for run in runs:
        shown, rollouts, counted = (rows_drawn(run, rows) for rows in (SHOWN, GROUP, COUNTED))
        assert len(shown) + len(rollouts) + len(counted) == len(run["generate"])
        assert len(rollouts) == 4 and len(counted) >= 4 and len(shown) >= 6


def test_no_two_steps_share_a_seed_of_dropout(runs):
    """In no stage, and not with another seed."""
    seeds = [step["dropout_seed"] for run in runs for step in run["train_step"]]
    assert len(seeds) == len(set(seeds)) > 30


def test_rollouts_use_no_number_twice(runs):
    """In no row, step or run; nor one that a sample or a count has used."""
    rolled = [row for run in runs for call in rows_drawn(run, GROUP) for row in call]
    assert len(rolled) == len(set(rolled)) == 2 * 4 * GROUP
    others = {row for run in runs for rows in (SHOWN, COUNTED) for call in rows_drawn(run, rows) for row in call}
    assert not others & set(rolled)


def test_counts_use_the_same_numbers_each_time_and_samples_along_the_way_do_not(runs):
    """So that shares before and after a stage differ by the model, and what is shown does not repeat itself."""
    for run in runs:
        counted, shown = rows_drawn(run, COUNTED), rows_drawn(run, SHOWN)
        assert len(set(map(tuple, counted))) == 1 and len(set(counted[0])) == COUNTED
        assert len(set(map(tuple, shown))) >= 3 and all(len(set(call)) == SHOWN for call in shown)
        assert not {row for call in shown for row in call} & set(counted[0])
    for rows in (COUNTED, SHOWN):
        one, two = ({row for call in rows_drawn(run, rows) for row in call} for run in runs)
        assert not one & two, "the seed decides"


def epochs(run: dict[str, list[dict[str, Any]]]) -> list[list[bytes]]:
    """The windows of the two epochs of both stages, in the order in which they were trained on."""
    steps = [step["inputs"] for step in run["train_step"]]
    size, rest = divmod(len(steps), 4)
    assert size > 3 and rest == 0
    return [[row.tobytes() for inputs in steps[i * size : (i + 1) * size] for row in inputs] for i in range(4)]


def agreement(one: list[Any], two: list[Any]) -> float:
    """The share of places at which two orders have the same."""
    return sum(a == b for a, b in zip(one, two, strict=False)) / min(len(one), len(two))


def test_each_epoch_stage_and_run_has_an_order_of_its_own(runs):
    """Titles are shuffled for each stage, so its orders are compared by where the second epoch has the first one's."""
    moves = []
    for run in runs:
        first, second, *others = epochs(run)
        for one, two in ((first, second), others):
            assert len(set(one) & set(two)) > 0.7 * len(one), "an epoch takes the same windows again"
            assert agreement(one, two) < 0.1
            places = {window: place for place, window in enumerate(two)}
            moves.append([places.get(window, -1 - i) for i, window in enumerate(one)])
        assert agreement(first, others[0]) < 0.1
    for one, two in itertools.combinations(moves, 2):
        assert agreement(one, two) < 0.1


def test_each_pass_over_completions_has_an_order_of_its_own():
    """In every epoch of every step, and with every seed."""
    grpo, orders = GRPOConfig(group_size=16, minibatch_size=4, epochs=3), []
    mask = np.ones((16, 1), np.float32)
    rollouts = Rollouts(np.zeros((16, 2), np.int32), mask, np.arange(16, dtype=np.float32), mask, mask, 16.0)

    class Noting(StandIn):
        def grpo_step(self, *, learner, rollouts, config, learning_rate, dropout_seed):
            orders.append(tuple(rollouts.advantages))
            return {}

    for seed in SEEDS:
        setup = small_setup(Noting(), sections={"grpo": grpo, "run": RunConfig(seed=seed)})
        for step in range(4):
            update_policy(setup, None, rollouts, step, 0.1)
    passes = [sum(orders[i : i + 4], ()) for i in range(0, len(orders), 4)]
    assert len(passes) == len(set(passes)) == 2 * 4 * 3
    assert all(sorted(one) == list(range(16)) for one in passes)
