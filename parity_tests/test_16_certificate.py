"""The certificate: it sees every historical fault where it is, and raises no alarm without one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import Twin, installed
from faults import Fault, Faulty, certificate_of, torch_as_it_was
from random_work import draw

from faisca.backend import load_backend
from faisca.certificate.certify import Reference, Verdict, find_safe
from faisca.cli import main
from faisca.runs.log import read_records
from faisca.runs.state import Progress
from faisca.training import stages
from faisca.training.run import Run

FAULTS: list[tuple[str, Fault]] = []
if installed("torch"):
    import faults_torch

    FAULTS += [("torch", fault) for fault in faults_torch.FAULTS]
if installed("mlx"):
    import faults_mlx

    FAULTS += [("mlx", fault) for fault in faults_mlx.FAULTS]


def test_there_are_enough_of_them():
    assert len({fault.thread for _, fault in FAULTS}) >= 25 or not (installed("torch") and installed("mlx"))


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[f"{name} {fault}" for name, fault in FAULTS])
def test_it_sees_a_historical_fault_and_nothing_without_it(name: str, fault: Fault):
    backend = load_backend(name)
    with torch_as_it_was():
        found = certificate_of(backend, fault, planted=True)
        healthy = certificate_of(backend, fault, planted=False)
    assert healthy.passed, healthy.reason
    if fault.precision:
        assert (found.precision, found.passed) == (fault.precision, True)
        off = [f for f in found.findings if not f.passes("float32")]
    else:
        assert not found.passed
        off = found.failures
    named = [f for f in off if f.kind == fault.kind and fault.array in f.array]
    assert named, [f.words(found.precision) for f in off[:9]]
    assert any(f.zero for f in named) == fault.zero or not fault.zero


def healthy(name: str, number: int) -> None:
    """Assert that a random configuration raises no alarm."""
    drawn = draw(number, name)
    if drawn.config.compile == "on" and shutil.which("g++") is None:
        pytest.skip("MLX compiles for the CPU with g++, which is missing")
    found = Reference(load_backend(name), drawn.work).certify(drawn.config)
    assert found.passed, (number, drawn.config, drawn.work.model, drawn.work.grpo, found.reason)
    assert found.precision == drawn.config.dtype


@pytest.mark.parametrize("number", range(4))
def test_no_false_alarm(twin: Twin, number: int):
    if twin.device == "cpu":
        healthy(twin.name, 2 * number)


@pytest.mark.full
@pytest.mark.parametrize("number", range(100))
def test_no_false_alarm_on_a_hundred_random_configurations(twin: Twin, number: int):
    if twin.device == "cpu":
        healthy(twin.name, number)


def search(fault: Fault, name: str) -> tuple[Verdict, Faulty, list[str]]:
    """What the search for a safe way comes to on a device with a fault."""
    device, said = Faulty(load_backend(name), fault.plant), []
    with torch_as_it_was():
        verdict = find_safe(device, fault.config, fault.work, said.append, lambda: None)  # type: ignore[arg-type]
    return verdict, device, said


@pytest.mark.parametrize(
    ("thread", "changed", "option"),
    [
        ("pytorch#153957", "loss chunks of 128 rows", {"loss_chunk": 128}),
        ("pytorch#182012", "no compilation", {"compile": "off"}),
        ("pytorch#181133", "explicit attention", {"attention": "explicit"}),
        ("mlx-lm-lora#50", "no compilation", {"compile": "off"}),
        ("triton#4541", "explicit attention", {"attention": "explicit"}),
    ],
)
def test_the_first_safe_alternative_is_taken(thread: str, changed: str, option: dict[str, object]):
    found = [(name, fault) for name, fault in FAULTS if fault.thread == thread]
    if not found:
        pytest.skip(f"the twin of {thread} is not installed")
    ((name, fault),) = found
    verdict, _, said = search(fault, name)
    assert verdict.certificate.passed and verdict.changed == changed and verdict.because
    assert verdict.config == replace(fault.config, **option)
    assert verdict.to_json()["verdict"] == "changed"
    assert verdict.tried[-1] == changed and said[-1] == f"  with {changed}: passes"
    assert len(said) == 1 + len(verdict.tried)


def test_where_nothing_passes_everything_was_tried():
    pytest.importorskip("torch")
    (fault,) = (fault for _, fault in FAULTS if fault.thread == "pytorch#183825")
    verdict, _, _ = search(fault, "torch")
    assert not verdict.certificate.passed and verdict.to_json()["verdict"] == "failed"
    assert verdict.tried[:2] == ("loss chunks of 256 rows", "loss chunks of 128 rows")
    assert "explicit attention" in verdict.tried and verdict.tried[-1].startswith("loss chunks of 64 rows, no comp")
    assert verdict.config == fault.config


# --- in a run -----------------------------------------------------------------------------------


def start(folder: Path, device: Faulty, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """`faisca run` of two stages on a device with a fault."""
    monkeypatch.setattr("faisca.training.run.load_backend", lambda name: device)
    options = ["--preset", "tiny", "--backend", "torch", "--device", "cpu", "--stages", "pretrain,sft"]
    return main(["run", *options, "--run.preflight", "on", "--out", str(folder), *more])


def faulty(thread: str) -> Faulty:
    (fault,) = (fault for _, fault in FAULTS if fault.thread == thread)
    return Faulty(load_backend("torch"), fault.plant)


def test_a_run_trains_in_the_way_that_passes_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    pytest.importorskip("torch")
    device = faulty("pytorch#181133")
    assert start(tmp_path / "run", device, monkeypatch) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "with explicit attention: passes" in printed and "with explicit attention: the stage trains so" in printed
    stages = json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]
    for entry in stages:
        assert entry["certificate"]["verdict"] == "changed"
        assert entry["certificate"]["changed"] == "explicit attention" and entry["certificate"]["because"]
        assert entry["certificate"]["seconds"] > 0
    assert [r for r in read_records(tmp_path / "run") if "certificate" in r]
    assert [runtime.attention for runtime in device.trained_with] == ["explicit", "explicit"]


def test_a_device_that_is_always_wrong_is_refused_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    pytest.importorskip("torch")
    device, folder = faulty("pytorch#183825"), tmp_path / "run"
    device.enabled = False
    after_pretraining(monkeypatch, lambda: setattr(device, "enabled", True))
    assert start(folder, device, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("faisca: torch on cpu computes sft wrong") and error.count("\n") == 1
    assert "gradient of" in error and f"--resume {folder} --run.preflight off" in error
    assert json.loads((folder / "summary.json").read_text())["stages"][0]["stage"] == "pretrain"
    assert main(["run", "--resume", str(folder), "--run.preflight", "off"]) == 0
    assert [s["stage"] for s in json.loads((folder / "summary.json").read_text())["stages"]] == ["pretrain", "sft"]


def test_a_run_on_the_cpu_is_not_certified_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    device = faulty("pytorch#183825")
    assert start(tmp_path / "run", device, monkeypatch, "--run.preflight", "auto") == 0
    assert device.learners == 2  # the stages' own


def after_pretraining(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    def train(run: Run, progress: Progress, model: Any, checkpoint: Any) -> None:
        loop(run, progress, model, checkpoint)
        then()

    loop = stages.train
    monkeypatch.setattr(stages, "train", train)
