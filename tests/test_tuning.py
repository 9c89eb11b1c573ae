"""`faisca plan` and `faisca tune`: what they say, what they refuse, and that what is tuned learns the same."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_models import TWINS, open_twin, read_lines

from faisca import cli
from faisca.backend import load_backend
from faisca.config.files import load_preset, preset_sections, read_sections
from faisca.parameters import count_parameters
from faisca.training import stages
from faisca.tuning import search as searching
from faisca.tuning import trial as trying
from faisca.tuning.command import tuned_text
from faisca.tuning.knobs import knobs
from faisca.tuning.opening import open_config
from faisca.tuning.search import Search, duel
from faisca.tuning.trial import Trial, difference

pytestmark = pytest.mark.xdist_group("tuning")
ROOT = Path(__file__).parent.parent
HERE = "--preset tiny --device cpu --backend torch"


def printed(line: str, capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(shlex.split(line)) == status, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


# --- plan ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWINS)
def test_plan_tells_parts_that_add_up(name, capsys):
    open_twin(name)
    found = json.loads(printed(f"plan --preset faisca --device cpu --backend {name} --json --memory 100", capsys))
    assert found["parameters"] == 13_689_856 and [stage["stage"] for stage in found["stages"]] == list(
        load_preset("faisca").run.stages
    )
    for stage in found["stages"]:
        assert stage["total_bytes"] == pytest.approx(sum(stage["bytes"].values()), abs=9)
        assert stage["total_bytes"] == pytest.approx(max(stage["moments"].values()), abs=9)
        assert stage["bytes"]["parameters"] == 4 * 13_689_856 and stage["bytes"]["optimiser"] == 8 * 13_689_856
        assert stage["fits"] and stage["largest_rows"] in (12, 64) and stage["remedy"] is None
    assert found["stages"][2]["bytes"]["reference"] == 4 * 13_689_856


def test_plan_takes_the_options_of_run_and_a_speed(capsys):
    open_twin("torch")
    line = f"plan {HERE} --model.dim 64 --pretrain.max-steps 10 --pretrain.batch-size 4 --tokens-per-second 64 --json"
    found = json.loads(printed(line, capsys))
    pretrain = found["stages"][0]
    assert pretrain["tokens_per_step"] == 4 * 32 and pretrain["seconds_per_step"] == 2 and pretrain["seconds"] == 20
    assert pretrain["bytes"]["parameters"] == 4 * found["parameters"]
    assert found["stages"][2]["seconds"] is None  # a rollout has another speed, which is not guessed
    table = printed(line.replace(" --json", ""), capsys)
    assert "most rows that fit" in table and "0:00:20" not in table and "20.00" in table


def test_plan_says_what_does_not_fit_and_what_would(capsys):
    open_twin("torch")
    table = printed("plan --preset faisca --device cpu --backend torch --memory 0.5", capsys)
    assert "pretrain does not fit" in table and "try --pretrain.micro-batch-size" in table
    table = printed("plan --preset faisca --device cpu --backend torch --memory 0.1", capsys)
    assert "nothing makes it fit" in table and "none" in table


def test_plan_takes_the_speed_of_a_bench_file(tmp_path, capsys, monkeypatch):
    open_twin("torch")
    monkeypatch.chdir(tmp_path)
    model = {name: getattr(load_preset("tiny").model, name) for name in ("dim", "num_layers", "hidden_dim", "context")}
    results = json.loads((ROOT / "benchmarks" / "results" / "faisca-cpu.json").read_text())
    results["work"]["model"] |= model
    results["subjects"] = {"torch": results["subjects"]["torch"]}
    results["subjects"]["torch"]["measured"]["pretrain"]["median"] = 128.0
    Path("b.json").write_text(json.dumps(results))
    found = json.loads(printed(f"plan {HERE} --bench b.json --json", capsys))
    assert found["stages"][0]["seconds_per_step"] == 8 * 32 / 128
    assert "model.dim is 32, not 64" in printed(f"plan {HERE} --bench b.json --model.dim 64", capsys, 2)
    assert "no pre-training step of mlx" in printed("plan --preset tiny --backend mlx --bench b.json", capsys, 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plan --memory 0", "--memory 0.0 is out of range"),
        ("plan --memory x", "--memory 'x' is not a number"),
        ("plan --tokens-per-second -1", "--tokens-per-second -1.0 is out of range"),
        ("plan --tokens-per-second 5 --bench b.json", "--tokens-per-second does not go with --bench"),
        ("plan --bench nowhere.json", "nowhere.json cannot be read"),
        ("plan --memry 3", "option --memry is unknown: did you mean --memory?"),
        ("plan --out x", "option --out is unknown"),
        ("plan --model.dim 130 --model.num-heads 4", "model.dim 130 is not divisible"),
        ("tune --minutes 0", "--minutes 0.0 is out of range"),
        ("tune --preset tiny --memory 0.0001 --backend torch", "pretrain does not fit 100 kB: nothing makes it fit"),
        ("tune --resume x", "option --resume is unknown"),
    ],
)
def test_a_mistake_is_one_line(line, said, capsys):
    open_twin("torch")
    error = printed(line, capsys, 2)
    assert said in error and error.startswith("faisca: ") and error.count("\n") == 1


# --- a run that does not fit --------------------------------------------------------------------


def test_a_run_says_where_its_plan_exceeds_the_memory(tmp_path, monkeypatch, capsys):
    open_twin("torch")
    monkeypatch.setattr("faisca.planning.fit.physical_memory", lambda: 300_000)
    monkeypatch.setattr(stages, "_run_stages", lambda run, *_: None)
    steps = "--pretrain.max-steps 1 --stages pretrain"
    assert cli.main(shlex.split(f"run {HERE} {steps} --out {tmp_path}/run")) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "memory: pretrain needs" in line]
    assert "cpu may use 300 kB" in line and "nothing makes it fit" in line


# --- tune ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWINS)
def test_what_is_tuned_learns_the_same(name, tmp_path, capsys):
    """The file loads alone and over its preset; the run with it has the losses of the run without."""
    open_twin(name)
    out, cpu = tmp_path / "tuned.toml", f"--preset tiny --device cpu --backend {name}"
    found = json.loads(printed(f"tune {cpu} --minutes 0.1 --out {out} --json", capsys))
    assert found["results"] and all(result["verdict"] for result in found["results"])
    assert found["results"][0]["seconds"] or "no time" in found["results"][0]["verdict"]
    losses = []
    for i, how in enumerate((cpu, f"--config {out}", f"--preset tiny --config {out}")):
        folder = tmp_path / str(i)
        assert cli.main(shlex.split(f"run {how} --stages pretrain --out {folder}")) == 0
        losses.append([line["loss"] for line in read_lines(folder / "metrics.jsonl") if "loss" in line])
    assert len(losses[0]) == 6
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-2 if "bfloat16" in out.read_text() else 1e-5)


def test_the_file_has_what_differs_from_the_preset(tmp_path):
    config = load_preset("tiny")
    config = replace(config, run=replace(config.run, loss_chunk=64, gradient_checkpointing=True))
    path = tmp_path / "tuned.toml"
    path.write_text(tuned_text(config))
    assert path.read_text().count("=") == 3  # preset, and two settings
    assert read_sections(path)["run"] == config.run
    assert read_sections(path, preset_sections("tiny"))["run"] == config.run


def opened_tiny(memory_gb: float | None = None, **run: object):
    open_twin("torch")
    config = load_preset("tiny")
    return open_config(replace(config, run=replace(config.run, backend="torch", device="cpu", **run)), memory_gb)


def test_nothing_above_the_memory_is_tried(monkeypatch):
    opened = opened_tiny()
    most = Trial(opened, opened.config).planned + 12 * count_parameters(opened.model)
    planned = []
    ready = Trial.case
    monkeypatch.setattr(Trial, "case", lambda self, *given: (planned.append(self.planned), ready(self, *given))[1])
    memory = 0.6 * most
    search = Search(opened_tiny(memory / 1e9), 20)
    search.run(lambda words, done: None)
    assert planned and max(planned) <= memory
    assert all(result.planned <= memory for result in search.results)
    assert any(result.verdict.startswith("not tried: beside the other it would take") for result in search.results)


def test_a_setting_that_computes_another_loss_is_refused(monkeypatch):
    opened = opened_tiny()
    start = Trial(opened, opened.config)
    chunked = replace(opened.config, run=replace(opened.config.run, loss_chunk=7))
    assert difference(replace(start, config=chunked), start.computed("step"), "step") == ""
    search = Search(opened, 20)
    numbers = Trial.step_numbers

    def wrong(self: Trial) -> np.ndarray:
        return numbers(self) * np.array([1.0 if self.config == search.start else 1.001, 1.0])

    monkeypatch.setattr(Trial, "step_numbers", wrong)
    search.run(lambda words, done: None)
    steps = [r for r in search.results if "rollout" not in r.option and r.value != "–" and r.value != "bfloat16"]
    assert steps and all(result.verdict == "refused: loss differs by 1.0e-03, more than 1e-05" for result in steps)
    assert search.best.config.run == opened.config.run


def test_bfloat16_has_tolerances_of_its_own(monkeypatch):
    opened = opened_tiny()
    start = Trial(opened, opened.config)
    narrow = replace(start, config=replace(opened.config, run=replace(opened.config.run, dtype="bfloat16")))
    assert difference(narrow, start.computed("step"), "step") == ""
    monkeypatch.setattr(trying, "BFLOAT16_NORM_TOLERANCE", 1e-9)
    assert "gradient norm differs" in difference(narrow, start.computed("step"), "step")


def timing(*seconds: float):
    turns = iter(seconds)
    return lambda: next(turns)


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        ((1, 1.0, 1.0, 1.0), (1, 0.9, 0.9, 0.9), True),
        ((1, 1.0, 1.0, 1.0), (1, 0.99, 0.99, 0.99), False),  # less than the least gain
        ((1, 1.0, 1.3, 0.9), (1, 0.9, 0.9, 0.9), False),  # less than the noise of the one
        ((1, 1.0, 1.0, 1.0), (1, 0.7, 0.9, 1.1), False),  # or of the other
        ((1, 1.0), (1, 1.4), False),  # hopeless: not timed again
    ],
)
def test_a_challenger_wins_by_more_than_the_noise(before, after, taken):
    assert duel(timing(*before), timing(*after)).taken is taken


def test_time_that_is_up_is_said(monkeypatch):
    search = Search(opened_tiny(), 20)
    search.deadline = 0
    before = search.best
    search.run(lambda words, done: None)
    assert search.best == before
    measured = [result for result in search.results if result.value != "–"]
    assert measured and all(result.verdict.startswith("not measured: no time") for result in measured)
    assert searching.FEWEST >= 2


def test_knobs_are_those_of_the_stages():
    config = load_preset("tiny")
    only = [knob.options for knob in knobs(replace(config, run=replace(config.run, stages=("grpo",))))]
    assert only == [("grpo.rollout_batch",)]
    assert len(list(knobs(config))) == 7


@pytest.mark.parametrize("name", TWINS)
def test_completions_do_not_depend_on_how_many_are_sampled_at_a_time(name):
    open_twin(name)
    config = load_preset("tiny")
    opened = open_config(replace(config, run=replace(config.run, backend=name, device="cpu")), None)
    found = [
        Trial(opened, replace(config, grpo=replace(config.grpo, rollout_batch=size))).rollout_tokens()
        for size in (0, 1, 3)
    ]
    assert found[0] == found[1] == found[2] and len(found[0]) == 4
    assert load_backend(name) is opened.backend
