"""A row as HTML: core, PyTorch and MLX, each with its place in the source, and what differs in bold."""

import sys
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import words
from definitions import ROOT, Definition, SiteError
from marks import code, differing, pieces
from pairs import Row, reason
from reads import uses

NAMES = {"faisca_torch": "PyTorch", "faisca_mlx": "MLX", "faisca": "core"}
PLACE = "../source/"
"""from a chapter to the pages of the source"""


def row_html(row: Row, root: Path = ROOT) -> str:
    """The columns of a row, and the planted faults that tests have caught in it."""
    if row.torch is None and row.mlx is None:
        columns = _column("once", "core, once", row.core, code(row.core))
    else:
        columns = _core(row, root) + "".join(_twins(row, root))
    return f'<div class="row">{columns}</div>{_faults(row)}'


def where(definition: Definition) -> str:
    """The link to a definition's lines in the source."""
    lines = f"{definition.first}–{definition.last}" if definition.last > definition.first else f"{definition.first}"
    return f'<a href="{PLACE}{definition.path}.html#L{definition.first}">{definition.path}:{lines}</a>'


def _core(row: Row, root: Path) -> str:
    """The boundary's word for it, and what it reads of the core."""
    used = uses(row, root)
    items = "".join(
        f'<li><a href="{PLACE}{use.path}.html#L{use.line}"><code>{escape(use.name)}</code></a> '
        f"<span>{words.html(use.about)}</span></li>"
        for use in used
    )
    reads = f'<p class="reads">reads</p><ul class="uses">{items}</ul>' if items else ""
    if row.core:
        return _column("core", "core", row.core, code(row.core) + reads)
    kind, inner = ("core", reads) if reads else ("core empty", '<p class="none">nothing of the core</p>')
    return f'<div class="col {kind}"><p class="where"><strong>core</strong></p>{inner}</div>'


def _twins(row: Row, root: Path) -> list[str]:
    if row.torch and row.mlx:
        ours, theirs = pieces(row.torch), pieces(row.mlx)
        _, mine, yours = words.parted(row.torch.docstring, row.mlx.docstring)
        bold = differing(ours, theirs), differing(theirs, ours)
        return [
            _column(side, NAMES[_package(one)], one, own_words(*said) + code(one, marked))
            for side, one, said, marked in (
                ("torch", row.torch, (mine, yours), bold[0]),
                ("mlx", row.mlx, (yours, mine), bold[1]),
            )
        ]
    (only,) = filter(None, row.twins)
    other = "MLX" if only is row.torch else "PyTorch"
    why = f'<p class="none">only {NAMES[_package(only)]}: {words.html(reason(row, root))}</p>'
    empty = f'<div class="col {other.lower()}"><p class="where"><strong>{other}</strong></p>{why}</div>'
    here = _column("torch" if only is row.torch else "mlx", NAMES[_package(only)], only, code(only))
    return [here, empty] if only is row.torch else [empty, here]


def _column(side: str, label: str, definition: Definition, inner: str) -> str:
    head = f'<p class="where"><strong>{label}</strong> {where(definition)}</p>'
    return f'<div class="col {side}">{head}{inner}</div>'


def own_words(ours: str, theirs: str) -> str:
    """What one twin alone says of a definition or a file."""
    return f'<p class="own">{words.html_beside(ours, theirs)}</p>' if ours else ""


def _package(definition: Definition) -> str:
    return definition.path.split("/")[0]


def _faults(row: Row) -> str:
    """The bugs of parity_tests/bugs that were planted in these lines, with the tests that catch them."""
    shown = filter(None, (row.core, *row.twins))
    found = [fault for one in shown for fault in _planted(one.path) if _in(one, fault[0])]
    if not found:
        return ""
    items = "".join(
        f'<li>{escape(name)} <a href="{PLACE}{path}.html"><code>{escape(test)}</code></a></li>'
        for _, name, path, test in found
    )
    count = "1 planted fault, caught by a test" if len(found) == 1 else f"{len(found)} planted faults, caught by tests"
    return f'<details class="faults"><summary>{count}</summary><ul>{items}</ul></details>'


def _in(definition: Definition, line: int) -> bool:
    return any(number == line for number, _ in definition.lines)


@cache
def _planted(path: str) -> list[tuple[int, str, str, str]]:
    """Of each bug that is planted in a file: its line and name, and the test that catches it, with its file."""
    text, found = (ROOT / path).read_text(encoding="utf-8"), []
    for bug in [bug for bug in _bugs() if bug.file == path]:
        if bug.old not in text:
            raise SiteError(f"{path}: the planted bug {bug.name!r} has no place there: adapt parity_tests/bugs")
        file, _, test = bug.rung.partition("::")
        if file.isdigit():
            file = next(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"parity_tests/test_{file}_*.py"))
        line = text[: text.index(bug.old)].count("\n") + 1
        found.append((line, bug.name, file.split()[0], test.split()[0] if test else Path(file).name))
    return found


@cache
def _bugs() -> tuple[Any, ...]:
    sys.path.insert(0, str(ROOT / "parity_tests"))
    try:
        from bugs import all_bugs

        return all_bugs()
    finally:
        sys.path.pop(0)
