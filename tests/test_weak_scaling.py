"""The simulation of weak scaling: against messages one by one, closed forms, and what must not get better."""

import importlib
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faisca.planning.links import LINKS, Link, all_reduce

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LINK = Link("x", bandwidth=1e9, latency=1e-3)
LATE = np.random.default_rng(0).random(13)


@pytest.fixture(scope="module")
def weak() -> ModuleType:
    """The script as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("weak_scaling")


@pytest.fixture(scope="module")
def measured(weak) -> dict[str, Any]:
    return json.loads(weak.MEASURED.read_text(encoding="utf-8"))


def work(weak, **changes: Any) -> Any:
    """Three buckets, and no jitter."""
    return replace(weak.Work("x", seconds=0.4, deviation=0.0, gradients=3 * weak.BUCKET), **changes)


# --- a reduction --------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 13])
def test_a_ring_is_as_fast_as_its_messages_one_by_one(weak, ranks):
    times, size = LATE[:ranks], 5e6
    for _ in range(2 * (ranks - 1)):  # a rank's next message waits for its own last one and for its neighbour's
        times = np.maximum(times, np.roll(times, 1)) + LINK.latency + size / ranks / LINK.bandwidth
    assert weak.ring_done(LATE[:ranks], size, LINK) == pytest.approx(times)


@pytest.mark.parametrize("ranks", [1, 2, 3, 13])
@pytest.mark.parametrize("pieces", [1, 5])
def test_a_tree_is_as_fast_as_its_pieces_one_by_one(weak, ranks, pieces):
    size = pieces * weak.PIECE
    a_piece = size / pieces / LINK.bandwidth
    arrived = {rank: [LATE[rank]] * pieces for rank in range(ranks)}  # when a rank has the sum below it
    for rank in range(ranks - 1, 0, -1):
        free = 0.0
        for piece, ready in enumerate(arrived[rank]):
            free = max(free, ready) + a_piece
            parent = arrived[(rank - 1) // 2]
            parent[piece] = max(parent[piece], free + LINK.latency)
    down = {0: [arrived[0][-1]] * pieces}  # the way down begins when the way up is done
    for rank in range(1, ranks):
        free, down[rank] = 0.0, []
        for ready in down[(rank - 1) // 2]:
            free = max(free, ready) + a_piece
            down[rank].append(free + LINK.latency)
    found = weak.tree_done(LATE[:ranks], size, LINK)
    last = [max(times) for times in down.values()]
    assert found[-1] == pytest.approx(last[-1]) and found.max() == pytest.approx(max(last))
    assert found[1:] == pytest.approx(last[1:]), "only the root has it earlier than its link is free"


@pytest.mark.parametrize("ranks", [2, 64])
def test_a_ring_takes_what_the_plan_says(weak, ranks):
    done = weak.ring_done(np.zeros(ranks), 25e6, LINK)
    assert done == pytest.approx(np.full(ranks, all_reduce(ranks, 25e6).seconds(LINK)))


# --- steps --------------------------------------------------------------------------------------


def test_two_ranks_without_jitter_are_the_closed_form(weak):
    here, m = work(weak), weak.BUCKET / LINK.bandwidth
    ring, tree = 2 * LINK.latency + m, 2 * (LINK.latency + m)
    for algorithm, bucket in (("ring", ring), ("tree", tree)):
        after = weak.simulate(here, LINK, weak.Way(algorithm, False), 2)
        assert after == pytest.approx(0.4 + 3 * bucket)
        beside = weak.simulate(here, LINK, weak.Way(algorithm, True), 2)
        assert bucket < 0.4 * 2 / 9 and beside == pytest.approx(0.4 + bucket), "only the last bucket is not hidden"
    slow = replace(LINK, latency=0.2)
    first = 0.4 * (1 / 3 + 2 / 9)
    assert weak.simulate(here, slow, weak.Way("ring", True), 2) == pytest.approx(first + 3 * (0.4 + m))


def test_one_rank_sends_nothing(weak):
    for way in weak.WAYS:
        assert weak.simulate(work(weak), LINK, way, 1) == pytest.approx(0.4)
        assert weak.efficiency(work(weak), LINK, way, 1) == 1


def test_without_jitter_many_ranks_are_the_closed_form(weak):
    ranks, bucket = 256, weak.BUCKET
    ring = 2 * 255 * (LINK.latency + bucket / 256 / LINK.bandwidth)
    assert weak.simulate(work(weak), LINK, weak.Way("ring", False), ranks) == pytest.approx(0.4 + 3 * ring)
    pieces, levels = bucket // weak.PIECE, 8
    tree = 2 * (levels * (LINK.latency + weak.PIECE / LINK.bandwidth) + (pieces - 1) * weak.PIECE / LINK.bandwidth)
    assert weak.simulate(work(weak), LINK, weak.Way("tree", False), ranks) == pytest.approx(0.4 + 3 * tree, rel=1e-3)


def test_where_reductions_cost_nothing_all_wait_for_the_slowest(weak):
    free, here = Link("x", np.inf, 0.0), work(weak, deviation=0.1)
    slowest = np.mean([here.computing(50, step, 0).max() for step in range(weak.STEPS)])
    assert weak.simulate(here, free, weak.WAYS[0], 50) == pytest.approx(slowest)


@pytest.mark.parametrize("deviation", [0.0, 0.08])
def test_nothing_gets_better_with_ranks_latency_or_bytes(weak, deviation):
    here, ranks = work(weak, deviation=deviation), (1, 2, 3, 8, 64, 1024)
    for way in weak.WAYS:
        times = [weak.simulate(here, LINK, way, count) for count in ranks]
        assert all(a <= b for a, b in itertools.pairwise(times)), (way, times)
        worse = (replace(LINK, latency=2e-3), replace(LINK, bandwidth=5e8))
        assert all(weak.simulate(here, link, way, 64) > times[4] for link in worse), way
        more = replace(here, gradients=2 * here.gradients)
        assert weak.simulate(more, LINK, way, 64) > times[4]
    after, beside = (weak.simulate(here, LINK, weak.Way("ring", overlap), 64) for overlap in (False, True))
    assert beside < after
    calm = weak.simulate(replace(here, deviation=deviation / 2), LINK, weak.WAYS[0], 64)
    assert calm < after if deviation else calm == after


def test_times_have_the_measured_mean_and_deviation_and_do_not_depend_on_the_number_of_ranks(weak):
    here = work(weak, deviation=0.1)
    drawn = here.computing(20_000, 3, seed=1)
    assert drawn.mean() == pytest.approx(0.4, rel=0.01) and drawn.std() == pytest.approx(0.1, rel=0.02)
    assert (drawn[:7] == here.computing(7, 3, seed=1)).all() and (drawn[:7] != here.computing(7, 4, seed=1)).all()
    assert drawn.min() > 0


# --- what was measured, and the document --------------------------------------------------------


def test_the_page_is_what_is_simulated_now(weak, measured):
    found = weak.PAGE.read_text(encoding="utf-8")
    assert weak.page(found, measured) == found, "run python benchmarks/weak_scaling.py"
    assert "simulat" in found.lower() and "more than two processes" in found


def test_the_numbers_are_measured_and_a_chart_is_drawn(weak, measured, tmp_path):
    assert measured["step"]["steps"] >= 50 and measured["machine"]["cores"] >= 2
    times = {int(size): seconds for size, seconds in measured["link"]["all_reduce_seconds"].items()}
    link = weak.links(measured)[0]
    for size in (min(times), max(times)):
        assert weak.ring_done(np.zeros(2), size, link)[0] == pytest.approx(times[size], rel=0.01)
    assert [each.name for each in weak.links(measured)[1:]] == [each.name for each in LINKS]
    with Image.open(weak.MEASURED.with_suffix(".png")) as kept:
        assert kept.width > 900
