"""The scripts of `benchmarks/`, as processes: what they conclude from results, and how they refuse."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from small_models import TWINS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BOTH = [str(RESULTS / "faisca-cpu.json"), str(RESULTS / "faisca-cpu-sampling.json")]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
ROWS = ("1 row", "24 rows")


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash"] if name.endswith(".sh") else [sys.executable]
    command += [str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)


@cache
def verdicts(*paths: str) -> dict[str, list[str]]:
    done = script("targets.py", *paths)
    assert done.returncode == 1, done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines() if ": " in line]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in row if cell.strip()] for row in rows)}


def test_targets_judge_several_files_the_last_one_first():
    found = verdicts(*BOTH)
    assert found["mlx: GRPO step, rows that end against reference"] == ["10.7×", "≥ 10×", "met", "faisca-cpu-sampling"]
    assert found["torch: pre-training step against reference"] == ["2.8×", "≥ 2×", "met", "faisca-cpu"]
    assert verdicts(BOTH[0])["mlx: GRPO step, rows that end against reference"][2:] == ["MISSED", "faisca-cpu"]


@pytest.mark.parametrize(
    ("line", "titles"),
    [
        ("torch training step", ["torch: pre-training step against reference"]),
        ("torch training step", ["torch: training's peak memory, resident against reference"]),
        ("MLX training step", ["mlx: pre-training step against naive_mlx"]),
        ("MLX training step", ["mlx: training's peak memory, device against naive_mlx"]),
        ("rollout ≥", ["torch: rollout, full rows against reference", "mlx: rollout, full rows against reference"]),
        ("GRPO step, full", [f"{twin}: GRPO step, full rows against reference" for twin in ("torch", "mlx")]),
        (
            "GRPO step, rows that end, ",
            [f"{twin}: GRPO step, rows that end against reference" for twin in ("torch", "mlx")],
        ),
        (
            "generation, 1 and 24 rows, ≥ 2 × transformers",
            [f"torch: generation, {n} against transformers" for n in ROWS],
        ),
        ("generation, 1 and 24 rows, ≥ 2 × mlx-lm", [f"mlx: generation, {n} against mlx_lm" for n in ROWS]),
    ],
)
def test_the_documents_ratios_are_those_of_its_files(line, titles):
    """docs/benchmarks.md, its table of targets: two digits of each measured ratio."""
    found = verdicts(*BOTH)
    (written,) = [row for row in DOCUMENT.read_text().splitlines() if row.startswith(f"| {line}")]
    ratios, verdict = written.split("|")[2:4]
    for title in titles:
        assert f"{float(found[title][0].rstrip('×')):.2g}" in re.findall(r"[\d.]+", ratios), (title, written)
    assert ("missed" in verdict) == any(found[title][2] == "MISSED" for title in titles)


@pytest.mark.parametrize(
    ("case", "line"),
    {"grpo_full": "full rows, four", "grpo_once": "full rows, one", "grpo_ending": "rows that end, four"}.items(),
)
def test_the_documents_grpo_steps_are_those_of_its_file(case, line):
    subjects = json.loads((RESULTS / "faisca-cpu-grpo.json").read_text())["subjects"]
    (written,) = [row for row in DOCUMENT.read_text().splitlines() if row.startswith(f"| {line}")]
    shown = [float(re.findall(r"[\d.]+", cell)[0]) for cell in written.split("|")[2:-1]]
    measured = [
        subjects[name]["measured"][case]["median"] for name in ("torch", "mlx", "reference", "trl", "mlx_lm_lora")
    ]
    assert shown == pytest.approx(measured, rel=0.006)


def test_what_was_not_measured_is_not_called_missed():
    found = verdicts(BOTH[1])["torch: matrix products' share of step"]
    assert found == ["–", "≥ 65 %", "not measured"]


def test_results_of_other_work_are_not_mixed(tmp_path):
    results = json.loads(Path(BOTH[1]).read_text())
    results["work"]["window"] = 1
    (tmp_path / "other.json").write_text(json.dumps(results))
    done = script("targets.py", BOTH[0], str(tmp_path / "other.json"))
    assert done.returncode == 2 and "measured other work" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("targets.py", [], "name the JSON files of faisca bench"),
        ("targets.py", ["absent.json"], "absent.json cannot be read"),
        ("data_preparation.py", ["--data", "sample"], "the gpt2 vocabulary cannot be downloaded"),
        ("startup.py", [], "name the folder of a run"),
        ("bits.py", [], "name the folders that faisca port exported"),
        ("run_gpu.sh", [], "name the headlines"),
        ("run_gpu.sh", ["absent.parquet"], "absent.parquet does not exist"),
        ("run_gpu.sh", ["sample"], "has no torch that finds a CUDA GPU"),
    ],
)
def test_a_script_that_cannot_work_says_so_in_one_line(name, arguments, message, tmp_path):
    python = tmp_path / "python"  # without torch, whatever this machine has
    python.write_text("#!/bin/sh\necho 'Traceback' >&2\nexit 1\n")
    python.chmod(0o755)
    empty = {"TIKTOKEN_CACHE_DIR": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9", "PYTHON": str(python)}
    done = script(name, *arguments, **empty)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("faisca: ") and message in line


@pytest.mark.parametrize("twin", TWINS)
def test_a_grpo_step_is_shown_part_by_part_with_its_products(twin):
    pytest.importorskip({"torch": "torch", "mlx": "mlx.core"}[twin])
    sizes = ["--preset", "tiny", "--quick", "--rounds", "1", "--device", "cpu"]
    done = script("grpo_parts.py", "--backend", twin, *sizes)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^ *([a-z -]+?) {2,}([\d,.]+) +([\d,.]+|–) +(\d+ %|–) +([\d,.]+)", done.stdout, re.M)
    names, taken, *_ = zip(*rows, strict=True)
    assert names == ("rollout", "rewards", "log-probabilities", "updates", "whole step"), done.stdout
    *parts, whole = (float(number.replace(",", "")) for number in taken)
    assert whole == pytest.approx(sum(parts), abs=4)  # each is rounded to a millisecond


def test_the_page_of_sizes_has_what_is_planned_now():
    """And what is planned for the smallest is what was measured, within the bounds of the plan's own tests."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import sizes

    found = sizes.PAGE.read_text(encoding="utf-8")
    assert sizes.page(found) == found, "run python benchmarks/sizes.py"
    settings = {sizes.key(twin, each): (twin, each) for each in sizes.measurable() for twin in sizes.TWINS}
    measured = json.loads(sizes.MEASURED.read_text())
    assert measured
    for name, bytes_measured in measured.items():
        twin, setting = settings[name]
        ratio = sizes.planned(twin, sizes.SIZES["135M"], setting) / bytes_measured
        assert 1 / 1.05 <= ratio <= 1.15, (name, ratio)
