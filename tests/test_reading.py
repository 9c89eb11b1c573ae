"""The script that measures how much there is to read: it counts right, and its lists name files that exist."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "reading.py"


@pytest.fixture(scope="module")
def reading():
    spec = importlib.util.spec_from_file_location("reading", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_functions_are_counted_with_their_lines_and_parameters(reading, tmp_path):
    (tmp_path / "a.py").write_text(
        "class A:\n    def method(self, a, /, b, *rest, c=1, **more):\n"
        "        def inner(): pass\n\n        return inner\n"
        "async def wide(a, b, c): ...\n"
    )
    found = {f.name: (f.lines, f.parameters) for f in reading.functions("a.py", tmp_path)}
    assert found == {"method": (4, 5), "inner": (1, 0), "wide": (1, 3)}
    assert reading.lines("a.py", tmp_path) == 6
    assert reading.modules((".",), tmp_path) == [Path("a.py")]


def test_it_runs_and_its_json_agrees_with_the_source():
    done = subprocess.run([sys.executable, "-I", str(SCRIPT), "--json"], capture_output=True, text=True, timeout=60)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if all(goal["met"] for goal in found["goals"]) else 1), done.stderr
    root = SCRIPT.parent.parent
    for folder, count in found["modules"].items():
        assert count == sum(not path.name.startswith("__") for path in (root / folder).glob("*.py"))
    assert found["functions"]["longest"]["lines"] >= found["functions"]["p90"] >= found["functions"]["median"] > 0
    assert not any(wide["path"].startswith("lessons/") for wide in found["functions"]["wide"])
    for stage in ("pre-training", "GRPO"):
        assert found["reading"][stage].keys() == found["around"][stage].keys() == {"faisca_torch", "faisca_mlx"}
    for goal in found["goals"]:
        assert goal["met"] == (goal["value"] <= goal["most"])


def test_a_file_that_has_moved_is_named(reading, monkeypatch):
    monkeypatch.setitem(reading.READING, "GRPO", "faisca/config/sections.py {twin}/nowhere.py")
    with pytest.raises(SystemExit, match=r"faisca_(torch|mlx)/nowhere\.py: no such file; adapt READING"):
        reading.measure()


def test_no_file_is_read_twice(reading):
    for stage in reading.READING:
        files = (reading.READING[stage] + reading.AROUND[stage]).split()
        assert len(files) == len(set(files))


def test_the_map_has_every_room_with_its_title_and_its_lines():
    done = subprocess.run([sys.executable, "-I", str(SCRIPT), "--map"], capture_output=True, text=True, timeout=60)
    head, rule, *rows = done.stdout.splitlines()
    assert (head, rule) == ("| folder | lines | what |", "| --- | ---: | --- |")
    root = SCRIPT.parent.parent
    rooms = {f"faisca/{path.name}" for path in (root / "faisca").iterdir() if list(path.glob("*.py"))}
    found = {}
    for row in rows:
        folder, count, title = row.strip("| ").split(" | ")
        assert (root / folder.strip("`") / "README.md").read_text(encoding="utf-8").startswith(f"# {title}\n")
        found[folder.strip("`/")] = int(count.replace(",", ""))
    assert found.keys() == rooms | {"faisca_torch", "faisca_mlx", "lessons"}
    for folder, count in found.items():
        assert count == sum(len(path.read_bytes().splitlines()) for path in (root / folder).rglob("*.py")), folder


def test_another_option_is_refused():
    done = subprocess.run([sys.executable, "-I", str(SCRIPT), "--all"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("usage: ")


def test_it_needs_the_standard_library_alone():
    imports = [n for n in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))) if isinstance(n, ast.Import)]
    froms = [n for n in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} | {node.module for node in froms}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
