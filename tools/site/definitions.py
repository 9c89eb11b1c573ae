"""The definitions of a Python file, in its order, read with `ast`: nothing is imported, so no framework is needed."""

import ast
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MERGED = {"__init__"}
"""methods that are shown with their class"""
SAME = {"__call__": "forward"}
"""MLX's name of what torch calls otherwise"""


class SiteError(Exception):
    """What keeps the site from being built: a line a problem, each with its file and line."""


@dataclass(frozen=True, eq=False)
class Definition:
    """A function, class, method or constant: `lines` are numbered, without the docstring, and begin at the margin."""

    path: str
    """relative to the root"""
    name: str
    """`Attention.forward`; MLX's `__call__` goes by that name, too"""
    kind: str
    """function, class or constant"""
    first: int
    last: int
    docstring: str
    lines: tuple[tuple[int, str], ...]
    node: ast.AST

    @property
    def private(self) -> bool:
        return any(part.startswith("_") for part in self.name.split("."))

    @property
    def module(self) -> str:
        return Path(self.path).stem


@dataclass(frozen=True)
class Module:
    """A file: its docstring, and its definitions in order."""

    path: str
    docstring: str
    definitions: tuple[Definition, ...]

    def find(self, name: str) -> Definition | None:
        return next((one for one in self.definitions if one.name == name), None)


@cache
def read(path: str, root: Path = ROOT) -> Module:
    """Read a file; SiteError where there is none."""
    if not (root / path).is_file():
        raise SiteError(f"{path}: no such file; adapt tools/site/chapters.py")
    text = (root / path).read_text(encoding="utf-8")
    tree, source = ast.parse(text), text.splitlines()
    found: list[Definition] = []
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef):
            found.append(_definition(path, source, node, node.name))
        elif isinstance(node, ast.ClassDef):
            found.append(_definition(path, source, node, node.name))
            found += [
                _definition(path, source, method, f"{node.name}.{SAME.get(method.name, method.name)}")
                for method in node.body
                if isinstance(method, ast.FunctionDef) and method.name not in MERGED
            ]
        elif name := _constant(node):
            found.append(_definition(path, source, node, name, _text(after)))
    return Module(path, ast.get_docstring(tree) or "", tuple(found))


def _definition(path: str, source: list[str], node: ast.stmt, name: str, after: str = "") -> Definition:
    """`after` is the text that stands below a constant and explains it."""
    first, left_out = _first(node), set()
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        docstring, kind = ast.get_docstring(node) or "", "class" if isinstance(node, ast.ClassDef) else "function"
        if docstring:
            left_out |= _range(node.body[0])
    else:
        docstring, kind = after, "constant"
    if isinstance(node, ast.ClassDef):
        methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
        for method in methods:
            left_out |= set() if method.name in MERGED else _range(method)
            left_out |= _range(method.body[0]) if method.name in MERGED and ast.get_docstring(method) else set()
    kept = [number for number in range(first, node.end_lineno + 1) if number not in left_out]
    texts = textwrap.dedent("\n".join(source[number - 1] for number in kept)).splitlines()
    lines = _squeezed([(number, line) for number, line in zip(kept, texts, strict=False)])
    return Definition(path, name, kind, first, node.end_lineno, docstring, lines, node)


def _squeezed(lines: list[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
    """Without blank lines at the ends, nor where something was left out between two."""
    found: list[tuple[int, str]] = []
    for number, line in lines:
        if line.strip() or (found and found[-1][1].strip()):
            found.append((number, line.rstrip()))
    while found and not found[-1][1]:
        found.pop()
    if len(found) > 1 and not found[1][1]:
        del found[1]
    return tuple(found)


def _first(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _range(node: ast.stmt) -> set[int]:
    return set(range(_first(node), node.end_lineno + 1))


def _constant(node: ast.stmt) -> str:
    """The one name that a statement of a module gives a value; empty where it is none that readers need."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        name = node.target.id
    else:
        return ""
    return "" if name.startswith("__") else name


def _text(node: ast.stmt | None) -> str:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return node.value.value if is_text else ""
