"""The documentation's commands run: every block with `<!-- tested -->` on the line before it.

A bash block runs as one script that stops at the first error, a python block as one program; each
in a folder of its own, with this interpreter's `bin` first on PATH. Blocks of one file run in the
same folder, in order, so a later one can use what an earlier one made.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from faisca.backends import BACKENDS
from faisca.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
MARK = "<!-- tested -->"
TIMEOUT = 600
"""seconds for one block"""
RUNNERS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


def marked_blocks(text: str) -> list[tuple[int, str, str]]:
    """Line number, language and code of each marked block; a mark without such a block is an error."""
    blocks, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip() != MARK:
            continue
        fence = re.fullmatch(r"(`{3,})(bash|python)", lines[number].strip()) if number < len(lines) else None
        assert fence, f"line {number}: {MARK} has no bash or python block on the next line"
        closing = next((i for i in range(number + 1, len(lines)) if lines[i].strip() == fence[1]), None)
        assert closing, f"line {number}: the block never ends"
        blocks.append((number + 1, fence[2], "\n".join(lines[number + 1 : closing])))
    return blocks


def run_block(language: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    command = [*RUNNERS[language], code]
    return subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=TIMEOUT
    )


def documents() -> list[Path]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in found if path.is_file() and marked_blocks(path.read_text(encoding="utf-8"))]


PREPARED = {"README.md": "faisca run --preset tiny --out runs/demo"}
"""what stands for work of minutes that a document's blocks begin with: README's, for `make demo`"""


def test_there_are_documents_to_run():
    assert documents(), "a test of no document would pass"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_commands_in_the_documentation_run(document, tmp_path):
    prepared = run_block("bash", PREPARED.get(document.name, "true"), tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    for line, language, code in marked_blocks(document.read_text(encoding="utf-8")):
        done = run_block(language, code, tmp_path)
        output = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == 0, f"{document.name}, line {line}: status {done.returncode}\n{code}\n{output}"


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
        assert words[1] in COMMANDS, f"{name}: {line}"
        options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        assert options <= options_of(words[1]), f"{name}: {line}: {options - options_of(words[1])}"


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
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/porting.md", "docs/benchmarks.md"]
)
def test_lines_of_documents_are_short(name):
    """At most 140 characters, except rows of tables and pictures, which cannot be broken."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 140 and not line.startswith(("|", "!"))] == []


def test_supported_pythons_are_said_alike():
    """pyproject.toml, README and the Makefile's script, which reads pyproject.toml."""
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    first, last = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", requires).groups()
    assert f"**Python 3.{first} to 3.{int(last) - 1}**" in (ROOT / "README.md").read_text()


# --- the mechanism ------------------------------------------------------------------------------

EXAMPLE = f"""
```bash
exit 1   # not marked
```

{MARK}
```bash
faisca --help > help.txt
test -s help.txt
```

text {MARK} in a line is no mark

{MARK}
```python
import faisca
assert "usage: faisca" in open("help.txt").read()
```
"""


def test_marked_blocks_are_found():
    found = marked_blocks(EXAMPLE)
    assert [(line, language) for line, language, _ in found] == [(7, "bash"), (15, "python")]
    assert found[0][2] == "faisca --help > help.txt\ntest -s help.txt"


def test_marked_blocks_run_in_one_folder(tmp_path):
    statuses = [run_block(language, code, tmp_path).returncode for _, language, code in marked_blocks(EXAMPLE)]
    assert statuses == [0, 0] and [path.name for path in tmp_path.iterdir()] == ["help.txt"]


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("bash", "false\ntrue"),
        ("bash", "false | cat"),
        ("bash", "echo $no_such_variable"),
        ("bash", "faisca no-such-command"),
        ("python", "assert False"),
    ],
)
def test_a_block_that_fails_is_seen(tmp_path, language, code):
    assert run_block(language, code, tmp_path).returncode != 0


@pytest.mark.parametrize(
    "text", [MARK, f"{MARK}\n\n```bash\ntrue\n```", f"{MARK}\n```sh\ntrue\n```", f"{MARK}\n```bash\ntrue"]
)
def test_a_mark_without_a_block_is_an_error(text):
    with pytest.raises(AssertionError, match="line 1: "):
        marked_blocks(text)
