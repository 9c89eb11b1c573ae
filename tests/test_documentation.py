"""The documentation's commands run and print what is shown: every block with a mark, see shown_blocks.py.

A bash block runs as one script that stops at the first error, a python block as one program; each
with this interpreter's `bin` first on PATH. Blocks of one file run in the same folder, a new one, in order,
so a later one can use what an earlier one made.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from shown_blocks import difference, marked_blocks, run_block

from faisca.backends import BACKENDS
from faisca.cli import COMMANDS, main
from faisca.processes.launched import TOGETHER

ROOT = Path(__file__).parent.parent


def documents() -> list[Path]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in found if path.is_file() and marked_blocks(path.read_text(encoding="utf-8"))]


PREPARED = {"README.md": "faisca run --preset tiny --out runs/demo"}
"""what stands for work of minutes that a document's blocks begin with: README's, for `make demo`"""
NEEDED = {"tutorial.md": ("mlx_lm", "transformers")}
"""packages that a document uses and a plain installation on Linux lacks"""


def test_there_are_documents_to_run():
    assert documents(), "a test of no document would pass"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_commands_in_the_documentation_run(document, tmp_path):
    for package in NEEDED.get(document.name, ()):
        pytest.importorskip(package, reason=f"{package}, whose commands {document.name} runs, is missing")
    prepared = run_block("bash", PREPARED.get(document.name, "true"), tmp_path)
    assert prepared.returncode == 0, prepared.stdout
    for block in marked_blocks(document.read_text(encoding="utf-8")):
        done = run_block(block.language, block.code, tmp_path)
        where = f"{document.name}, line {block.line}"
        assert done.returncode == 0, f"{where}: status {done.returncode}\n{block.code}\n{done.stdout[-4000:]}"
        if block.shown is not None:
            assert not (other := difference(block, done.stdout)), f"{where}: it prints something else\n{other}"


def test_every_block_of_the_tutorial_shows_what_it_prints():
    """But those that print nothing; only the installation and the folder for what follows do not run."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = marked_blocks(text)
    assert [block.line for block in blocks if block.shown is None and "faisca" in block.code] == []
    assert text.count("\n```bash") - len(blocks) == 2


# --- what documents and remedies say ------------------------------------------------------------


def texts() -> dict[str, str]:
    """What users read: documents, and sources with their help and errors."""
    patterns = ("*.md", "docs/**/*.md", ".github/**/*.md", "faisca*/**/*.py", "benchmarks/**/*.py", "benchmarks/*.sh")
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def test_every_installation_named_works_from_a_checkout():
    """The package is on no index: its name with an extra cannot be installed, a path with one can."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set()
    for name, text in [*texts().items(), *((name, row.remedy) for name, row in BACKENDS.items())]:
        assert "faisca-mlx[" not in text and "install faisca-mlx" not in text, name
        named |= {extra for group in re.findall(r"['\"]\.\[([\w,-]+)\]['\"]", text) for extra in group.split(",")}
    assert {"torch", "mlx-cuda"} <= named <= extras.keys()


def commands_shown() -> list[tuple[str, str]]:
    """Every `faisca COMMAND …` in a code block of a document, with the document's name; wrapped lines joined."""
    shown = []
    for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        lines = [
            line
            for language, block in blocks
            if language in ("", "bash")
            for line in block.replace("\\\n", " ").splitlines()
        ]
        shown += [(path.name, line) for line in lines if line.startswith("faisca ")]
    return shown


@cache
def options_of(command: str) -> set[str]:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main([command, "--help"]) == 0
        assert command != "bench" or main(["bench", "compare", "--help"]) == 0
    return set(re.findall(r"--[a-z][\w.-]*", text.getvalue()))


def test_the_documents_commands_and_options_exist():
    """What takes too long to run in a test has at least no option that is gone."""
    shown = commands_shown()
    assert {"README.md", "porting.md", "benchmarks.md", "checkpoints.md"} <= {name for name, _ in shown}
    for name, line in shown:
        words = shlex.split(line, comments=True)
        if words[1:] == ["--version"]:
            continue
        assert words[1] in COMMANDS, f"{name}: {line}"
        options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        known = options_of(words[1])
        if words[1] == "launch":  # and those of the command that is launched
            known = known.union(*(options_of(word) for word in words[2:] if word in TOGETHER))
        assert options <= known, f"{name}: {line}: {options - known}"


def test_readme_uses_the_folder_that_the_demo_writes():
    """Every run that README's blocks read is `make demo`'s, or is written in README."""
    lines = [" ".join(shlex.split(line, comments=True)) for name, line in commands_shown() if name == "README.md"]
    (demo,) = re.findall(r"n=1; out=(runs/\S+);", (ROOT / "Makefile").read_text())
    written = {demo, *re.findall(r"--out (runs/\S+)", "\n".join(lines))}
    read = {word for line in lines for word in re.findall(r"(?<!--out )(runs/[\w-]+)", line)}
    assert demo in read and read <= written


# --- numbers ------------------------------------------------------------------------------------

IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="module")
def refresh():
    """The script docs/refresh.py as a module."""
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generated(refresh, document: Path) -> str:
    (table,) = re.findall(f"{refresh.BEGIN}(.*?){refresh.END}", document.read_text(encoding="utf-8"), re.DOTALL)
    return table


def test_readmes_table_is_that_of_its_run(refresh):
    summary = json.loads((IMAGES / "run.json").read_text())
    assert [entry["stage"] for entry in summary["stages"]] == ["pretrain", "sft", "grpo"]
    assert generated(refresh, ROOT / "README.md") == refresh.run_table(summary)


def test_readmes_picture_is_that_of_its_run():
    with Image.open(IMAGES / "run.png") as picture:
        assert picture.info["summary"] == hashlib.sha256((IMAGES / "run.json").read_bytes()).hexdigest()
        assert picture.width > 3 * picture.height


def test_the_quantisation_table_is_that_of_its_run(refresh):
    measured = json.loads((IMAGES / "quantised.json").read_text())
    assert generated(refresh, ROOT / "docs" / "porting.md") == refresh.quantised_table(measured)
    summary = json.loads((IMAGES / "run.json").read_text())  # the same checkpoint: other titles, so only about as good
    assert measured[0]["bits_per_byte"] == pytest.approx(summary["stages"][1]["bits_per_byte_after"], rel=0.1)


def test_a_table_is_put_in_its_place_again_and_again(refresh, tmp_path):
    document = tmp_path / "x.md"
    document.write_text(f"before\n{refresh.BEGIN}old\n{refresh.END}after\n")
    for _ in range(2):
        refresh.put_table(document, "| new |\n")
        assert document.read_text() == f"before\n{refresh.BEGIN}| new |\n{refresh.END}after\n"


@pytest.mark.parametrize(
    "name",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/porting.md", "docs/benchmarks.md", "docs/tutorial.md"],
)
def test_lines_of_documents_are_short(name):
    """At most 140 characters, except rows of tables, pictures and outputs, which cannot be broken."""
    text = re.sub(r"^```text\n.*?^```$", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 140 and not line.startswith(("|", "!"))] == []


def test_supported_pythons_are_said_alike():
    """pyproject.toml, README and the Makefile's script, which reads pyproject.toml."""
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    first, last = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", requires).groups()
    assert f"**Python 3.{first} to 3.{int(last) - 1}**" in (ROOT / "README.md").read_text()
