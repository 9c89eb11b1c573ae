"""The benchmark: what it counts, that it times the same work for all, and that results can be compared."""

import contextlib
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from small_models import TWINS

from faisca.bench import machine, worker
from faisca.bench.command import bench
from faisca.bench.results import TITLES, merge, read_results, rows, summarise
from faisca.bench.twin import Twin
from faisca.bench.work import CASES, HEADLINE_TOKENS, make_work, training_flops, training_products, training_tokens
from faisca.cli import main
from faisca.config import RunConfig
from faisca.errors import FaiscaError
from faisca.parameters import check_parameters, count_parameters

TINY = make_work("tiny", quick=False)
MEASURED = "pretrain,rollout,generate_1,peak,products,fresh,data"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[Path, str]:
    """A real benchmark of both twins and the reference, and what it printed."""
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path_factory.mktemp("bench") / "mine.json"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        options = ["--preset", "tiny", "--quick", "--rounds", "2", "--cases", MEASURED]
        assert bench([*options, "--peers", "reference", "--json", str(path)]) == 0
    return path, printed.getvalue()


# --- the work -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["tiny", "spark", "faisca", "apple"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_preset_has_a_work_that_fits_its_model(preset, quick):
    work = make_work(preset, quick=quick)
    inputs, targets = work.batch("pretrain")
    assert inputs.shape == targets.shape == (work.config.pretrain.batch_size, work.config.data.window)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1]) and inputs.max() < work.model.vocabulary_size
    assert len(work.prompts(1)[0]) + work.config.grpo.max_new_tokens <= work.model.context
    assert work.completions % work.config.grpo.minibatch_size == 0
    json.dumps(work.describe())


def test_quick_is_less_work_of_the_same_model():
    full, quick = make_work("faisca", quick=False), make_work("faisca", quick=True)
    assert full.model == quick.model and full.model.vocabulary_size == 50257
    assert training_tokens(quick, "pretrain") < training_tokens(full, "pretrain") == 64 * 256


def test_flops_are_six_a_weight_and_token_and_attention():
    tables = (TINY.model.vocabulary_size + TINY.model.context) * TINY.model.dim
    vectors = 2 * TINY.model.num_layers * 2 * TINY.model.dim + 2 * TINY.model.dim
    vectors += TINY.model.num_layers * (TINY.model.hidden_dim + TINY.model.dim)
    matrices = count_parameters(TINY.model) - tables - vectors
    attention = 12 * TINY.model.num_layers * TINY.config.data.window * TINY.model.dim
    assert training_flops(TINY) == 8 * 32 * (6 * matrices + attention)


def test_the_products_of_a_step_add_up_to_its_flops():
    for chunk in (7, 64, 10_000):
        counted = sum(2 * batch * m * k * n for batch, m, k, n in training_products(TINY, chunk))
        assert counted == training_flops(TINY)


@pytest.mark.parametrize("twin", TWINS)
def test_rows_end_or_never_do_as_the_case_wants(twin):
    pytest.importorskip({"torch": "torch", "mlx": "mlx.core"}[twin])
    grpo = replace(TINY.config.grpo, group_size=64, minibatch_size=64, max_new_tokens=28)
    work = replace(TINY, config=replace(TINY.config, grpo=grpo))
    subject = Twin(twin, work, RunConfig(device="cpu"))
    full = subject._roll_out(subject._model()).completions
    assert {len(row) for row in full} == {28}
    ending = subject._roll_out(subject._model(rows_end=True)).completions
    share = np.mean([ids[-1] == work.end_of_text for ids in ending])
    assert share == pytest.approx(1 - (1 - 1 / HEADLINE_TOKENS) ** 28, abs=0.05)  # measured: 0.019


def test_weights_fit_the_model_tied_or_not():
    for tied in (False, True):
        work = replace(TINY, model=replace(TINY.model, tie_embeddings=tied))
        check_parameters(work.parameters(rows_end=True), work.model)


# --- numbers ------------------------------------------------------------------------------------


def test_medians_spread_and_what_follows_from_them():
    seconds = {"pretrain": [2.0, 1.0, 4.0], "peak": [0.5], "products": [1.0], "grpo_full": [3.0]}
    measured = summarise(TINY, seconds)
    tokens = training_tokens(TINY, "pretrain")
    assert (measured["pretrain"]["low"], measured["pretrain"]["median"]) == (tokens / 4, tokens / 2)
    assert measured["grpo_full"]["median"] == 3.0
    assert measured["products_share"]["median"] == 50.0
    peak = CASES["peak"].value(TINY, 0.5)
    assert measured["utilisation"]["median"] == pytest.approx(100 * training_flops(TINY) / 2 / peak)


def test_a_ratio_says_how_many_times_better():
    columns = {
        "slow": {"pretrain": {"median": 10.0}, "first_step": {"median": 4.0}, "peak_resident": {"median": 100}},
        "good": {"pretrain": {"median": 30.0}, "first_step": {"median": 1.0}, "peak_resident": {"median": 50}},
    }
    ratios = {row.key: row.ratio("good", "slow") for row in rows(columns)}
    assert ratios == {"pretrain": 3.0, "first_step": 4.0, "peak_resident": 2.0}


def test_the_table_keeps_the_order_of_its_titles():
    keys = [row.key for row in rows({"a": {key: {"median": 1.0} for key in reversed(TITLES)}})]
    assert keys == list(TITLES)


# --- the command --------------------------------------------------------------------------------


def test_a_benchmark_measures_both_twins_and_a_baseline(results):
    path, printed = results
    found = read_results(path)
    assert list(found["subjects"]) == ["torch", "mlx", "reference"]
    for name, subject in found["subjects"].items():
        measured = subject["measured"]
        assert len(measured["pretrain"]["rounds"]) == 2 and measured["rollout"]["median"] > 0, name
        assert measured["peak_resident"]["median"] > 10_000_000
        assert measured["pretrain"]["low"] <= measured["pretrain"]["median"] <= measured["pretrain"]["high"]
    assert found["subjects"]["torch"]["measured"]["utilisation"]["median"] > 0
    assert found["data_preparation"]["titles_per_second"] > 0
    assert {"processor", "cores", "power", "versions", "load_average"} <= found["machine"].keys()
    assert "blas" in found["subjects"]["mlx"]["computed_with"]
    assert "pre-training step (tokens/s)" in printed and "×" in printed
    assert imread(path.with_suffix(".png")).std() > 0


def test_results_side_by_side(results, tmp_path, capsys):
    path, _ = results
    yours = tmp_path / "yours.json"
    yours.write_bytes(path.read_bytes())
    assert bench(["compare", str(path), str(yours)]) == 0
    printed = capsys.readouterr().out
    assert "mine torch" in printed and "yours reference" in printed and "1.00×" in printed
    assert bench(["compare", str(path), str(yours), "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == merge([path, yours]).keys()


def test_other_work_is_not_compared(results, tmp_path):
    path, _ = results
    found = read_results(path)
    found["work"]["pretrain"]["batch_size"] = 1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(found))
    with pytest.raises(FaiscaError, match=r"other work .* work\.pretrain\.batch_size is 1, not 8"):
        merge([path, other])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "none"], "none"),
        (["--rounds", "0"], "--rounds 0 is out of range"),
        (["--cases", "speed"], "--cases 'speed' is unknown: choose among pretrain"),
        (["--peers", "nobody"], "peer 'nobody' is unknown: choose among mlx_lm, naive_mlx, nanogpt, reference"),
        (["--backends", "jax"], "backend 'jax' is unknown"),
        (["compare"], "needs results|is missing"),
        (["compare", "absent.json"], "absent.json cannot be read"),
        (["compare", __file__], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(options, message, capsys):
    assert main(["bench", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("faisca: ")
    assert re.search(message, line), line


def test_a_baseline_with_another_loss_is_not_timed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    source = (worker.BASELINES / "reference.py").read_text(encoding="utf-8")
    wrong = source.replace("x = x + self.dropout(self.attention", "x = x - self.dropout(self.attention")
    assert wrong != source
    (tmp_path / "reference.py").write_text(wrong, encoding="utf-8")
    monkeypatch.setattr(worker, "BASELINES", tmp_path)
    options = ["--preset", "tiny", "--quick", "--backends", "torch", "--peers", "reference", "--cases", "peak"]
    assert main(["bench", *options, "--json", str(tmp_path / "x.json")]) == 1
    assert "reference computes a loss of" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


# --- the machine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "power"),
    [
        ({}, "unknown"),
        ({"AC/online": "1"}, "mains"),
        ({"AC/online": "0"}, "battery"),
        ({"BAT0/status": "Discharging"}, "battery"),
    ],
)
def test_the_power_source(files, power, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "POWER_SUPPLIES", tmp_path)
    monkeypatch.setattr(machine.sys, "platform", "linux")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f"{text}\n")
    assert machine._power_source() == power


def test_the_machine_is_described_without_naming_its_user():
    described = json.dumps(machine.describe_machine())
    assert os.uname().nodename not in described and str(Path.home()) not in described
