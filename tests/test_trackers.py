"""Trackers: what the real libraries have of a run, told in two sittings; and a run where one is missing or fails.

trackio pins an older Pillow than ours, so it is in no extra: its test runs where somebody has installed it.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from faisca.cli import main
from faisca.errors import FaiscaError
from faisca.runs.log import RunLog, read_records
from faisca.trackers.following import FILE, follow
from faisca.trackers.tracker import TRACKERS, check_tracker, plain_name

CONFIG = {"preset": "tiny", "run": {"seed": 3, "stages": ("pretrain", "grpo")}, "grpo": {"reward": ("a", "b")}}
REWARD = "reward//home/me/../x.py:f_mean"
LOSSES = {1: 3.0, 2: 2.5, 3: 2.25}
"""by step; a resumed run repeats the second"""


def chart(folder: Path) -> None:
    (folder / "charts").mkdir(exist_ok=True)
    imsave(folder / "charts" / "grpo.png", np.linspace(0, 1, 48).reshape(4, 4, 3))


def sitting(name: str, folder: Path, steps: list[int], kept: int = 0) -> int:
    """A run, or its continuation; returns the bytes of `metrics.jsonl` after its first record."""
    with RunLog(folder, metrics_bytes=kept) as log:
        log.following = follow(name, folder, CONFIG, kept > 0, log.say)
        sizes = []
        for step in steps:
            log.record(stage="pretrain", step=step, loss=LOSSES[step], gradient=float("nan"))
            sizes.append(log.flush())
        log.record(stage="pretrain", step=steps[-1], samples=[f"É golo {steps[-1]}", "O fim"])
        log.record(stage="grpo", step=1, **{REWARD: 0.5}, best={"text": "o melhor", "reward": 1.0, "advantage": 2.0})
        chart(folder)
    return sizes[0]


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever a library writes is in the test's folder, and none of it leaves the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def told_twice(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Tell a run to a tracker, break it off after its first step, and resume it; returns the id of its record."""
    pytest.importorskip(TRACKERS[name].module, reason=f"{name} is missing")
    kept = sitting(name, folder, [1, 2])
    known = json.loads((folder / FILE).read_text())
    assert known["tracker"] == name
    sitting(name, folder, [2, 3], kept)
    assert json.loads((folder / FILE).read_text()) == known
    printed = capsys.readouterr().out
    assert f"tracker {name}: the record is {known['id']}\n" in printed
    assert f"tracker {name}: the record goes on with {known['id']}\n" in printed and "failed" not in printed
    return known["id"]


NUMBERS = {
    "pretrain/loss": [(1, 3.0), (2, 2.5), (2, 2.5), (3, 2.25)],
    "grpo/reward/home/me/x.py_f_mean": [(1, 0.5)] * 2,
}
"""what each tracker has, in order"""


def test_tensorboard_reads_a_run_of_two_sittings(quiet, capsys):
    told_twice("tensorboard", quiet / "spark", capsys)
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(quiet / "spark" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    assert NUMBERS["pretrain/loss"] == scalars["pretrain/loss"] and "pretrain/gradient" not in scalars
    assert set(scalars) == {"pretrain/loss", "pretrain/seconds", "grpo/seconds", "grpo/reward/home/me/x.py_f_mean"}
    assert tags["images"] == ["charts/grpo"]
    texts = {tag: events.Tensors(tag) for tag in tags["tensors"]}
    (first, second) = texts["pretrain/samples/text_summary"]
    assert first.tensor_proto.string_val[0].decode() == "É golo 2\n\nO fim" and (first.step, second.step) == (2, 3)
    assert b"o melhor" in texts["grpo/samples/text_summary"][0].tensor_proto.string_val[0]
    assert b'"run.seed": 3' in texts["config/text_summary"][0].tensor_proto.string_val[0]


def test_mlflow_reads_a_run_of_two_sittings(quiet, capsys):
    id = told_twice("mlflow", quiet / "spark", capsys)
    client = pytest.importorskip("mlflow").MlflowClient()
    run = client.get_run(id)
    assert (run.info.run_name, run.info.status) == ("spark", "FINISHED")
    assert run.data.params == {"preset": "tiny", "run.seed": "3", **{
        "run.stages": "('pretrain', 'grpo')", "grpo.reward": "('a', 'b')"}}  # fmt: skip
    for name, points in NUMBERS.items():
        assert sorted((one.step, one.value) for one in client.get_metric_history(id, name)) == points
    assert "pretrain/gradient" not in run.data.metrics
    assert [file.path for file in client.list_artifacts(id, "charts")] == ["charts/grpo.png"]
    assert {Path(file.path).name for file in client.list_artifacts(id, "samples")} == {
        "pretrain-000002.txt", "pretrain-000003.txt", "grpo-000001.txt"}  # fmt: skip
    (experiment,) = [one.name for one in client.search_experiments() if one.experiment_id == run.info.experiment_id]
    assert experiment == "faisca"


def wandb_records(file: Path) -> list:
    """The records in a .wandb file: chunks of 7 bytes of header (checksum, length, kind), in blocks of 32 KiB."""
    internal = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, at, whole, records = file.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            records.append(internal.Record.FromString(whole))
            whole = b""
    return records


def test_wandb_has_a_run_of_two_sittings_offline(quiet, capsys):
    id = told_twice("wandb", quiet / "spark", capsys)
    files = sorted((quiet / "spark" / "wandb").glob(f"offline-run-*/run-{id}.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    assert {(one.run.run_id, one.run.project, one.run.display_name) for one in records if one.HasField("run")} == {
        (id, "faisca", "spark")}  # fmt: skip
    rows = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
            for one in records if one.HasField("history")]  # fmt: skip
    losses = [(row["pretrain/step"], row["pretrain/loss"]) for row in rows if "pretrain/loss" in row]
    assert losses == NUMBERS["pretrain/loss"] and not any("pretrain/gradient" in row for row in rows)
    assert sum("charts/grpo/path" in row for row in rows) == 2
    configured = {item.key: json.loads(item.value_json) for one in records if one.HasField("run")
                  for item in one.run.config.update}  # fmt: skip
    assert configured["run.seed"] == 3
    tables = [json.loads(path.read_text()) for path in (quiet / "spark" / "wandb").rglob("*.table.json")]
    assert ["É golo 3", 3] in [row[::-1] for table in tables for row in table["data"]]


def test_trackio_reads_a_run_of_two_sittings(quiet, capsys):
    id = told_twice("trackio", quiet / "spark", capsys)
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    rows = storage.get_logs("faisca", id)
    for name, points in NUMBERS.items():
        assert sorted((row["step"], row[name]) for row in rows if name in row) == points
    assert not any("pretrain/gradient" in row for row in rows)
    assert storage.get_run_config("faisca", id)["run.seed"] == 3
    assert id.startswith("spark-") and "É golo 3" in str(rows) and sum("charts/grpo" in row for row in rows) == 2


# --- what does not go well ----------------------------------------------------------------------


class FailingError(Exception):
    """A tracker's own."""


class Failing:
    """A tracker that fails at its n-th call, and counts all."""

    id = "x"

    def __init__(self, at: int) -> None:
        self.calls, self._at = 0, at

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._call

    def _call(self, *_: object, **__: object) -> None:
        self.calls += 1
        if self.calls >= self._at:
            raise FailingError("no route\nto host")


@pytest.mark.parametrize("at", [1, 3, 7])
def test_a_tracker_that_fails_is_said_once_and_never_called_again(tmp_path, monkeypatch, capsys, at):
    failing = Failing(at)
    monkeypatch.setattr("faisca.trackers.following.open_tracker", lambda name, opening: failing)
    sitting("wandb", tmp_path / "run", [1, 2, 3])
    assert failing.calls == at
    said = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    words = "tracker wandb failed (no route to host): the run goes on without it, metrics.jsonl has everything"
    assert said == [words]
    assert [(one["stage"], one["step"]) for one in read_records(tmp_path / "run")] == [
        *(("pretrain", step) for step in (1, 2, 3, 3)), ("grpo", 1)]  # fmt: skip


def test_a_record_that_cannot_be_opened_stops_no_run(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file, where a folder has to be")
    sitting("tensorboard", tmp_path / "run", [1, 2])
    assert capsys.readouterr().out.count("tracker tensorboard failed") == 1
    assert len(read_records(tmp_path / "run")) == 4


def test_another_tracker_begins_a_record_of_its_own(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "faisca.trackers.following.open_tracker", lambda name, how: opened.append(how.id) or Failing(99)
    )
    kept = sitting("wandb", tmp_path, [1, 2])
    kept = sitting("mlflow", tmp_path, [2, 3], kept)
    sitting("mlflow", tmp_path, [2, 3], kept)
    sitting("mlflow", tmp_path, [1, 2])  # a new run, where an older one had been
    assert opened == ["", "", "x", ""]


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_missing_library_is_one_line_before_anything_is_made(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr("faisca.trackers.tracker.importable", lambda module: False)
    assert main(["run", "--preset", "tiny", "--run.tracker", name, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    row = TRACKERS[name]
    assert line == (
        f"faisca: run.tracker {name} needs {row.module}, which is not installed: pip install {row.package}, "
        "or --run.tracker none"
    )
    assert not (tmp_path / "run").exists()


def test_an_installed_one_and_none_are_taken(monkeypatch):
    check_tracker("none")
    monkeypatch.setattr("faisca.trackers.tracker.importable", lambda module: module == "wandb")
    check_tracker("wandb")
    with pytest.raises(FaiscaError, match="mlflow-skinny"):
        check_tracker("mlflow")


def test_no_tracker_is_imported_where_none_is_asked_for():
    modules = {row.module for row in TRACKERS.values()}
    code = f"import sys, faisca.training.stages; print(sorted({modules} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("loss", "loss"),
        ("reward/keywords:25 de Abril_mean", "reward/keywords_25_de_Abril_mean"),
        ("reward//a/../b.py:f_std", "reward/a/b.py_f_std"),
        ("reward/regex:^\\d+$_mean", "reward/regex___d___mean"),
        ("reward/É_mean", "reward/É_mean"),
    ],
)
def test_names_are_such_as_all_trackers_take(name, plain):
    assert plain_name(name) == plain


def test_a_run_of_all_stages_is_followed(material, tmp_path, monkeypatch):
    """From the command line, through the real loop: every number of `metrics.jsonl` is there, and each chart."""
    from small_runs import start

    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("tensorboardX")
    start(material, tmp_path / "run", "torch", "--run.tracker", "tensorboard")
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    told = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    recorded = {
        (f"{record['stage']}/{name}", record["step"]): value
        for record in read_records(tmp_path / "run")
        for name, value in record.items()
        if name in ("loss", "validation_loss", "grad_norm", "reward_mean", "kl", "full_bits_per_byte")
    }
    assert len(recorded) > 30
    assert {key: told[key] for key in recorded} == pytest.approx(recorded, rel=1e-6)
    assert set(events.Tags()["images"]) == {"charts/pretrain", "charts/sft", "charts/grpo"}
