"""The benchmark: what it counts, that it times the same work for all, and that results can be compared."""

import contextlib
import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console
from small_models import TWINS

from faisca.bench import machine, worker
from faisca.bench.chart import _bars
from faisca.bench.command import bench
from faisca.bench.products import training_flops, training_products
from faisca.bench.results import TITLES, Row, format_value, read_comparable, read_results, rows, summarise
from faisca.bench.table import print_table
from faisca.bench.twin import TwinSubject, later, their_model
from faisca.bench.work import (
    CASES,
    HEADLINE_TOKENS,
    LONG_PROMPT,
    make_work,
    training_tokens,
)
from faisca.cli import main
from faisca.config import RunConfig
from faisca.errors import FaiscaError
from faisca.parameters import check_parameters, count_parameters

ROOT = Path(__file__).parent.parent
TINY = make_work("tiny", quick=False)
LLAMA = replace(
    TINY.model,
    context=LONG_PROMPT + 1,
    num_kv_heads=1,
    norm="rms",
    positions="rope",
    activation="swiglu",
    tie_embeddings=True,
    feed_forward_bias=False,
    initial_range=0.02,
)
"""Llama's layout, with a context that holds a long prompt"""
PACKAGES = {"torch": "torch", "mlx": "mlx.core", "transformers": "transformers", "mlx_lm": "mlx_lm"}
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


@pytest.mark.parametrize("preset", ["tiny", "spark", "faisca", "apple", "modern", "moe"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_preset_has_a_work_that_fits_its_model(preset, quick):
    work = make_work(preset, quick=quick)
    inputs, targets = work.batch()
    assert inputs.shape == targets.shape == (work.config.pretrain.batch_size, work.config.data.window)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1]) and inputs.max() < work.model.vocabulary_size
    assert len(work.prompts(1)[0]) + work.config.grpo.max_new_tokens <= work.model.context
    assert work.completions % work.config.grpo.minibatch_size == 0
    described = json.loads(json.dumps(work.describe()))
    assert described["sft"] == described["pretrain"]  # so one of them is timed


def test_quick_is_less_work_of_the_same_model():
    full, quick = make_work("faisca", quick=False), make_work("faisca", quick=True)
    assert full.model == quick.model and full.model.vocabulary_size == 50257
    assert training_tokens(quick) < training_tokens(full) == 64 * 256


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


@pytest.mark.parametrize("model", [TINY.model, LLAMA, replace(LLAMA, tie_embeddings=False, positions="learned")])
@pytest.mark.parametrize("twin", TWINS)
def test_rows_end_or_never_do_as_the_case_wants(twin, model):
    pytest.importorskip(PACKAGES[twin])
    grpo = replace(TINY.config.grpo, group_size=64, minibatch_size=64, max_new_tokens=28)
    work = replace(TINY, model=model, config=replace(TINY.config, grpo=grpo))
    subject = TwinSubject(twin, work, RunConfig(device="cpu"))
    full = subject._roll_out(subject._model()).completions
    assert {len(row) for row in full} == {28}
    ending = subject._roll_out(subject._model(rows_end=True)).completions
    share = np.mean([ids[-1] == work.end_of_text for ids in ending])
    assert share == pytest.approx(1 - (1 - 1 / HEADLINE_TOKENS) ** 28, abs=0.05)  # measured: 0.019


def test_weights_fit_the_model_tied_or_not():
    for tied in (False, True):
        work = replace(TINY, model=replace(TINY.model, tie_embeddings=tied))
        check_parameters(work.parameters(rows_end=True), work.model)


def test_a_file_says_whose_sizes_are_measured():
    work = make_work(None, quick=False, file=ROOT / "benchmarks" / "smollm2.toml")
    assert count_parameters(work.model) == 134_515_008  # what SmolLM2-135M has
    assert training_tokens(work) == 8 * 256 and work.has_prefill
    assert work.describe()["preset"] == "modern + smollm2.toml"
    assert their_model(work)[0]["model_type"] == "llama"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("peer", ["transformers", "mlx_lm"])
def test_baselines_compute_our_loss_in_llamas_layout_and_do_every_case(peer, tied):
    pytest.importorskip(PACKAGES[peer])
    twin = {"transformers": "torch", "mlx_lm": "mlx"}[peer]
    sample = replace(TINY.config.sample, max_new_tokens=2)
    model = replace(LLAMA, tie_embeddings=tied, norm_epsilon=1e-3, rope_base=1e6)  # not what a class takes by default
    model = replace(model, initial_range=0.2)  # attention that matters: another base would be 5e-4 off
    work = replace(TINY, model=model, config=replace(TINY.config, sample=sample))
    ours, theirs = (worker.SubjectSpec(name, work, RunConfig(device="cpu")).open() for name in (twin, peer))
    batch = work.batch()
    assert theirs.loss(*batch) == pytest.approx(ours.loss(*batch), rel=2e-6)  # measured: 4e-7
    cases = theirs.cases()
    for case in ("generate_1", "generate_16", "prefill", *(["pretrain"] if tied else [])):
        assert cases[case]() > 0, case
    assert cases.keys() <= ours.cases().keys()


@pytest.mark.parametrize("twin", TWINS)
def test_a_prefill_reads_a_long_prompt_where_the_context_holds_it(twin):
    pytest.importorskip(PACKAGES[twin])
    long, short = replace(TINY, model=LLAMA), replace(TINY, model=replace(LLAMA, context=LONG_PROMPT))
    assert "prefill" not in TwinSubject(twin, short, RunConfig(device="cpu")).cases()
    subject = TwinSubject(twin, long, RunConfig(device="cpu"))
    given: list[list[list[int]]] = []
    generate = subject.backend.generate

    def noted(**arguments):
        given.append(arguments["prompts"])
        return generate(**arguments)

    subject.backend = SimpleNamespace(**(vars(subject.backend) | {"generate": noted}))
    assert subject.cases()["prefill"]() > 0
    assert [len(prompt) for (prompt,) in given] == [512]


def test_a_case_that_comes_later_is_made_once_and_not_timed():
    made = []
    case = later(lambda: made.append(1) or (lambda: 0.5))
    assert not made and (case(), case()) == (0.5, 0.5) and made == [1]


# --- numbers ------------------------------------------------------------------------------------


def test_medians_spread_and_what_follows_from_them():
    seconds = {"pretrain": [2.0, 1.0, 4.0], "peak": [0.5], "products": [1.0], "grpo_full": [3.0]}
    measured = summarise(TINY, seconds)
    tokens = training_tokens(TINY)
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
    assert {"blas", "loss"} <= found["subjects"]["mlx"]["computed_with"].keys()
    assert "pre-training step" in printed and "(tokens/s)" in printed and "×" in printed
    assert imread(path.with_suffix(".png")).std() > 0


def test_results_side_by_side(results, tmp_path, capsys):
    path, _ = results
    yours = tmp_path / "yours.json"
    yours.write_bytes(path.read_bytes())
    assert bench(["compare", str(path), str(yours)]) == 0
    printed = capsys.readouterr().out
    assert "A torch" in printed and "B reference" in printed and "1.00×" in printed
    assert bench(["compare", str(path), str(yours), "--json"]) == 0
    names = {f"{file} {backend}" for file in ("mine", "yours") for backend in ("torch", "mlx", "reference")}
    assert json.loads(capsys.readouterr().out).keys() == names


def test_files_of_the_same_name_stay_apart(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")  # no path is broken into two lines
    path, _ = results
    paths = []
    for folder, processor in (("a", "Apple M1"), ("b", "Apple M4")):
        found = read_results(path)
        found["machine"]["processor"] = processor
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "bench.json")
        paths[-1].write_text(json.dumps(found))
    assert bench(["compare", *map(str, paths), "--json"]) == 0
    names = [f"{folder}/bench {backend}" for folder in "ab" for backend in ("torch", "mlx", "reference")]
    assert list(json.loads(capsys.readouterr().out)) == names
    assert bench(["compare", *map(str, paths)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"A = {paths[0]}: Apple M1" in printed and f"B = {paths[1]}: Apple M4" in printed
    with pytest.raises(FaiscaError, match="is named twice"):
        bench(["compare", str(paths[0]), str(paths[0])])


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_comparison_fits_the_terminal_and_loses_no_number(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    paths = [ROOT / "benchmarks" / "results" / f"{name}.json" for name in ("faisca-cpu", "faisca-cpu-sampling")]
    monkeypatch.chdir(ROOT)
    assert bench(["compare", *(str(path.relative_to(ROOT)) for path in paths)]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width and "…" not in printed
    columns = {f"{path} {name}": subject["measured"] for path in paths for name, subject in subjects(path)}
    for row in rows(columns):
        for value in row.values.values():
            assert format_value(value, row.unit) in printed, row.title


def subjects(path):
    return read_results(path)["subjects"].items()


def test_markdown_to_paste(results, capsys):
    path, _ = results
    assert bench(["compare", str(path), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "`faisca bench`, preset tiny, quick" and lines[2].startswith(f"- A = {path}: ")
    table = [line for line in lines if line.startswith("|")]
    assert table[:2] == ["|  | A torch | A mlx | A reference |", "| --- | ---: | ---: | ---: |"]
    assert {line.count("|") for line in table} == {5} and len(table) > 6
    with pytest.raises(FaiscaError, match="--json does not go with --markdown"):
        bench(["compare", str(path), "--markdown", "--json"])


def test_a_share_over_100_per_cent_is_explained(capsys):
    for share, explained in ((119.0, True), (96.0, False)):
        columns = {"torch": {"products_share": {"median": share}}}
        print_table(rows(columns), ["torch"], Console(width=80))
        assert ("over 100 % cannot be" in capsys.readouterr().out) == explained


@pytest.mark.parametrize("spread", [0.01, 1.2])
def test_labels_stay_on_the_chart(spread):
    row = Row("pretrain", "step", "tokens/s", {"torch": 12345.0, "mlx": 400.0}, {"torch": spread, "mlx": spread})
    figure = Figure(figsize=(4.5, 1.5), layout="constrained")
    axes = figure.subplots()
    _bars(axes, row, ["torch", "mlx"])
    figure.draw_without_rendering()
    labels = [text for text in axes.texts if text.get_text() in ("12,345", "400")]
    assert len(labels) == 2
    for label in labels:
        assert label.get_window_extent().x1 <= axes.get_window_extent().x1


def test_other_work_is_not_compared(results, tmp_path):
    path, _ = results
    found = read_results(path)
    found["work"]["pretrain"]["batch_size"] = 1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(found))
    with pytest.raises(FaiscaError, match=r"other work .* work\.pretrain\.batch_size is 1, not 8"):
        read_comparable([path, other])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "none"], "none"),
        (["--rounds", "0"], "--rounds 0 is out of range"),
        (["--config", "absent.toml"], "cannot read absent.toml"),
        (["--preset", "tiny", "--config", str(ROOT / "benchmarks" / "smollm2.toml")], "--preset tiny disagrees with"),
        (["--cases", "prefill"], "--cases prefill reads 512 tokens, and the context is 64"),
        (["--cases", "speed"], "--cases 'speed' is unknown: choose among pretrain"),
        (["--peers", "nobody"], "peer 'nobody' is unknown: choose among mlx_lm, mlx_lm_lora, naive_mlx, nanogpt"),
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
    root = worker.BASELINES.parent.parent
    shutil.copytree(worker.BASELINES, tmp_path / "benchmarks" / "baselines")
    source = (root / "lessons" / "torch_in_one_file.py").read_text(encoding="utf-8")
    wrong = source.replace("x_BTD = x_BTD + self.dropout(self.attention", "x_BTD = x_BTD - self.dropout(self.attention")
    assert wrong != source
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons" / "torch_in_one_file.py").write_text(wrong, encoding="utf-8")
    monkeypatch.setattr(worker, "BASELINES", tmp_path / "benchmarks" / "baselines")
    options = ["--preset", "tiny", "--quick", "--backends", "torch", "--peers", "reference", "--cases", "peak"]
    assert main(["bench", *options, "--json", str(tmp_path / "x.json")]) == 1
    assert "reference computes a loss of" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


# --- the machine --------------------------------------------------------------------------------


MAC = {
    "sysctl": """case "$2" in
machdep.cpu.brand_string) echo "Apple M3 Max" ;;
iogpu.wired_limit_mb) echo 49152 ;;
*) exit 1 ;; esac""",
    "system_profiler": """[ "$*" = "SPDisplaysDataType -json" ] || exit 1
echo '{"SPDisplaysDataType": [{"_name": "Apple M3 Max", "sppci_cores": "40", "spdisplays_ndrvs": []}]}'""",
    "pmset": "echo \"Now drawing from 'AC Power'\"",
}
"""what the commands of macOS print, as shell scripts"""


def on_a_mac(tmp_path, monkeypatch, **commands):
    for name, text in (MAC | commands).items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.platform, "mac_ver", lambda: ("15.6.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    return machine.describe_machine()


def test_a_mac_is_described_by_chip_gpu_memory_and_macos(tmp_path, monkeypatch):
    described = on_a_mac(tmp_path, monkeypatch)
    facts = {"processor": "Apple M3 Max", "gpu_cores": 40, "wired_limit_bytes": 48 * 2**30, "power": "mains"}
    facts |= {"power_mode": None, "battery_percent": None}
    assert described | facts == described and described["system"] == "macOS 15.6.1 arm64"
    line = machine.machine_line(described | {"memory_bytes": 64e9, "cores": 16})
    assert line == "Apple M3 Max, 16 cores, 40 GPU cores, 64.0 GB, macOS 15.6.1 arm64, wired limit 51.5 GB"


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        ({"sysctl": '[ "$2" = iogpu.wired_limit_mb ] && echo 0'}, "wired limit default"),
        ({"sysctl": "exit 1"}, "wired limit unknown"),
        ({"system_profiler": "exit 1"}, "unknown GPU cores"),
    ],
)
def test_what_macos_does_not_say_is_unknown(tmp_path, monkeypatch, commands, words):
    assert words in machine.machine_line(on_a_mac(tmp_path, monkeypatch, **commands))


def test_elsewhere_nothing_is_said_of_apple():
    described = machine.describe_machine()
    assert not {"gpu_cores", "wired_limit_bytes"} & described.keys() or machine.sys.platform == "darwin"
    assert "GPU" not in machine.machine_line(described) or machine.sys.platform == "darwin"


def test_the_machine_is_described_without_naming_its_user():
    described = json.dumps(machine.describe_machine())
    assert os.uname().nodename not in described and str(Path.home()) not in described


def test_a_file_also_says_how_to_compute_unless_an_option_does(tmp_path, monkeypatch):
    seen: list[Any] = []

    def note(work: Any, names: Any, run: Any, *_: Any) -> None:
        seen.append((run.loss_chunk, run.compile))
        raise FaiscaError("seen")

    monkeypatch.setattr("faisca.bench.command.run_benchmark", note)
    file = tmp_path / "wide.toml"
    file.write_text('preset = "tiny"\n[run]\nloss_chunk = 300\ncompile = "off"\n')
    for more in ([], ["--compile", "on"]):
        with pytest.raises(FaiscaError, match="seen"):
            bench(["--config", str(file), "--json", str(tmp_path / "results.json"), *more])
    assert seen == [(300, "off"), (300, "on")]
