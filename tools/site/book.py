"""The pages of the twins face to face, as Markdown: a chapter each, and where each definition has its row."""

from functools import cache
from pathlib import Path

import words
from chapters import TWINS, Chapter, chapters
from definitions import ROOT, SiteError, read
from pairs import Row, chapter_rows
from rows import own_words, row_html

FOLDER = "twins"


@cache
def book(root: Path = ROOT) -> dict[str, tuple[Chapter, list[Row]]]:
    """All chapters by name, in order, with their rows; SiteError with every problem, a line each."""
    found, problems = {}, []
    for chapter, modules in chapters(root):
        try:
            found[chapter.name] = chapter, chapter_rows(chapter, modules, root)
        except SiteError as error:
            problems.append(str(error))
    if problems:
        raise SiteError("\n".join(problems))
    return found


@cache
def places(root: Path = ROOT) -> dict[tuple[str, str], str]:
    """Where each definition has its row, by file and name: a page of the site and an anchor."""
    return {
        (one.path, one.name): f"{FOLDER}/{name}.html#{row.anchor}"
        for name, (_, rows) in reversed(book(root).items())
        for row in rows
        for one in filter(None, (row.core, *row.twins))
    }


def chapter_page(name: str, root: Path = ROOT) -> str:
    """A chapter: what it is about, its definitions at a glance, and a row each."""
    chapter, rows = book(root)[name]
    parts = ["---\nhide-toc: true\n---", f"# {chapter.title}", chapter.about, _raw(_glance(rows))]
    for i, row in enumerate(rows):
        if i == 0 or row.any.path != rows[i - 1].any.path:
            parts += _opening(row, root)
        parts.append(f"### `{row.title}`")
        parts.append(_raw(f'<div class="anchor" id="{row.anchor}"></div>'))
        if shared := explanation(row):
            parts.append(words.markdown(shared))
        parts.append(_raw(row_html(row, root)))
    return "\n\n".join(parts) + "\n"


def explanation(row: Row) -> str:
    """What is said of a row once: what both twins' docstrings say, or the boundary's where they share nothing."""
    if row.torch and row.mlx:
        shared = words.parted(row.torch.docstring, row.mlx.docstring)[0]
        return shared or (row.core.docstring if row.core else "")
    return row.any.docstring


def _opening(row: Row, root: Path) -> list[str]:
    """A file's heading, and its docstring: once, and what each twin's says alone."""
    if row.torch is None and row.mlx is None:
        return [f"## `{row.core.path}`", words.markdown(read(row.core.path, root).docstring)]
    module = row.any.module
    texts = [read(f"{twin}/{module}.py", root).docstring for twin in TWINS]
    shared, ours, theirs = words.parted(*texts)
    parts = [f"## `{module}.py`", words.markdown(shared)]
    if ours or theirs:
        told = [
            f'<div class="col {side}"><p class="where"><strong>{label}</strong></p>{own_words(*said)}</div>'
            for side, label, said in (("torch", "PyTorch", (ours, theirs)), ("mlx", "MLX", (theirs, ours)))
        ]
        parts.append(_raw(f'<div class="row told">{"".join(told)}</div>'))
    return parts


def _glance(rows: list[Row]) -> str:
    """Links to all rows, a line a file."""
    files: dict[str, list[str]] = {}
    for row in rows:
        once = row.torch is None and row.mlx is None
        alone = not once and None in row.twins
        style = ' class="alone"' if alone else ""
        files.setdefault(row.any.path if once else f"{row.any.module}.py", []).append(
            f'<a{style} href="#{row.anchor}">{row.title}</a>'
        )
    items = "".join(f"<li><b>{path}</b> {' '.join(links)}</li>" for path, links in files.items())
    return f'<nav class="glance" aria-label="Definitions of this chapter"><ul>{items}</ul></nav>'


def _raw(text: str) -> str:
    return f"```{{raw}} html\n{text}\n```"
