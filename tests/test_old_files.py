"""Run folders and exports from before the restructuring still load, evaluate, resume and port.

`fixtures/before/make.py` says how they were made, `expected.json` what they came to then.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import TWINS, open_twin

import faisca
from faisca.cli import main

BEFORE = Path(__file__).parent / "fixtures" / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text(encoding="utf-8"))
RUNS = ("stopped-in-sft", "stopped-in-grpo")
SAMPLED = {"football_share", "distinct_share", "samples", "kl"}
"""the kinds of measures that one sampled token may change"""
TIMED = {"seconds", "tokens_per_second", "peak_memory_bytes", "backends"}
TOLERANCE = 1e-4
LOSS_TOLERANCE = 2e-5
"""of a resumed run: a tenth of what losing the optimiser's moments would change"""


@pytest.fixture(params=TWINS)
def backend(request) -> str:
    open_twin(request.param)
    return request.param


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the old files, as the current folder: the runs name their data `headlines.jsonl`."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before"


def few_logits(folder: Path, backend: str) -> list:
    """The logits that `make.py` recorded."""
    return faisca.load(folder, backend=backend).logits(np.array(EXPECTED["ids"]))[:, -1, ::20].tolist()


def close(found: Any, expected: Any) -> Any:
    return np.allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_computes_the_same_logits(run, backend, old):
    assert close(few_logits(old / run, backend), EXPECTED[run]["logits"])


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_evaluates_to_the_same_losses(run, backend, old, capsys):
    assert main(["evaluate", run, "--data", "headlines.jsonl", "--backend", backend, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("validation_loss", "bits_per_byte", "portugal_validation_loss"):
        assert found[name] == pytest.approx(EXPECTED[run]["evaluated"][name], abs=TOLERANCE), name


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_resumes_and_ends_as_if_it_had_not_been_stopped(run, backend, old):
    assert main(["run", "--resume", run, "--backend", backend]) == 0
    stages = json.loads((old / run / "summary.json").read_text(encoding="utf-8"))["stages"]
    expected = EXPECTED[run]["if_not_stopped"]
    assert [stage["stage"] for stage in stages] == [stage["stage"] for stage in expected]
    for found, wanted in zip(stages, expected, strict=True):
        assert found.keys() >= wanted.keys()
        for name in wanted.keys() - TIMED:
            if isinstance(wanted[name], float) and not name.startswith(tuple(SAMPLED)):
                assert found[name] == pytest.approx(wanted[name], abs=LOSS_TOLERANCE), (found["stage"], name)
    assert stages[-1]["kl_after"] == pytest.approx(expected[-1]["kl_after"], rel=1e-2)


@pytest.mark.parametrize(("export", "run"), [("hf", "stopped-in-sft"), ("weights.npz", "stopped-in-grpo")])
def test_an_old_export_comes_in_as_the_run_that_it_came_from(export, run, backend, old):
    assert main(["port", export, "again", "--to", "faisca", "--no-verify"]) == 0
    assert close(few_logits(old / "again", backend), EXPECTED[run]["logits"])


@pytest.mark.parametrize(("target", "to"), [("again", "hf"), ("again.safetensors", "torch"), ("again.npz", "mlx")])
def test_an_old_run_goes_out_in_every_format_and_is_verified(target, to, old):
    """The target's own library compares it with the run: `port` verifies unless told not to."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")
    assert main(["port", "stopped-in-sft", target, "--to", to]) == 0
    assert (old / target).exists()
    if to == "hf":  # mlx-lm's users trusted its code once: it has not changed by a byte
        assert (old / target / "faisca_gpt2.py").read_bytes() == (old / "hf" / "faisca_gpt2.py").read_bytes()
