"""docs/notebook.py: a program that runs, and cells that a notebook is made of."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "docs" / "notebook.py"


def cells() -> list[tuple[bool, str]]:
    """Whether each cell is text, and its lines."""
    parts = re.split(r"^# %%(.*)\n", SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert parts[0] == "", "the file begins with a cell"
    return [(mark.strip() == "[markdown]", body) for mark, body in zip(parts[1::2], parts[2::2], strict=True)]


def test_its_cells_are_texts_and_code():
    texts = [body for is_text, body in cells() if is_text]
    code = [body for is_text, body in cells() if not is_text]
    assert len(texts) >= 4 and len(code) >= 5
    for body in texts:
        assert all(line.startswith("#") or not line for line in body.splitlines())
    for body in code:
        assert ast.parse(body).body, "a cell does something"


def test_it_runs_as_a_program(tmp_path):
    environment = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, last = map(float, re.findall(r"loss (\d\.\d+) at first, (\d\.\d+) after \d+ steps", done.stdout)[0])
    assert last < first and (tmp_path / "losses.png").stat().st_size > 1000
    assert re.search(r"reward \d\.\d+ before, \d\.\d+ after", done.stdout)
