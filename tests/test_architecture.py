"""The house is as docs/ARCHITECTURE.md draws it: folders import downwards, and what documents name exists."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "faisca"
DOCUMENT = ROOT / "docs" / "ARCHITECTURE.md"
LONGEST = 120
"""lines of docs/ARCHITECTURE.md"""
MOST = 15
"""modules in a folder"""

FOUNDATION = {"errors", "text"}
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "text": set(),
    "streams": set(),
    "system": FOUNDATION,
    "backends": {"system"},
    "config": {"backends", *FOUNDATION},
    "trackers": {"system", *FOUNDATION},
    "group": set(),
    "backend": {"backends", "config", "group", *FOUNDATION},
    "processes": {"backend", "backends", "config", "group", *FOUNDATION},
    "parameters": {"config", "streams", "system", *FOUNDATION},
    "rotation": {"config"},
    "bigrams": {"config"},
    "muon": {"config", "parameters", "system"},
    "lora": {"config", "parameters", "system"},
    "data": {"config", "streams", *FOUNDATION},
    "runs": {"backend", "config", "lora", "muon", "parameters", "system", "trackers", *FOUNDATION},
    "rewards": {"data", *FOUNDATION},
    "certificate": {"backend", "backends", "config", "parameters", "streams"},
    "planning": {"backend", "config", "lora", "muon", "parameters", "system", *FOUNDATION},
    "training": {
        "backend",
        "backends",
        "certificate",
        "config",
        "data",
        "lora",
        "group",
        "parameters",
        "planning",
        "processes",
        "rewards",
        "runs",
        "streams",
        "system",
        "trackers",
    }
    | {"streams", "system", *FOUNDATION},
    "report": {"bench", "config", "data", "loaded_model", "parameters", "runs", "system", "training", *FOUNDATION},
    "play": {"backend", "backends", "config", "data", "loaded_model", "report", "runs", "streams", "training"}
    | FOUNDATION,
    "commands": {"config", "data", "loaded_model", "play", "porting", "report", "runs", "system", "training"}
    | {"backends", "processes", *FOUNDATION},
}
"""what each room of the core may import; the rooms that are not here (parity, porting, bench, …) are above all these"""
ABOVE = {"api", "loaded_model", "parity", "porting", "bench", "tuning", "report", "commands", "cli"}


def room_of(module: str) -> str:
    """The room below `faisca` that a module stands in: `faisca.data.tokenizer` is in `data`."""
    return module.split(".")[1] if module.count(".") else ""


def imports(path: Path) -> set[str]:
    """The rooms of the core that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "faisca":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {room_of(name) for name in names}
        elif isinstance(node, ast.Import):
            found |= {room_of(alias.name) for alias in node.names if alias.name.startswith("faisca.")}
    return found - {""}


def upward(path: Path) -> set[str]:
    """The rooms that a file of the core imports and must not."""
    room = path.relative_to(CORE).parts[0].removesuffix(".py")
    allowed = FLOORS.get(room)
    return set() if allowed is None else imports(path) - allowed - {room}


def test_folders_import_downwards():
    broken = {path.relative_to(ROOT).as_posix(): sorted(upward(path)) for path in CORE.rglob("*.py") if upward(path)}
    assert not broken


def test_the_check_can_fail(tmp_path):
    path = tmp_path / "new.py"
    path.write_text("def f():\n    from faisca.training.run import Run\n    import faisca.bench.work\n")
    assert imports(path) == {"training", "bench"}
    assert not imports(path) & FLOORS["data"]


def test_every_room_has_its_floor_and_its_words():
    rooms = {path.name.removesuffix(".py") for path in CORE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__main__", "__pycache__", "py.typed", "README.md"} == FLOORS.keys() | ABOVE
    for folder in [path for path in CORE.iterdir() if path.is_dir() and path.name != "__pycache__"]:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# ") and 3 <= len(lines) <= 9, folder
        for name in re.findall(r"`(\w+\.py)`", "\n".join(lines)):
            assert (folder / name).is_file() or name in ("cli.py", "interop.py", "grpo.py"), f"{folder}: {name}"


def test_no_folder_holds_too_many_modules():
    for folder in {
        path.parent for root in (CORE, ROOT / "faisca_torch", ROOT / "faisca_mlx") for path in root.rglob("*.py")
    }:
        assert sum(not path.name.startswith("__") for path in folder.glob("*.py")) <= MOST, folder


# --- docs/ARCHITECTURE.md -----------------------------------------------------------------------


def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def test_it_is_short():
    assert len(document().splitlines()) <= LONGEST


PLACE = r"`((?:faisca|faisca_torch|faisca_mlx|tests|parity_tests|docs|benchmarks)/[\w./]*(?::{1,2}\w+)?)`"
"""a path, with the symbol or the test behind it"""
WHERE = [
    line.split("|")[3].strip()
    for line in (ROOT / "docs" / "mlx.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and line.count("|") == 4 and ".py" in line.split("|")[3]
]
"""the column of docs/mlx.md that says where a cause of memory is met"""


def named_places() -> list[str]:
    """Every place in the document."""
    return sorted(set(re.findall(PLACE, document())))


def test_mlx_md_names_places_and_nothing_else():
    assert len(WHERE) >= 8
    for cell in WHERE:
        assert re.fullmatch(f"{PLACE}(, {PLACE})*", cell), cell


@pytest.mark.parametrize("place", sorted({*named_places(), *re.findall(PLACE, "".join(WHERE))}))
def test_what_it_names_exists(place: str):
    path, _, symbol = place.replace("::", ":").partition(":")
    assert (ROOT / path).exists(), place
    if symbol:
        names = set()
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        assert symbol in names, place


def test_it_names_enough_to_be_checked():
    assert len(named_places()) >= 25


def test_its_map_is_that_of_the_code():
    """The table between its marks is what `python benchmarks/reading.py --map` prints."""
    printed = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "reading.py"), "--map"], capture_output=True, text=True, check=True
    )
    (written,) = re.findall(r"<!-- map[^>]*-->\n(.*?)\n<!-- end of map -->", document(), re.DOTALL)
    assert written.strip() == printed.stdout.strip()
