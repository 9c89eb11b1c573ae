"""Whole runs of the `tiny` preset: what lies in a run folder, that a run repeats, and what stops one early."""

import json
import math
import re

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_models import open_twin, read_lines, run_faisca, same_arrays
from small_runs import TIMED

from faisca.cli import main
from faisca.config import Config
from faisca.config.files import read_sections
from faisca.runs.checkpoint import load_checkpoint
from faisca.runs.summary import STAGE_KEYS

pytestmark = pytest.mark.xdist_group("stages")  # one worker, so that the run below is made once

ENDS = {"pretrain": 6, "sft": 4, "grpo": 2}
TINY = ("--preset", "tiny", "--backend", "torch", "--device", "cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """All three stages in a process of its own; the process, and the run folder."""
    open_twin("torch")
    folder = tmp_path_factory.mktemp("stages") / "first"
    return run_faisca("run", *TINY, "--out", folder, cwd=folder.parent), folder


@pytest.fixture(scope="module")
def folder(finished):
    assert finished[0].returncode == 0, finished[0].stderr
    return finished[1]


def checkpoint(folder, stage):
    return folder / "checkpoints" / f"{stage}-{ENDS[stage]:06d}"


def weights(folder, stage, file="model.safetensors") -> dict[str, np.ndarray]:
    return load_file(checkpoint(folder, stage) / file)


def records(folder, stage: str, key: str) -> list[dict]:
    """Lines of metrics.jsonl of a stage that have this key."""
    return [line for line in read_lines(folder / "metrics.jsonl") if line["stage"] == stage and key in line]


def complaint(capsys, *argv) -> str:
    """The one line on standard error of a command that fails with status 2."""
    assert main([str(argument) for argument in argv]) == 2
    line = capsys.readouterr().err
    assert line.startswith("faisca: ") and line.count("\n") == 1
    return line


# --- a run folder -------------------------------------------------------------------------------


def test_a_run_ends_well_and_says_where_it_is(finished):
    done, folder = finished
    assert (done.returncode, done.stderr) == (0, "")
    assert "validation loss (nats)" in done.stdout and f"faisca generate {folder}" in done.stdout


def test_the_files_of_a_run(folder):
    files = {"config.toml", "metrics.jsonl", "summary.json", "tokenizer.json", "latest"}
    assert files <= {path.name for path in folder.iterdir()}
    charts = sorted((folder / "charts").iterdir())
    assert [path.name for path in charts] == ["grpo.png", "pretrain.png", "sft.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") and path.stat().st_size > 5000 for path in charts)
    assert (folder / "latest").read_text().strip() == "checkpoints/grpo-000002"
    for stage in ENDS:
        held = {path.name for path in checkpoint(folder, stage).iterdir()}
        assert {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"} <= held
        assert ("reference.safetensors" in held) == (stage == "grpo")
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".saving")]


def test_the_summary(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert {name: summary[name] for name in ("backend", "device", "preset", "seed")} == {
        "backend": "torch",
        "device": "cpu",
        "preset": "tiny",
        "seed": 1337,
    }
    assert summary["parameters"] == sum(value.size for value in weights(folder, "sft").values())
    assert [stage["stage"] for stage in summary["stages"]] == list(ENDS)
    for stage in summary["stages"]:
        assert set(STAGE_KEYS) <= set(stage) and stage["steps"] == ENDS[stage["stage"]]
        assert all(math.isfinite(value) for value in stage.values() if isinstance(value, (int, float)))
        assert stage["seconds"] > 0 and stage["tokens_per_second"] > 0 and stage["peak_memory_bytes"] > 10**7
        assert len(stage["samples_before"]) == len(stage["samples_after"]) == 2
    first, second, third = summary["stages"]
    assert first["validation_loss_after"] < first["validation_loss_before"]
    assert second["validation_loss_before"] == first["validation_loss_after"]
    assert third["samples_before"] == second["samples_after"] and third["kl_after"] > 0
    assert ["kl_after" in stage for stage in summary["stages"]] == [False, False, True]


def test_metrics_have_a_line_for_every_step(folder):
    lines = read_lines(folder / "metrics.jsonl")
    assert all({"stage", "step", "seconds"} <= set(line) for line in lines)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    for stage, last in ENDS.items():
        key = "reward_mean" if stage == "grpo" else "loss"
        assert [line["step"] for line in records(folder, stage, key)] == list(range(1, last + 1))
    step = records(folder, "pretrain", "loss")[0]
    assert {"grad_norm", "skipped", "learning_rate", "tokens_seen", "tokens_per_second", "epoch"} <= set(step)
    assert step["tokens_seen"] == 8 * 32
    assert [line["step"] for line in records(folder, "pretrain", "validation_loss")] == [0, 3, 6]
    assert [line["step"] for line in records(folder, "sft", "validation_loss")] == [0, 2, 4]
    watched = {"kl", "entropy", "ratio_mean", "clip_low_share", "truncated_share", "equal_groups_share", "sample"}
    assert watched <= set(records(folder, "grpo", "reward_mean")[0])


def test_the_rates_are_those_of_the_schedule(folder):
    rates = [line["learning_rate"] for line in records(folder, "pretrain", "loss")]
    assert rates[:3] == pytest.approx([5e-4, 1e-3, 1e-3]) and rates[-1] == pytest.approx(1e-4)


# --- the same run again -------------------------------------------------------------------------


def test_its_configuration_repeats_it_bit_for_bit(folder, tmp_path):
    """In another process, from config.toml alone: the same parameters, moments, metrics and samples."""
    again = tmp_path / "again"
    done = run_faisca("run", "--config", folder / "config.toml", "--out", again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in ENDS:
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert same_arrays(weights(folder, stage, file), weights(again, stage, file)), (stage, file)
    assert read_sections(again / "config.toml") == read_sections(folder / "config.toml")
    timed = TIMED
    for ours, theirs in zip(*(read_lines(path / "metrics.jsonl") for path in (folder, again)), strict=True):
        assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}


def test_another_seed_gives_other_weights(folder, tmp_path, capsys):
    assert main(["pretrain", *TINY, "--seed", "1", "--pretrain.max-steps", "1", "--out", str(tmp_path / "o")]) == 0
    other = load_file(tmp_path / "o" / "checkpoints" / "pretrain-000001" / "model.safetensors")
    assert not np.allclose(other["out_head.weight"], weights(folder, "pretrain")["out_head.weight"], atol=0.01)


@pytest.mark.parametrize(("stage", "before"), [("sft", "pretrain"), ("grpo", "sft")])
def test_a_stage_alone_is_the_stage_of_the_whole_run(folder, tmp_path, capsys, stage, before):
    start = checkpoint(folder, before)
    assert main([stage, *TINY, "--from", str(start), "--out", str(tmp_path / "one")]) == 0
    assert same_arrays(weights(tmp_path / "one", stage), weights(folder, stage))
    assert f"starting from {start}" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "one" / "summary.json").read_text())["stages"]
    assert entry["stage"] == stage and entry["validation_loss_before"] is not None


def test_grpo_keeps_the_weights_that_it_began_with_as_reference(folder):
    assert same_arrays(weights(folder, "grpo", "reference.safetensors"), weights(folder, "sft"))


# --- refused, before anything is done -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--grpo.reward", "no_such.py:score"), "no_such.py does not exist"),
        (("--grpo.reward", "fotball"), "grpo.reward 'fotball' is unknown"),
        (("--grpo.prompts", "palavra " * 40), "the model's context is 32: shorten it"),
        (("--sample.prompt", "palavra " * 40), "the model's context is 32: shorten it"),
        (("--model.vocabulary-size", "300"), "too small for the tokenizer's 512 tokens"),
        (("--sft.url-contains", ".xx/"), "is in no address"),
        (("--data", "no_such_file.csv"), "no_such_file.csv"),
    ],
)
def test_what_can_be_refused_leaves_no_run_folder(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    assert words in complaint(capsys, "run", *TINY, "--out", tmp_path / "new", *options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_later_stages_need_a_checkpoint(tmp_path, capsys, stage):
    assert "name a checkpoint with --from" in complaint(capsys, stage, *TINY, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- numbers that are not finite ----------------------------------------------------------------

EXPLODING = ("--pretrain.learning-rate", "1e30", "--pretrain.warmup-steps", "0")


def test_bad_steps_are_skipped_counted_and_stop_the_run(tmp_path, capsys):
    folder = tmp_path / "bad"
    line = complaint(capsys, "pretrain", *TINY, *EXPLODING, "--run.max-bad-steps", "3", "--out", folder)
    assert re.search(r"pretrain: [3-5] steps in a row had a loss or gradient that is not finite", line)
    assert "--pretrain.learning-rate" in line and f"--resume {folder}" in line
    skipped = [line["skipped"] for line in records(folder, "pretrain", "loss")]
    assert skipped[0] == 0 and skipped[-3:] == [1, 1, 1] and len(skipped) < 6
    kept = load_checkpoint(folder)  # from where --resume continues
    assert all(np.isfinite(value).all() for value in kept.parameters.values())


def test_bad_steps_below_the_limit_are_in_the_summary(tmp_path, capsys):
    folder = tmp_path / "bad"
    assert main(["pretrain", *TINY, *EXPLODING, "--out", str(folder)]) == 0
    assert "loss or gradient not finite, step skipped" in capsys.readouterr().out
    (entry,) = json.loads((folder / "summary.json").read_text())["stages"]
    assert entry["skipped_steps"] == 5 and entry["validation_loss_after"] is None
    assert weights(folder, "pretrain", "optimizer.safetensors")["step"] == 1


def test_a_reward_that_fails_in_training_stops_with_one_line_that_names_it(folder, tmp_path, capsys):
    reward = tmp_path / "mine.py"
    reward.write_text("def score(completions):\n    return [1.0]\n")
    options = ("--from", folder, "--grpo.reward", f"{reward}:score", "--out", tmp_path / "new")
    assert f"{reward}:score' returned (1,) numbers for 8 completions" in complaint(capsys, "grpo", *TINY, *options)


def test_a_reward_that_scores_nothing_moves_the_model_by_kl_alone(folder, tmp_path, capsys):
    reward = tmp_path / "mine.py"
    reward.write_text("def score(completions):\n    return [float('nan')] * len(completions)\n")
    options = ("--from", folder, "--grpo.reward", f"{reward}:score", "--out", tmp_path / "new")
    assert main([str(option) for option in ("grpo", *TINY, *options)]) == 0
    assert [line["reward_mean"] for line in records(tmp_path / "new", "grpo", "reward_mean")] == [None, None]
    assert same_arrays(weights(tmp_path / "new", "grpo"), weights(folder, "grpo"))
    said = capsys.readouterr().out
    assert said.count("the reward is NaN for every completion") == 1 and "no completion could be scored" in said
    assert re.search(r"reward \(mine.py:score\) +–", said) and "football" not in said
    assert (tmp_path / "new" / "charts" / "grpo.png").stat().st_size > 5000


def test_a_reward_of_ones_own_is_in_the_summary(folder, tmp_path, capsys):
    reward = tmp_path / "mine.py"
    reward.write_text("def score(completions):\n    return [float(len(text)) for text in completions]\n")
    options = ("--from", folder, "--grpo.reward", f"{reward}:score", "--out", tmp_path / "new")
    assert main([str(option) for option in ("grpo", *TINY, *options)]) == 0
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    (entry,) = summary["stages"]
    assert summary["reward"] == f"{reward}:score"
    assert all(entry[f"reward_{name}"] > 0 for name in ("before", "after", "std_before", "std_after"))
    for line in records(tmp_path / "new", "grpo", "best"):
        assert line["best"]["text"] == line["sample"] and line["best"]["reward"] >= line["worst"]["reward"]
    assert "\n  best   reward " in capsys.readouterr().out


# --- from a run: its own data, or a word about others -------------------------------------------


def test_from_a_run_measures_on_the_runs_own_titles_and_says_where_not(folder, tmp_path, capsys):
    rows = [
        {"title": f"Governo aprova medida {i}", "language": "pt", "requested_url": f"https://x.pt/{i}"}
        for i in range(900)
    ]
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    base = tmp_path / "base"
    short = ("--pretrain.max-steps", "1", "--sft.max-steps", "1", "--sample.prompt", "O Porto")
    assert main(["pretrain", *TINY, *short, "--data", str(data), "--out", str(base)]) == 0
    said = capsys.readouterr().out
    assert "--prompt 'O Porto'" in said
    device = ("--backend", "torch", "--device", "cpu")
    assert main(["sft", "--from", str(base), *device, "--out", str(tmp_path / "own")]) == 0
    said = capsys.readouterr().out
    assert f"its data, {data}\n" in said and "titles from 900 rows" in said
    config = Config(**read_sections(tmp_path / "own" / "config.toml"))
    assert (config.data.window, config.sample.prompt, config.sft.max_steps) == (32, "O Porto", 1)
    ours, theirs = (json.loads((tmp_path / name / "summary.json").read_text())["stages"][0] for name in ("own", "base"))
    assert ours["validation_loss_before"] == theirs["validation_loss_after"]
    argv = ("sft", "--from", str(base), *device, "--data", "sample", "--out", str(tmp_path / "other"))
    assert main(list(argv)) == 0
    assert f"data: sample, not its own ({data}): losses cannot be compared" in capsys.readouterr().out
    data.unlink()
    line = complaint(capsys, "sft", "--from", base, *device, "--out", tmp_path / "gone")
    assert f"was trained on {data}, which does not exist here: name it with --data PATH" in line
    assert not (tmp_path / "gone").exists()


def test_a_second_run_shows_no_bar_for_cached_titles(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FAISCA_CACHE_DIR", str(tmp_path / "cache"))
    for name, bars in (("first", 3), ("second", 0)):
        assert main(["pretrain", *TINY, "--pretrain.max-steps", "1", "--out", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        assert said.count("tokenising ") == bars and said.count("tokenising pretrain titles") == bars // 3


# --- the other twin -----------------------------------------------------------------------------


def test_a_run_on_mlx_has_the_same_files_and_numbers_close_by(folder, tmp_path, capsys):
    open_twin("mlx")
    argv = (
        "run",
        "--config",
        folder / "config.toml",
        "--backend",
        "mlx",
        "--run.compile",
        "off",
        "--out",
        tmp_path / "m",
    )
    assert main([str(argument) for argument in argv]) == 0
    names = [
        {path.relative_to(root) for path in root.rglob("*") if path.name != ".lock"}
        for root in (folder, tmp_path / "m")
    ]
    assert names[0] == names[1]
    ours, theirs = (json.loads((root / "summary.json").read_text())["stages"] for root in (folder, tmp_path / "m"))
    for torchs, mlxs in zip(ours, theirs, strict=True):
        assert mlxs["validation_loss_after"] == pytest.approx(torchs["validation_loss_after"], abs=1e-3)
