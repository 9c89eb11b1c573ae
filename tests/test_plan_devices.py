"""`faisca plan --devices N`: what one of N devices takes and sends, and the document that says so."""

import importlib
import json
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from small_models import open_twin

from faisca import cli
from faisca.backend import Runtime
from faisca.config import Config
from faisca.config.files import load_preset
from faisca.errors import FaiscaError
from faisca.parameters import count_parameters
from faisca.planning import devices
from faisca.planning.devices import device_plan, largest_rows, on_device, step_traffic
from faisca.planning.links import LINKS, Link, all_gather, all_reduce, reduce_scatter
from faisca.planning.plan import plan

STAGES = ("pretrain", "sft", "grpo")
RUNTIMES = {name: Runtime(name, "cpu", "float32", False) for name in devices.WAYS}
WAYS = [(name, way) for name, ways in devices.WAYS.items() for way in ways]
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SPARK = load_preset("spark")
MODEL = replace(SPARK.model, vocabulary_size=4096)


@pytest.fixture(scope="module")
def scaling_table() -> ModuleType:
    """The script that writes the tables, as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("scaling_table")


def planned(stage: str, name: str, way: str, count: int, config: Config = SPARK) -> devices.StagePlan:
    return device_plan(config, MODEL, RUNTIMES[name], stage, count, way)


# --- what is sent -------------------------------------------------------------------------------


def ring(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """An all-reduce done chunk by chunk: results [N, N], numbers that each process sent [N], and rounds."""
    count = len(values)
    held, sent, rounds = values.copy(), np.zeros(count, int), 0
    for phase in ("add", "copy"):
        for step in range(count - 1):
            before = held.copy()
            for rank in range(count):
                chunk = (rank - step + (phase == "copy")) % count
                to = (rank + 1) % count
                held[to, chunk] = before[rank, chunk] + (before[to, chunk] if phase == "add" else 0)
                sent[rank] += 1
            rounds += 1
    return held, sent, rounds


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_an_all_reduce_sends_what_a_ring_sends(count):
    """Counted by doing it: N chunks of a number each."""
    values = np.random.default_rng(0).integers(0, 100, (count, count))
    found, sent, rounds = ring(values)
    assert (found == values.sum(axis=0)).all()
    traffic = all_reduce(count, size=4 * count)
    assert (4 * sent == traffic.sent).all() and rounds == traffic.messages


def test_the_three_collectives_add_up_and_take_their_time():
    for count in (1, 2, 7):
        half = all_gather(count, 700.0)
        assert half == reduce_scatter(count, 700.0) and all_reduce(count, 700.0) == half + half == half.times(2)
    link = Link("x", bandwidth=100.0, latency=0.5)
    assert all_reduce(4, 1000.0, pieces=3).seconds(link) == pytest.approx(2 * 3 * 3 * 0.5 + 1.5 * 1000 / 100)
    assert all_reduce(1, 1000.0).seconds(link) == 0


def test_sharding_sends_one_and_a_half_times_as_much():
    trained = count_parameters(MODEL)
    averaged = step_traffic(SPARK, "pretrain", 4, "data parallel", "torch", trained)
    sharded = step_traffic(SPARK, "pretrain", 4, "sharded", "torch", trained)
    assert averaged.sent == 2 * 3 / 4 * 4 * trained and averaged.messages == 2 * 3 * math.ceil(4 * trained / 25 / 2**20)
    assert sharded.sent == 1.5 * averaged.sent and sharded.messages == 3 * 3 * (MODEL.num_layers + 1)
    halves = replace(SPARK, pretrain=replace(SPARK.pretrain, micro_batch_size=4))
    assert step_traffic(halves, "pretrain", 4, "sharded", "torch", trained).sent == 2 * sharded.sent


def test_grpo_sends_gradients_of_every_update_and_completions():
    grpo = replace(SPARK.grpo, group_size=8, prompts_per_step=4, minibatch_size=16, epochs=3, max_new_tokens=20)
    config, trained = replace(SPARK, grpo=grpo), 1000
    found = step_traffic(config, "grpo", 2, "data parallel", "torch", trained)
    completions = 32 * (20 * 4 + 20 * 4 + 4)
    assert found.sent == 6 * (4 * trained) + completions / 2
    assert found.messages == 6 * 2 + 3
    sharded = step_traffic(config, "grpo", 2, "sharded", "torch", trained)
    assert sharded.sent == 6 * 1.5 * (4 * trained) + completions / 2 + 4 * trained / 2, "and weights, to sample with"


def test_gradients_in_bfloat16_are_half_as_many_bytes():
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        config = SimpleNamespace(run=SimpleNamespace(reduce_dtype=dtype))
        assert devices.gradient_width(config) == width
    assert devices.gradient_width(SPARK) == 4


def test_completions_are_little_beside_gradients(scaling_table):
    """As docs/scaling.md says."""
    for name in scaling_table.PRESETS:
        config = load_preset(name)
        model = replace(config.model, vocabulary_size=4096)
        count = min(2, config.grpo.minibatch_size)
        gradients = step_traffic(config, "grpo", count, "data parallel", "torch", count_parameters(model))
        assert devices.rollout_gather(config, count).sent < gradients.sent / 1000, name


# --- what it takes ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_one_device_takes_what_the_plan_has(name, way, stage):
    assert planned(stage, name, way, 1).moments == plan(SPARK, MODEL, RUNTIMES[name], stage).moments
    assert step_traffic(SPARK, stage, 1, way, name, 1000).sent == 0


@pytest.mark.parametrize("stage", STAGES)
def test_data_parallel_adds_buckets_to_the_plan_of_its_rows(stage):
    own = on_device(SPARK, stage, 2)
    gradients = 4 * count_parameters(MODEL)
    for name in devices.WAYS:
        alone, one = plan(own, MODEL, RUNTIMES[name], stage).moments, planned(stage, name, "data parallel", 2).moments
        if name == "torch":
            left = {moment: gradients - parts.get("gradients", 0) for moment, parts in alone.items()}
            assert one == {moment: {**parts, "buckets": max(0, left[moment])} for moment, parts in alone.items()}
            assert min(left.values()) <= 0 < max(left.values())
        else:
            assert one["average"]["gradients"] == one["average"]["buckets"] == gradients
            assert {moment: one[moment] for moment in alone} == alone


@pytest.mark.parametrize("stage", STAGES)
def test_sharding_divides_what_is_trained_and_gathers_two_blocks(stage):
    alone = plan(on_device(SPARK, stage, 4), MODEL, RUNTIMES["torch"], stage).moments
    shards = planned(stage, "torch", "sharded", 4).moments
    block, outside = devices.block_bytes(MODEL)
    assert outside + MODEL.num_layers * block == 4 * count_parameters(MODEL)
    for moment, parts in shards.items():
        for part in ("parameters", "optimiser"):
            assert parts[part] == alone[moment][part] / 4
        for part in set(alone[moment]) - {"parameters", "optimiser", "gradients"}:
            assert parts[part] == alone[moment][part], part
        assert parts["gathered"] == (4 * count_parameters(MODEL) if moment == "sampling" else outside + 2 * block)
        gradients, before = parts.get("gradients", 0), alone[moment].get("gradients", 0)
        assert before / 4 <= gradients <= before
    rest = alone["first block"]["gradients"] - block - outside
    assert shards["first block"]["gradients"] == pytest.approx(block + outside + rest / 4)


def test_more_devices_take_less_each_but_not_in_proportion():
    config = replace(SPARK, pretrain=replace(SPARK.pretrain, batch_size=64, micro_batch_size=8))
    totals = [planned("pretrain", "torch", "sharded", count, config).total for count in (2, 4, 8)]
    assert totals[0] > totals[1] > totals[2] > totals[0] * 2 / 8


def test_rows_that_cannot_be_shared_are_refused():
    for stage, count, said in (
        (
            "pretrain",
            5,
            "pretrain.batch_size 32 cannot be shared by 5 devices: use a multiple, or 1, 2, 4, 8, 16, 32 dev",
        ),
        ("grpo", 8, "grpo.minibatch_size 12 cannot be shared by 8 devices"),
    ):
        with pytest.raises(FaiscaError, match=said):
            on_device(SPARK, stage, count)
    config = replace(SPARK, pretrain=replace(SPARK.pretrain, batch_size=48, micro_batch_size=16))
    with pytest.raises(FaiscaError, match="micro_batch_size 16 does not divide the 24 rows that each of 2 devices has"):
        on_device(config, "pretrain", 2)
    assert on_device(config, "pretrain", 6).pretrain.micro_batch_size == 8, "a share smaller than a micro-batch is one"


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_the_most_rows_of_a_device_are_the_most_that_fit(name, way):
    half = planned("pretrain", name, way, 2).total - 1
    rows = largest_rows(SPARK, MODEL, RUNTIMES[name], "pretrain", 2, way, half)
    assert rows is not None and rows < 16
    fits = [
        planned("pretrain", name, way, 2, replace(SPARK, pretrain=replace(SPARK.pretrain, micro_batch_size=each))).total
        for each in (rows, 2 * rows)
    ]
    assert fits[0] <= half < fits[1]
    assert largest_rows(SPARK, MODEL, RUNTIMES[name], "pretrain", 2, way, 1) is None


# --- the command --------------------------------------------------------------------------------


def printed(line: str, capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(shlex.split(line)) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def test_the_command_says_bytes_seconds_and_shares(capsys):
    open_twin("torch")
    line = "plan --preset spark --device cpu --backend torch --devices 4 --tokens-per-second 1000 --memory 1"
    found = json.loads(printed(f"{line} --bandwidth 0.01 --latency 100 --json", capsys))
    trained, ways = found["parameters"], {(each["stage"], each["way"]): each for each in found["ways"]}
    assert len(ways) == 6 and found["devices"] == 4
    one = ways["pretrain", "data parallel"]
    assert one["sent_bytes"] == 6 * trained and one["rows"] == 8 and one["fits"]
    assert one["total_bytes"] == pytest.approx(sum(one["bytes"].values()), abs=9)
    (link,) = one["links"].values()
    seconds, computing = one["messages"] * 1e-4 + 6 * trained / 1e7, 32 * SPARK.data.window / 4 / 1000
    assert link["seconds"] == pytest.approx(seconds)
    assert link["share"] == pytest.approx(seconds / (seconds + computing))
    left = max(0, seconds - 2 / 3 * computing)
    assert link["share_overlapped"] == pytest.approx(left / (left + computing))
    assert ways["grpo", "sharded"]["links"]["this link"]["share"] is None
    table = printed(line, capsys)
    assert all(link.name in table for link in LINKS) and "gathered" in table and "buckets" in table


def test_of_an_adapter_only_its_gradients_are_sent(capsys):
    open_twin("torch")
    line = "plan --preset spark --device cpu --backend torch --devices 2 --sft.lora-rank 4 --sft.lora-targets all"
    found = {(each["stage"], each["way"]): each for each in json.loads(printed(f"{line} --json", capsys))["ways"]}
    whole, adapter = (found[stage, "data parallel"]["sent_bytes"] for stage in ("pretrain", "sft"))
    width, hidden = SPARK.model.dim, SPARK.model.hidden_dim
    a_block = 4 * (2 * width) * 4 + 2 * 4 * (width + hidden)  # query, key, value, output; up, down
    assert adapter == 4 * SPARK.model.num_layers * a_block < whole / 20


def test_mlx_has_no_sharded_way(capsys):
    open_twin("mlx")
    line = "plan --preset spark --device cpu --backend mlx --devices 2 --memory 0.01"
    found = json.loads(printed(f"{line} --json", capsys))
    assert {each["way"] for each in found["ways"]} == {"data parallel"} and not found["ways"][0]["fits"]
    assert "pretrain, data parallel, does not fit 2 devices" in printed(line, capsys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--devices 0", "--devices 0 is out of range"),
        ("--devices 5", "pretrain.batch_size 32 cannot be shared by 5 devices"),
        ("--bandwidth 5 --latency 1", "add --devices N"),
        ("--devices 2 --bandwidth 5", "needs both"),
        ("--devices 2 --bandwidth 0 --latency 1", "--bandwidth 0.0 is out of range"),
        ("--devices 2 --bandwidth 5 --latency -1", "--latency -1.0 is out of range"),
        ("--devices 2 --hours 1 --tokens-per-second 5", "--hours does not go with --devices"),
    ],
)
def test_what_means_nothing_is_refused_in_a_line(line, said, capsys):
    open_twin("torch")
    error = printed(f"plan --preset spark --backend torch --device cpu {line}", capsys, 2)
    assert error.startswith("faisca: ") and error.count("\n") == 1 and said in error


# --- docs/scaling.md ----------------------------------------------------------------------------


def test_the_page_has_what_is_planned_now(scaling_table):
    found = scaling_table.PAGE.read_text(encoding="utf-8")
    assert scaling_table.page(found) == found, "run python benchmarks/scaling_table.py"
    assert count_parameters(scaling_table.SMOLLM2_360M) == 361_821_120


def test_the_pages_lines_are_short_and_nothing_is_left_to_fill_in(scaling_table):
    lines = scaling_table.PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 140 and not line.startswith(("|", "!"))] == []
    assert not any(word in line for line in lines for word in ("TODO", "TBD", "XXX"))
    headings = [line for line in lines if line.startswith("## ")]
    for heading in ("## What is communicated", "## What fits: plan", "## Simulated: up to 1,024 ranks"):
        assert heading in headings
