"""What a user gave is honoured, refused in one line, or said: held-out titles, --from and --resume."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from every_option import choices, options
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import open_twin, read_lines, state_of
from small_runs import killed_in

import faisca
from faisca.cli import main
from faisca.config import STAGES, Config
from faisca.config.files import load_preset, read_sections, sections_of
from faisca.data.headlines import load_headlines, select_titles, title_hashes
from faisca.errors import FaiscaError
from faisca.runs.changes import SAID_ELSEWHERE, change_words, check_changes, with_finished_stages
from faisca.runs.checkpoint import load_checkpoint
from faisca.runs.state import Progress
from faisca.training.start import SETTINGS, check_start, inherit, start_words

pytestmark = pytest.mark.xdist_group("promises")  # one worker, so that the run below is made once

TINY = ("--preset", "tiny", "--backend", "torch", "--device", "cpu")
SHORT = ("--pretrain.max-steps", "2", "--sft.max-steps", "2", "--grpo.steps", "1", "--sample.counted", "4")
ALL = ("--pretrain.max-titles", "0", "--pretrain.max-validation-titles", "0")
DEVICE = ("--backend", "torch", "--device", "cpu")


def faisca_run(*argv: object) -> None:
    assert main([str(argument) for argument in argv]) == 0


def complaint(capsys, *argv: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 2
    line = capsys.readouterr().err
    assert line.startswith("faisca: ") and line.count("\n") == 1
    return line


def write_titles(path: Path, numbers: range) -> Path:
    rows = [
        {"title": f"Governo aprova a medida {i} do ano", "language": "pt", "requested_url": f"https://x.pt/{i}"}
        for i in numbers
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_titles(tmp_path_factory.mktemp("data") / "mine.jsonl", range(900))


@pytest.fixture(scope="module")
def base(data, tmp_path_factory) -> Path:
    """A pre-trained run with seed 1."""
    open_twin("torch")
    folder = tmp_path_factory.mktemp("base") / "run"
    faisca_run("pretrain", *TINY, *SHORT, *ALL, "--data", data, "--seed", "1", "--out", folder)
    return folder


def trained_on(folder: Path) -> np.ndarray:
    return load_checkpoint(folder).seen


def validation_hashes(folder: Path) -> np.ndarray:
    """Of the titles that a run measured on, selected again as it says that it selected them."""
    checkpoint = load_checkpoint(folder)
    state = checkpoint.state
    headlines = load_headlines(state.config.data, state.hold_out_seed, seen=checkpoint.seen)
    return title_hashes(select_titles(headlines, state.config)["pretrain"][1])


# --- the hold-out belongs to the model ----------------------------------------------------------


def test_another_seed_holds_out_the_titles_of_the_checkpoint(base, tmp_path, capsys):
    faisca_run("sft", "--from", base, *DEVICE, "--seed", "2", "--out", tmp_path / "sft")
    said = capsys.readouterr().out
    assert "titles are held out as for the checkpoint, by seed 1 and not by 2" in said
    before, after = (json.loads((at / "summary.json").read_text())["stages"] for at in (base, tmp_path / "sft"))
    assert before[0]["validation_loss_after"] == after[0]["validation_loss_before"]
    assert not np.isin(validation_hashes(base), trained_on(tmp_path / "sft")).any()
    assert load_checkpoint(tmp_path / "sft").state.hold_out_seed == 1
    faisca_run("grpo", "--from", tmp_path / "sft", *DEVICE, "--seed", "3", "--out", tmp_path / "grpo")
    assert "by seed 1 and not by 3" in capsys.readouterr().out
    (grpo,) = json.loads((tmp_path / "grpo" / "summary.json").read_text())["stages"]
    assert grpo["validation_loss_before"] == after[0]["validation_loss_after"]
    assert (trained_on(tmp_path / "grpo") == trained_on(tmp_path / "sft")).all()


def test_evaluate_measures_on_the_titles_that_the_model_never_saw(base, tmp_path, data, capsys):
    faisca_run("sft", "--from", base, *DEVICE, "--seed", "2", "--out", tmp_path / "sft")
    capsys.readouterr()
    measured = faisca.load(tmp_path / "sft", backend="torch", device="cpu").evaluate(str(data))
    (entry,) = json.loads((tmp_path / "sft" / "summary.json").read_text())["stages"]
    assert measured["validation_loss"] == pytest.approx(entry["validation_loss_after"], abs=1e-12)
    assert capsys.readouterr().err == f"data: {entry['data']}\n"


def test_another_share_is_refused(base, tmp_path, capsys):
    line = complaint(capsys, "sft", "--from", base, "--data.validation-share", "0.3", "--out", tmp_path / "new")
    assert f"data.validation_share 0.3 does not go with {base}" in line and "leave --data.validation-share out" in line
    assert not (tmp_path / "new").exists()
    line = complaint(capsys, "evaluate", base, "--data", "sample", "--data.validation-share", "0.3")
    assert "data.validation_share 0.3 does not go with" in line


def test_a_split_of_its_own_is_measured_without_what_the_model_saw(base, tmp_path, capsys):
    split = tmp_path / "split"
    split.mkdir()
    write_titles(split / "train.jsonl", range(900, 1300))
    write_titles(split / "validation.jsonl", range(800, 1000))
    faisca_run("sft", "--from", base, *DEVICE, "--data", split, "--out", tmp_path / "sft")
    known = np.isin(title_hashes_of(range(800, 900)), trained_on(base)).sum()
    assert 80 <= known < 100
    left_out = f"{known} held out, but the model was trained on them"
    (entry,) = json.loads((tmp_path / "sft" / "summary.json").read_text())["stages"]
    assert left_out in capsys.readouterr().out and left_out in entry["data"]
    assert not np.isin(validation_hashes(tmp_path / "sft"), trained_on(tmp_path / "sft")).any()


def title_hashes_of(numbers: range) -> np.ndarray:
    import pyarrow as pa

    return title_hashes(pa.array([f"Governo aprova a medida {i} do ano" for i in numbers]))


def test_nothing_left_to_measure_on_is_one_line(base, tmp_path, capsys):
    split = tmp_path / "split"
    split.mkdir()
    write_titles(split / "train.jsonl", range(900, 1300))
    known = [i for i in range(900) if np.isin(title_hashes_of(range(i, i + 1)), trained_on(base))][:5]
    write_titles(split / "validation.jsonl", known)
    line = complaint(capsys, "sft", "--from", base, *DEVICE, "--data", split, "--out", tmp_path / "sft")
    assert "no validation title is left" in line and "5 held out, but the model was trained on them" in line


# --- --from: what belongs to the weights, and what is a setting ---------------------------------


def test_settings_of_training_apply_and_are_said(base, tmp_path, capsys):
    options = ("--model.dropout", "0.3", "--model.attention-dropout", "0.2")
    faisca_run("sft", "--from", base, *DEVICE, *options, "--out", tmp_path / "sft")
    assert "model.dropout 0.3; so far 0.0" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "sft").state.model.dropout == 0.3
    config = Config(**read_sections(tmp_path / "sft" / "config.toml"))
    assert (config.model.dropout, config.model.attention_dropout, config.tokenizer.kind) == (0.3, 0.2, "bpe")
    plain = tmp_path / "plain"
    faisca_run("sft", "--from", base, *DEVICE, "--out", plain)
    losses = [read_lines(folder / "metrics.jsonl") for folder in (tmp_path / "sft", plain)]
    first = [next(line["loss"] for line in lines if "loss" in line) for lines in losses]
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("option", "value", "theirs"),
    [
        ("--model.dim", "64", "32"),
        ("--model.num-layers", "5", "2"),
        ("--model.vocabulary-size", "999", "0"),
        ("--tokenizer.kind", "gpt2", "bpe"),
        ("--tokenizer.vocabulary-size", "300", ""),
    ],
)
def test_what_contradicts_the_weights_is_refused(option, value, theirs, base, tmp_path, capsys):
    line = complaint(capsys, "sft", "--from", base, option, value, "--out", tmp_path / "new")
    assert f"{option[2:].replace('-', '_')} {value} does not go with {base}" in line
    assert f"has {theirs}" in line and f"leave {option} out" in line
    assert not (tmp_path / "new").exists()


def test_a_preset_brings_its_numbers_and_not_its_model(base, tmp_path):
    narrow = ("--data.window", "32", "--data.stride", "32")
    faisca_run("sft", "--preset", "spark", *SHORT, *narrow, "--from", base, *DEVICE, "--out", tmp_path / "sft")
    config = Config(**read_sections(tmp_path / "sft" / "config.toml"))
    assert (config.preset, config.model.dim, config.tokenizer) == (
        "spark",
        32,
        Config(**read_sections(base / "config.toml")).tokenizer,
    )


def test_a_window_beyond_the_context_has_a_remedy_that_works(base, tmp_path, capsys):
    line = complaint(capsys, "sft", "--from", base, "--data.window", "128", "--out", tmp_path / "new")
    assert "use --data.window 32 --data.stride 32" in line
    faisca_run("sft", "--from", base, *DEVICE, "--data.window", "32", "--data.stride", "32", "--out", tmp_path / "new")


# --- --resume with other values -----------------------------------------------------------------


@pytest.fixture
def stopped(data, tmp_path) -> Path:
    """A run that died in its second step, and has the checkpoint of its beginning."""
    open_twin("torch")
    options = (*TINY, *SHORT, *ALL, "--data", data, "--out", tmp_path / "stopped")
    killed_in("torch", "train_step", 2, lambda: faisca_run("pretrain", *options))
    return tmp_path / "stopped"


def test_a_finished_stage_takes_no_more_options(base, capsys):
    config = (base / "config.toml").read_text()
    line = complaint(capsys, "pretrain", "--resume", base, "--pretrain.max-steps", "12")
    assert "--pretrain.max-steps 12 does not go with --resume: pretrain is finished, with 2" in line
    assert f"--from {base} --out RUN" in line
    line = complaint(capsys, "pretrain", "--resume", base, "--data.stride", "8")
    assert "--data.stride 8 does not go with --resume: the run is finished" in line
    assert (base / "config.toml").read_text() == config


def test_a_resumed_run_says_what_changed_and_what_follows(stopped, capsys):
    options = ("--pretrain.batch-size", "4", "--pretrain.max-steps", "3", "--data.stride", "16", "--keep", "2")
    faisca_run("pretrain", "--resume", stopped, *options)
    said = capsys.readouterr().out
    assert "changed: pretrain.batch_size 8 -> 4, from step 1 on" in said
    assert "changed: pretrain.max_steps 2 -> 3, from step 1 on" in said
    assert "changed: data.stride 32 -> 16, after pretrain step 0" in said
    assert "changed: run.keep 3 -> 2" in said
    assert "the training data have changed" not in said
    assert "an epoch has now" in said and "pretrain ends after step 3, not 2" in said
    config = Config(**read_sections(stopped / "config.toml"))
    assert (config.pretrain.batch_size, config.pretrain.max_steps, config.data.stride) == (4, 3, 16)


def test_stages_that_are_done_stay_in_the_configuration(base, tmp_path, capsys):
    folder = shutil.copytree(base, tmp_path / "run")
    faisca_run("run", "--resume", folder, "--stages", "sft", "--sft.max-steps", "1")
    assert "changed: sft.max_steps 2 -> 1, before sft begins" in capsys.readouterr().out
    assert Config(**read_sections(folder / "config.toml")).run.stages == ("pretrain", "sft")
    assert [entry["stage"] for entry in json.loads((folder / "summary.json").read_text())["stages"]] == [
        "pretrain",
        "sft",
    ]


# --- any pair of options ------------------------------------------------------------------------


def changed(config: Config, names: list[str]) -> Config:
    """Another value for each of these options; FaiscaError where they do not go together."""
    for name in names:
        section, option = name.split(".")
        base = getattr(getattr(config, section), option)
        if isinstance(base, tuple):
            value = ("pretrain", "grpo") if option == "stages" else ("Porto",)
        elif isinstance(base, float):
            value = 0.75 * base + 0.0031
        else:
            (value, *_) = choices(name, base, base + "x" if isinstance(base, str) else 2 * base + 2)
        assert value != base
        config = replace(config, **{section: replace(getattr(config, section), **{option: value})})
    return config


PAIRS = st.lists(st.sampled_from(sorted(options())), min_size=1, max_size=2, unique=True)
BEGUN = load_preset("tiny")
MODEL = replace(BEGUN.model, vocabulary_size=512)


def named(names: list[str], text: str) -> bool:
    """Whether a text names one of these options."""
    return any(
        name in text or f"--{name.replace('_', '-')}" in text or (name == "run.seed" and "--seed" in text)
        for name in names
    )


@given(PAIRS, st.sampled_from(STAGES), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_options_on_resume_are_refused_or_said(names, stage, finished):
    stages = [{"stage": one} for one in STAGES[: STAGES.index(stage) + finished]]
    state = replace(state_of(Progress(stage, 3), BEGUN, MODEL), finished=finished, stages=stages)
    try:
        config = with_finished_stages(changed(BEGUN, names), state)
        check_changes(config, state, "RUN")
    except FaiscaError as error:
        assert named(names, str(error)) or "leaves out" in str(error)
        return
    said = change_words(config, state)
    for name in names:
        assert name in SAID_ELSEWHERE or any(line.startswith(f"changed: {name} ") for line in said)
    assert not {name.partition(".")[0] for name in names} & {"model", "tokenizer"} and "run.seed" not in names


@given(PAIRS)
@settings(max_examples=300, deadline=None)
def test_any_options_on_from_are_refused_or_honoured(names):
    state = replace(state_of(Progress("sft", 3), BEGUN, MODEL), hold_out_seed=5)
    checkpoint = SimpleNamespace(folder=Path("RUN"), state=state)
    try:
        wanted = changed(Config(**inherit(sections_of(BEGUN), state)), names)
        got = check_start(wanted, checkpoint)
    except FaiscaError as error:
        assert named(names, str(error))
        return
    for section, option in (name.split(".") for name in names):
        assert getattr(getattr(got, section), option) == getattr(getattr(wanted, section), option)
    settings_alone = {name for name in names if name.startswith("model.")} <= {f"model.{name}" for name in SETTINGS}
    assert settings_alone and "data.validation_share" not in names
    words = "; ".join(start_words(got, checkpoint))
    assert all(name in words for name in names if name.startswith("model."))
    assert "run.seed" not in names or "titles are held out as for the checkpoint" in words
