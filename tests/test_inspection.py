"""`faisca runs`, `faisca inspect`, and the page that specifies the format."""

import ast
import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from small_models import open_twin
from small_runs import killed_in, start, write_material

from faisca import cli
from faisca.runs.checkpoint import load_checkpoint
from faisca.runs.state import State

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a finished run, one that died in SFT, one that has lost everything, and no run."""
    open_twin("torch")
    folder = tmp_path_factory.mktemp("runs")
    material = write_material(tmp_path_factory.mktemp("material"))
    start(material, folder / "done", "torch", "--stages", "pretrain", "--pretrain.max-steps", "4")
    killed_in("torch", "train_step", 14, lambda: start(material, folder / "nested" / "died", "torch"))
    (folder / "empty" / "checkpoints").mkdir(parents=True)
    (folder / "notes").mkdir()
    return folder


def test_runs_lists_what_there_is(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["runs", str(folder)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "stage", "step", "loss", ".pt", "loss", "backend", "size", "resumable"]
    done, empty, died = (row.split() for row in rows)
    assert done[:3] == ["done", "pretrain", "4/4"] and done[-1] == "finished" and "torch" in done
    assert empty[0] == "empty" and empty[-1] == "no"
    assert died[:3] == ["nested/died", "sft", "4/7"] and died[-1] == "yes"
    assert all(re.fullmatch(r"\d\.\d{3}", number) for number in (*done[3:5], *died[3:5]))
    assert max(map(len, [header, *rows])) <= 80


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_keeps_names_and_numbers_of_runs(folder, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["runs", str(folder)]) == 0
    cells = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["runs", str(folder)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width and "loss –, .pt loss –" in " ".join(text.split())
    assert not {cell for row in cells for cell in row} - set(text.replace(",", "").split())


def test_runs_as_json_has_the_numbers_of_the_checkpoints(folder, capsys):
    assert cli.main(["runs", str(folder), "--json"]) == 0
    done, empty, died = json.loads(capsys.readouterr().out)
    state = load_checkpoint(folder / "done").state
    assert done["validation_loss"] == state.progress.measured["validation_loss"]
    assert (died["stage"], died["step"], died["total_steps"], died["resumable"]) == ("sft", 4, 7, "yes")
    assert died["bytes"] == sum(p.stat().st_size for p in (folder / "nested/died").rglob("*") if p.is_file())
    assert empty["step"] is None and empty.keys() == done.keys() == died.keys()


def test_runs_of_no_folder_and_of_an_empty_one(tmp_path, capsys):
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert cli.main(["runs", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err


def test_inspect_shows_and_verifies(folder, capsys):
    assert cli.main(["inspect", str(folder / "nested/died")]) == 0
    text = capsys.readouterr().out
    assert "sft-000004" in text and "step 4 of 7" in text and "torch on cpu, float32" in text
    assert text.count("  ok") == 5  # model, optimiser, titles seen, state, tokenizer
    assert cli.main(["inspect", str(folder / "nested/died"), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["damage"] == [] and described["state"]["model"]["dim"] == 32
    assert {file["check"] for file in described["files"].values()} == {"ok"}


@pytest.mark.parametrize("columns", ["60", "80"])
def test_inspect_shows_parameters_and_tensors(folder, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    weights = load_checkpoint(folder / "done").parameters
    assert cli.main(["inspect", str(folder / "done"), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["parameters"] == sum(array.size for array in weights.values())
    assert described["tensors"] == {n: {"shape": list(a.shape), "dtype": "float32"} for n, a in weights.items()}
    assert cli.main(["inspect", str(folder / "done")]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert f"{described['parameters']:,} parameters" in map(str.rstrip, lines)
    assert "transformer_blocks.0 … 1 (2 alike)" in map(str.rstrip, lines)
    for name, array in weights.items():
        shown = re.sub(r"^transformer_blocks\.\d+\.", "", name)
        assert re.search(rf"{re.escape(str(list(array.shape)))} +float32 *$", rows[shown]), name
    assert max(map(len, lines)) <= int(columns)


def test_an_import_is_said_in_words(folder, tmp_path, capsys):
    assert cli.main(["port", str(folder / "done"), str(tmp_path / "x.npz"), "--to", "mlx", "--no-verify"]) == 0
    description = tmp_path / "x.npz.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"training": {}}))
    assert cli.main(["port", str(tmp_path / "x.npz"), str(tmp_path / "run"), "--to", "faisca", "--no-verify"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "run")]) == 0
    assert re.search(r"computed with +imported from MLX arrays", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_inspect_finds_damage(name, folder, tmp_path, capsys):
    run = shutil.copytree(folder / "nested/died", tmp_path / "run")
    newest = load_checkpoint(run).folder
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 0x80
    (newest / name).write_bytes(content)
    for path in (run, newest):
        assert cli.main(["inspect", str(path)]) == 1
        printed = capsys.readouterr()
        assert name in printed.out and printed.err.startswith(f"faisca: checkpoint {newest} is damaged ({name} ")
    assert cli.main(["inspect", str(run), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["damage"]


def test_inspect_of_no_checkpoint(folder, capsys):
    for name in ("notes", "empty", "nowhere"):
        assert cli.main(["inspect", str(folder / name)]) == 2
        assert f"{folder / name} " in capsys.readouterr().err


def test_the_twenty_lines_of_the_specification_read_a_checkpoint(folder, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1 and len(blocks[0].splitlines()) <= 24 and "faisca" not in blocks[0]
    run = shutil.copytree(folder / "nested/died", tmp_path / "run")
    command = [sys.executable, "-c", blocks[0], str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    first, *weights = done.stdout.splitlines()
    assert first == "sft 4 torch 2 blocks"
    assert sorted(line.split()[0] for line in weights) == sorted(load_checkpoint(run).parameters)
    assert all(float(line.split()[-1]) > 0 for line in weights)
    with (load_checkpoint(run).folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    torn = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert torn.returncode == 1 and "model.safetensors has been cut" in torn.stderr


def test_the_specification_has_every_field_of_the_state_and_every_file(folder):
    text = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    checkpoint = load_checkpoint(folder / "done")
    body = ast.parse(inspect.getsource(State)).body[0].body
    fields = [(field.target.id, doc.value.value) for field, doc in pairwise(body) if isinstance(field, ast.AnnAssign)]
    assert len(fields) == len(dataclasses.fields(State))
    assert [row for row in (f"| `{name}` | {doc} |" for name, doc in fields) if row not in text] == []
    names = (*checkpoint.state.to_json(), *(path.name for path in checkpoint.folder.iterdir()))
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("command", [["generate"], ["inspect"], ["run", "--resume"], ["sft", "--from"]])
def test_an_error_about_a_missing_run_lists_those_that_exist(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("runs/old", "runs/new", "other/mine")):
        Path(name, "checkpoints").mkdir(parents=True)
        os.utime(Path(name, "checkpoints"), (age, age))
    for missing, known in {"runs/spark": "runs/new, runs/old", "other/x": "other/mine, runs/new, runs/old"}.items():
        assert cli.main([*command, missing]) == 2
        assert capsys.readouterr().err.endswith(f"; nearby: {known}\n")
    assert cli.main([*command, "runs"]) == 2  # a folder of runs: those in it
    assert capsys.readouterr().err.endswith("; nearby: runs/new, runs/old\n")
