"""`faisca parity`: the ladder's core on the user's machine, its table, its JSON and its exit status."""

import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import PAIRED, Twin

from faisca import backends
from faisca.certificate.compare import TOLERANCES, Tolerance
from faisca.cli import main
from faisca.config.files import load_preset
from faisca.errors import FaiscaError
from faisca.parity import command
from faisca.parity.cases import Arrays, Case, Side
from faisca.parity.rungs import Rung
from faisca.training.stages import run

pytestmark = pytest.mark.skipif(not PAIRED, reason="it compares the two twins, and only one is installed")


def test_a_table_and_exit_status_0(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["parity"]) == 0
    printed = capsys.readouterr().out
    assert "compared with torch cpu, on a model of 169,344 parameters" in printed
    assert "FAIL" not in printed and "…" not in printed and "comparisons pass" in printed


def test_tf32_is_off_before_a_framework_starts(monkeypatch: pytest.MonkeyPatch):
    """Unless somebody has set it: MLX and NVIDIA's libraries read it once."""
    seen: list[tuple[str | None, str | None]] = []

    def look() -> None:
        seen.append((os.environ.get("MLX_ENABLE_TF32"), os.environ.get("NVIDIA_TF32_OVERRIDE")))
        raise FaiscaError("enough")

    monkeypatch.setattr("faisca.parity.command.find_sides", look)
    for given in (None, "1"):
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
        monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
        if given:
            monkeypatch.setenv("MLX_ENABLE_TF32", given)
        assert main(["parity"]) == 2
    assert seen == [("0", "0"), ("1", "0")]


def test_json_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = load_preset("tiny")
    once = dataclasses.replace(config.pretrain, max_steps=1)
    only = dataclasses.replace(config.run, stages=("pretrain",), backend="torch", device="cpu")
    run(dataclasses.replace(config, pretrain=once, run=only), tmp_path / "run")
    capsys.readouterr()
    assert main(["parity", str(tmp_path / "run"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True and report["yardstick"] == "torch cpu"
    assert report["model"]["vocabulary_size"] == 512 and report["parameters"] == 50_688
    assert {rung["rung"] for rung in report["rungs"]} == {1, 2, 3, 4, 5, 6, 7, 8, 10}
    assert all(rung["difference"] <= rung["tolerance"] for rung in report["rungs"])
    assert [(one["stage"], one["passed"]) for one in report["certificates"]] == [("pretrain", True)] * 2


def without_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "compare_sides", lambda sides, case: [])


def test_a_preset_is_certified_on_both_backends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    without_ladder(monkeypatch)
    assert main(["parity", "--preset", "tiny"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "certificate of preset tiny" in printed and "FAIL" not in printed
    for side in ("torch", "mlx"):
        for stage in ("pretrain", "grpo"):
            assert re.search(rf"{stage}, {side} \w+ in float32: (\d+) of \1 arrays agree with {side} on", printed)
    assert "pretrain torch cpu gradient" in printed and "grpo mlx cpu rollout" in printed


def test_a_certificate_that_fails_is_exit_status_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    without_ladder(monkeypatch)
    none = Tolerance(0.0, 0.0, 0.0, "in norm")
    monkeypatch.setitem(TOLERANCES, "gradient", none)
    monkeypatch.setattr("faisca.certificate.compare.SENSITIVITY_TIMES", 0)
    assert main(["parity", "--preset", "tiny", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    assert not report["certificates"][0]["passed"] and "gradient of" in report["certificates"][0]["failures"][0]


def test_a_preset_and_a_run_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["parity", str(tmp_path), "--preset", "tiny"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert main(["parity", "--preset", "tinny"]) == 2
    assert "preset 'tinny' is unknown" in capsys.readouterr().err


def test_a_difference_is_exit_status_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A rung that measures what is not equal, and nothing else."""

    def its_own_name(side: Side, case: Case) -> Arrays:
        return {"name": np.array([0.0, len(side.backend.__name__)])}

    monkeypatch.setattr(command, "RUNGS", (Rung(1, "length of the name", its_own_name, 1e-3),))
    monkeypatch.setattr(command, "BFLOAT16_RUNGS", ())
    monkeypatch.setattr(command, "settings", lambda new_tokens: [])
    monkeypatch.setattr(
        command,
        "find_sides",
        lambda: {"torch cpu": Twin("torch", "cpu").side, "mlx cpu": Twin("mlx", "cpu").side},
    )
    assert main(["parity"]) == 1
    printed = capsys.readouterr().out
    assert "1 of 4 comparisons FAILED" in printed
    assert "name[1]: 10 instead of 12; largest difference 2" in " ".join(printed.split())


@pytest.mark.parametrize("missing", ["torch", "mlx"])
def test_one_backend_alone_is_one_line_with_the_remedy(
    missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backends, "importable", lambda module: not module.startswith(missing))
    assert main(["parity"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("faisca: parity compares both backends") and error.count("\n") == 1
    assert f'pip install ".[{missing}' in error


def test_a_checkpoint_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["parity", str(tmp_path)]) == 2
    assert "is no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_cuts_no_word_and_no_number(width: int, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    titles = ("log-probabilities", "tokens that differ, 105 ties", "AdamW: change, two steps")
    sides = ("mlx cpu", "torch cuda")
    rows = [command.RungResult(7, title, side, 1.25e-6, 1e-5, "") for title in titles for side in sides]
    command._print_table(rows, {"torch cpu": SimpleNamespace(details={})}, command.make_case(None))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    words = {
        word for text in (*titles, *sides, "rung largest allowed verdict 1e-05 1.3e-06 pass") for word in text.split()
    }
    assert words <= set(printed.split())
