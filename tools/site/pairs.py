"""Which definition of one twin stands beside which of the other: a row each. A public one alone is an error."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chapters import TWINS, Chapter
from definitions import ROOT, Definition, Module, SiteError, read

CONTRACT = "faisca/backend.py"


@dataclass(frozen=True)
class Row:
    """A definition in up to three columns; `anchor` is unique on its page, and begins with its file's stem."""

    anchor: str
    core: Definition | None = None
    torch: Definition | None = None
    mlx: Definition | None = None

    @property
    def title(self) -> str:
        return self.any.name

    @property
    def twins(self) -> tuple[Definition | None, Definition | None]:
        return self.torch, self.mlx

    @property
    def any(self) -> Definition:
        return next(one for one in (self.torch, self.mlx, self.core) if one is not None)


def twin_rows(module: str, root: Path = ROOT) -> list[Row]:
    """The rows of a module, in the order of both files; SiteError for public definitions without a partner."""
    torch, mlx = (read(f"{twin}/{module}.py", root) for twin in TWINS)
    if problems := [*_alone(torch, mlx), *_alone(mlx, torch)]:
        raise SiteError("\n".join(problems))
    rows = []
    for name in merged([one.name for one in torch.definitions], [one.name for one in mlx.definitions]):
        ours, theirs = torch.find(name), mlx.find(name)
        rows.append(Row(f"{module}.{name}", contract(name, root), ours, theirs))
    return rows


def core_rows(names: Sequence[str], root: Path = ROOT) -> list[Row]:
    """The rows of what stands in the core alone: whole files, or `FILE:NAME`."""
    found = []
    for entry in names:
        path, _, name = entry.partition(":")
        module = read(path, root)
        definition = module.find(name)
        if name and definition is None:
            raise SiteError(f"{path}: no definition {name}; adapt tools/site/chapters.py")
        found += [definition] if definition else module.definitions
    return [Row(f"core.{one.module}.{one.name}", core=one) for one in found]


def merged(ours: list[str], theirs: list[str]) -> list[str]:
    """Our names in order; those that they alone have, each after the one that stands before it there."""
    names = list(ours)
    for position, name in enumerate(theirs):
        if name not in names:
            before = theirs[position - 1] if position else None
            names.insert(names.index(before) + 1 if before in names else 0, name)
    return names


def contract(name: str, root: Path = ROOT) -> Definition | None:
    """What the boundary says of a function: the method of `Backend`, or a class of that name."""
    boundary = read(CONTRACT, root)
    return boundary.find(f"Backend.{name}") or (boundary.find(name) if name[:1].isupper() else None)


def reason(row: Row, root: Path = ROOT) -> str:
    """Why one twin alone has a definition: which of its own call it."""
    (definition,) = [one for one in row.twins if one]
    last, users = definition.name.split(".")[-1], []
    for other in read(definition.path, root).definitions:
        inner = other.name.startswith(f"{definition.name}.")
        if other is not definition and not inner and _mentions(other.node, last):
            users.append(other)
    methods = [one for one in users if one.kind != "class"]
    named = sorted({one.name: None for one in methods or users})
    if not named and "." in definition.name:
        return f"part of `{definition.name.split('.')[0]}`"
    return "needed by " + " and ".join(f"`{name}`" for name in named[:3]) if named else "used by its file alone"


def chapter_rows(chapter: Chapter, modules: list[str], root: Path = ROOT) -> list[Row]:
    """All rows of a chapter, in the order of its page."""
    inner = [row for module in modules for row in twin_rows(module, root)]
    return [*core_rows(chapter.before, root), *inner, *core_rows(chapter.after, root)]


def _alone(ours: Module, theirs: Module) -> list[str]:
    known = {one.name for one in theirs.definitions}
    return [
        f"{one.path}:{one.first}: {one.name} has no partner in {theirs.path}"
        for one in ours.definitions
        if one.kind != "constant" and not one.private and one.name not in known
    ]


def _mentions(node: ast.AST, name: str) -> bool:
    return any(
        (isinstance(one, ast.Name) and one.id == name) or (isinstance(one, ast.Attribute) and one.attr == name)
        for one in ast.walk(node)
    )
