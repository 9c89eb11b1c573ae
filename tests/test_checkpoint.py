"""Checkpoints as files: whole or absent, checked, pruned, and refused in one line where they do not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from small_models import SMALL, same_arrays, state_of

from faisca.config.files import config_from_dict, config_to_dict
from faisca.errors import FaiscaError, VerificationError
from faisca.parameters import initial_parameters
from faisca.runs import checkpoint as checkpoints
from faisca.runs.checkpoint import (
    checkpoint_folders,
    load_checkpoint,
    prune_checkpoints,
    remove_leftovers,
    save_checkpoint,
)
from faisca.runs.checks import check_resumable
from faisca.runs.manifest import read_files, write_files
from faisca.runs.state import Progress, best_of
from faisca.system.tensors import stored_chunks

CONFIG = config_from_dict({"data": {"window": 16, "stride": 16}, "model": {"context": 16, "dim": 16, "hidden_dim": 32}})


def arrays() -> dict:
    weights = initial_parameters(SMALL, 3)
    moments = {f"{kind}.{name}": value for kind in ("first_moment", "second_moment") for name, value in weights.items()}
    return {"model": weights, "optimizer": moments | {"step": np.array(4, np.int64)}}


def save(run: Path, step: int, stage: str = "pretrain", tokenizer_json=b"{}", best=None, measured=None, **more) -> Path:
    progress = Progress(stage, step, measured=measured or {})
    return save_checkpoint(
        run,
        state_of(progress, CONFIG, SMALL),
        arrays() | more,
        tokenizer_files={"tokenizer.json": tokenizer_json},
        best=best,
    )


def check(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    check_resumable(folder, loaded.state, loaded.optimizer, loaded.reference)


def test_what_is_saved_is_loaded(tmp_path):
    folder = save(tmp_path, 4, best="pretrain-000004")
    loaded, given = load_checkpoint(tmp_path), arrays()
    assert loaded.folder == folder == tmp_path / "checkpoints/pretrain-000004"
    assert (loaded.state.stage, loaded.state.step, loaded.tokenizer_files, loaded.reference) == (
        "pretrain",
        4,
        {"tokenizer.json": b"{}"},
        None,
    )
    assert same_arrays(dict(sorted(loaded.parameters.items())), dict(sorted(given["model"].items())))
    assert loaded.optimizer["step"] == 4 and loaded.optimizer["step"].dtype == np.int64
    assert (tmp_path / "latest").read_text() == (tmp_path / "best").read_text() == "checkpoints/pretrain-000004\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoints", "latest"]
    check(folder)


def test_the_order_is_that_of_the_stages(tmp_path):
    for stage, step in (("grpo", 1), ("sft", 20), ("pretrain", 1_000_000), ("pretrain", 999_999)):
        save(tmp_path, step, stage)
    (tmp_path / "checkpoints/other-000001").mkdir()
    names = [path.name for path in checkpoint_folders(tmp_path)]
    assert names == ["pretrain-999999", "pretrain-1000000", "sft-000020", "grpo-000001"]


def test_pruning_keeps_ends_best_and_the_newest_and_drops_an_abandoned_future(tmp_path):
    for step in range(6):
        save(tmp_path, step)
    save(tmp_path, 7, best="pretrain-000001")
    newest = save(tmp_path, 4)
    prune_checkpoints(tmp_path, keep=2, ends=set(), newest=newest)
    assert [path.name[-1] for path in checkpoint_folders(tmp_path)] == ["1", "3", "4"]
    end, newest = save(tmp_path, 5), save(tmp_path, 0, "sft")
    prune_checkpoints(tmp_path, keep=2, ends={end}, newest=newest)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["pretrain-000001", "pretrain-000005", "sft-000000"]


def test_a_crash_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path, monkeypatch):
    folder = save(tmp_path, 4)
    replace = Path.replace

    def dies(self, target):
        if self.name.startswith(".saving-"):
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", dies)
        save(tmp_path, 4, tokenizer_json=b"new")
    assert not folder.exists()
    assert load_checkpoint(tmp_path, say=lambda _: None).tokenizer_files["tokenizer.json"] == b"{}"
    remove_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["pretrain-000004"]
    save(tmp_path, 4, tokenizer_json=b"new")
    assert load_checkpoint(tmp_path).tokenizer_files["tokenizer.json"] == b"new"


def test_a_failing_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 4)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_files", full)
        with pytest.raises(FaiscaError, match=r"pretrain-000005 cannot be saved \(No space left.*--resume"):
            save(tmp_path, 5)
    assert load_checkpoint(tmp_path).state.step == 4
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["pretrain-000004"]


def test_latest_may_be_missing_or_wrong(tmp_path, capsys):
    save(tmp_path, 4)
    save(tmp_path, 5)
    (tmp_path / "latest").write_text("checkpoints/pretrain-000004\n")
    assert load_checkpoint(tmp_path).state.step == 4
    for content in (b"checkpoints/pretrain-999999", b"\xff\x00", b"../../elsewhere", b""):
        (tmp_path / "latest").write_bytes(content)
        assert load_checkpoint(tmp_path).state.step == 5
        assert "latest names no checkpoint of this run: taking the newest" in capsys.readouterr().err
    (tmp_path / "latest").unlink()
    assert load_checkpoint(tmp_path).state.step == 5
    assert "latest is missing: taking the newest checkpoint" in capsys.readouterr().err


def test_a_damaged_checkpoint_that_is_named_is_an_error(tmp_path):
    folder = save(tmp_path, 4)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert read_files(folder)[1] == {"model.safetensors": "model.safetensors does not match its checksum"}
    with pytest.raises(VerificationError, match=r"is damaged \(model.safetensors does not match its checksum\)"):
        load_checkpoint(folder)


LEADS_OUT = '{"files": {"a/../../b": {"bytes": 0, "sha256": ""}}}'


@pytest.mark.parametrize("manifest", ["", "[]", "null", '{"files": 3}', LEADS_OUT])
def test_a_manifest_that_makes_no_sense_is_damage(manifest, tmp_path):
    folder = save(tmp_path, 4)
    (folder / "manifest.json").write_text(manifest)
    assert len(read_files(folder)[1]) == 1


def rewritten(folder: Path, **files: bytes) -> Path:
    """A stranger's checkpoint: other files, and a manifest that fits them."""
    content = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    target = folder.with_name("pretrain-000009")
    shutil.rmtree(target, ignore_errors=True)
    write_files(target, content | {name.replace("__", "."): text for name, text in files.items()})
    return target


def state_with(folder: Path, **changes) -> bytes:
    return json.dumps(json.loads((folder / "state.json").read_text()) | changes).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "rlhf"}, "'rlhf' step 4, and there is no such step: stages are pretrain, sft, grpo"),
        ({"stage": 3}, "no usable stage"),
        ({"step": -1}, "there is no such step"),
        ({"format": 2}, "has format 2, but this version reads 1: update"),
        ({"model": {}}, "these weights do not fit the model configuration: missing transformer_blocks"),
        ({"model": {"dims": 3}}, "model.dims is unknown: did you mean dim"),
        ({"config": {"pretrain": {"epochs": "many"}}}, "pretrain.epochs"),
        ({"progress": None}, "no usable progress"),
        ({"backend": None}, "no usable backend"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line(changes, message, tmp_path):
    folder = save(tmp_path, 4)
    with pytest.raises(FaiscaError, match=message) as raised:
        check(rewritten(folder, state__json=state_with(folder, **changes)))
    assert "\n" not in str(raised.value)


def test_arrays_that_do_not_fit_are_one_line(tmp_path):
    folder = save(tmp_path, 4)
    weights, moments = arrays()["model"], arrays()["optimizer"]
    wrong = {
        "cannot be read": {"model__safetensors": b"\x80\x04pickle"},
        "no JSON object": {"state__json": b"[1]"},
        "missing out_head.weight": {"model__safetensors": {n: w for n, w in weights.items() if n != "out_head.weight"}},
        "has shape": {"model__safetensors": weights | {"out_head.weight": np.zeros((3, 3), np.float32)}},
        "is float64": {"model__safetensors": weights | {"out_head.weight": weights["out_head.weight"].astype(float)}},
        "optimiser state does not fit": {"optimizer__safetensors": {"step": np.array(3)}},
        "not its weight's shape": {
            "optimizer__safetensors": moments | {"first_moment.out_head.weight": np.zeros((3, 3), np.float32)}
        },
    }
    for message, files in wrong.items():
        content = {n: c if isinstance(c, bytes) else safetensors.numpy.save(c) for n, c in files.items()}
        with pytest.raises(FaiscaError, match=message) as raised:
            check(rewritten(folder, **content))
        assert "\n" not in str(raised.value)


def test_grpo_needs_its_reference(tmp_path):
    folder = save(tmp_path, 4, "grpo")
    with pytest.raises(FaiscaError, match=r"missing token_embedding\.weight"):
        check(folder)
    check(save(tmp_path, 5, "grpo", reference=arrays()["model"]))


def test_numbers_that_are_not_finite_stay_strict_json(tmp_path):
    folder = save(tmp_path, 4, measured={"validation_loss": float("inf")})
    assert json.loads((folder / "state.json").read_text())["progress"]["measured"] == {"validation_loss": None}


def test_the_state_says_where_everything_stands(tmp_path):
    progress = Progress("pretrain", 7, total_steps=9, steps_per_epoch=3)
    state = state_of(progress, CONFIG, SMALL).to_json()
    assert state["cursor"] == {"epoch": 2, "step_in_epoch": 1}
    assert state["schedule"] == {"step": 7, "total_steps": 9}
    assert state["random"]["seed"] == CONFIG.run.seed and "Philox" in state["random"]["streams"]
    assert {"python", "faisca", "numpy", "torch"} <= state["versions"].keys()
    assert state["config"] == config_to_dict(CONFIG)


def test_a_checkpoint_with_options_that_went_is_read_where_they_are_off(tmp_path):
    folder = save(tmp_path, 4)
    state = json.loads((folder / "state.json").read_text())

    def with_scales(on: bool) -> Path:
        config = {"model": state["config"]["model"] | {"residual_scales": on}}
        config |= {"data": state["config"]["data"] | {"windows": "stream"}}
        model = state["model"] | {"residual_scales": on}
        return rewritten(folder, state__json=state_with(folder, config=state["config"] | config, model=model))

    assert load_checkpoint(with_scales(False)).state == load_checkpoint(folder).state
    with pytest.raises(FaiscaError, match=r"pretrain-000009.*model.residual_scales True: it was removed: train anew"):
        load_checkpoint(with_scales(True))


def test_best_is_the_lowest_of_the_newest_stage_that_measures():
    def at(stage: str, step: int, loss: float, portugal: float, measured_step: int | None = None) -> Progress:
        measured = {"validation_loss": loss, "portugal_validation_loss": portugal}
        return Progress(stage, step, measured=measured, measured_step=step if measured_step is None else measured_step)

    best = best_of(None, at("pretrain", 0, 9.0, 9.0))
    assert best is None  # nothing is learnt yet
    names = []
    for progress in (
        at("pretrain", 2, 5.0, 1.0),
        at("pretrain", 4, 6.0, 0.5),
        at("pretrain", 6, 4.0, 2.0, measured_step=5),
        at("pretrain", 8, 4.5, 2.0),
        at("sft", 2, 7.0, 3.0),
        at("sft", 4, 6.0, 3.5),
        at("sft", 6, 8.0, 2.5),
        Progress("grpo", 3),
    ):
        best = best_of(best, progress)
        names.append(best["checkpoint"])
    pretrain, sft = ["pretrain-000002"] * 3 + ["pretrain-000008"], ["sft-000002"] * 2 + ["sft-000006"] * 2
    assert names == pretrain + sft


def test_arrays_written_one_by_one_are_what_the_library_reads():
    rows = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    arrays = {"rows": rows, "odd": np.ones(7, np.float32), "step": np.array(3), "none": np.array([], np.uint64)}
    read = safetensors.numpy.load(b"".join(stored_chunks(arrays)))
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and np.array_equal(read[name], array), name
