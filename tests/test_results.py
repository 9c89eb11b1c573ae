"""Results of the benchmark that people send: each fits the schema, and `benchmarks/RESULTS.md` is made from them."""

import importlib.util
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from faisca.bench.results import SCHEMA, TITLES, find_misfit, read_results
from faisca.cli import main

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
RESULT = json.loads((ROOT / "benchmarks" / "results" / "faisca-cpu.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def table() -> Any:
    """The script benchmarks/results_table.py as a module."""
    spec = importlib.util.spec_from_file_location("results_table", ROOT / "benchmarks" / "results_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_results() -> None:
    assert len(FILES) >= 2, "a test of no file would pass"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_committed_result_fits_the_schema(path: Path) -> None:
    assert find_misfit(read_results(path)) == ""


def test_the_schema_is_one_and_describes_every_field() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)

    def undescribed(node: Any, name: str) -> list[str]:
        if not isinstance(node, dict):
            return [found for item in node for found in undescribed(item, name)] if isinstance(node, list) else []
        found = []
        for key, value in node.get("properties", {}).items():
            target = schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value
            if "description" not in target and "properties" not in target:
                found.append(f"{name}.{key}")
        return found + [f for key, value in node.items() for f in undescribed(value, f"{name}.{key}")]

    assert undescribed(schema, "") == []


def test_the_schema_names_every_measure() -> None:
    described = json.loads(SCHEMA.read_text())["$defs"]["subject"]["properties"]["measured"]["description"]
    for key in TITLES:
        assert key in described or key.startswith("generate_"), key


def changed(place: str, value: Any) -> dict[str, Any]:
    """A committed result with one field changed; `place` is its path, with dots."""
    results = deepcopy(RESULT)
    *folders, last = place.split(".")
    node = results
    for folder in folders:
        node = node[folder]
    node[last] = value
    return results


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("machine.power", "solar", "machine.power: 'solar' is not one of"),
        ("machine.processor", None, "machine.processor: None is not of type 'string'"),
        ("machine.hostname", "mine", "'hostname' was unexpected"),
        ("rounds", 0, "rounds: 0 is less than the minimum"),
        ("subjects", {}, "subjects: "),
        ("subjects.torch.measured.pretrain.median", "fast", "subjects.torch.measured.pretrain.median: 'fast'"),
        ("subjects.torch.measured.pretrain", {"low": 1.0}, "'median' is a required property"),
        ("subjects.torch.computed_with", {"device": "cpu"}, "subjects.torch.computed_with: 'dtype' is a required"),
        ("subjects.torch.sustained", {"seconds": 1}, "subjects.torch.sustained: "),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_with_the_field(
    place: str, value: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(changed(place, value)), encoding="utf-8")
    assert main(["bench", "compare", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"faisca: {file} does not fit: ") and words in line and "schema.json" in line


def test_another_format_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.json"
    file.write_text(json.dumps(changed("format", "faisca bench 0")), encoding="utf-8")
    assert main(["bench", "compare", str(file)]) == 2
    assert "no result of this version's faisca bench: it lacks format 'faisca bench 1'" in capsys.readouterr().err


# --- the table ------------------------------------------------------------------------------------


def test_the_committed_table_is_that_of_the_committed_results(table: Any) -> None:
    """`python benchmarks/results_table.py` writes it."""
    written = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert written == table.write_table(ROOT / "benchmarks" / "results")


def test_a_new_chip_is_a_row_of_its_works_section(table: Any, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(RESULT))
    mine = deepcopy(RESULT)
    mine["machine"] |= {"processor": "Apple M9", "gpu_cores": 12, "power": "mains", "power_mode": "automatic"}
    chosen = {"device": "gpu", "gpu": "Apple M9", "dtype": "float32", "mlx": "0.32.4", "tf32": "off (really)"}
    measured = {"pretrain": {"median": 1e6}, "sustained": {"median": 9e5}, "energy": {"median": 0.25}}
    sustained = {"drop_percent": 10.4}
    mine["subjects"] = {"mlx": {"computed_with": chosen, "measured": measured, "sustained": sustained}}
    ends = {"seconds": 60, "pause_seconds": 20, "tokens_per_second": 1, "span_seconds": 30, "first": 1, "last": 1}
    sustained |= ends | {"energy": {"why_not": "?"}, "points": [[1, 1]]}
    (tmp_path / "m9.json").write_text(json.dumps(mine))
    quick = deepcopy(RESULT)
    quick["work"]["quick"] = True
    (tmp_path / "quick.json").write_text(json.dumps(quick))
    lines = table.write_table(tmp_path).splitlines()
    first, second = (lines.index(f"## preset faisca{more}") for more in ("", ", quick"))
    row = lines[first + 4]  # the fastest is first
    for words in ("Apple M9, 2 cores, 12 GPU cores", "mlx 0.32.4, Apple M9, float32, TF32 off", "| 1,000,000 |"):
        assert words in row
    assert "| 900,000 (drop 10 %) | 0.25 J |" in row and "[m9](results/m9.json)" in row
    assert first < second and len(lines[first:second]) == 8  # a heading, three rows, and the baselines left out
