"""The documentation's commands run: every block with `<!-- tested -->` on the line before it.

A bash block runs as one script that stops at the first error, a python block as one program; each
in a folder of its own, with this interpreter's `bin` first on PATH. Blocks of one file run in the
same folder, in order, so a later one can use what an earlier one made.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_there_are_documents_to_run():
    assert documents(), "a test of no document would pass"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_commands_in_the_documentation_run(document, tmp_path):
    for line, language, code in marked_blocks(document.read_text(encoding="utf-8")):
        done = run_block(language, code, tmp_path)
        output = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == 0, f"{document.name}, line {line}: status {done.returncode}\n{code}\n{output}"


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
