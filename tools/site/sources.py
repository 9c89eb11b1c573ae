"""The source as pages: a line each can be linked to, and from each definition a link back to its row."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from book import places
from definitions import ROOT, read
from jinja2 import Environment
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename

FOLDER = "source"
SHOWN = ("faisca_torch", "faisca_mlx", "faisca", "lessons", "parity_tests", "tests", "benchmarks", "docs")
KINDS = {".py", ".toml", ".sh", ".json"}
ALWAYS = ("faisca_torch", "faisca_mlx", "lessons")
LINKED = re.compile(rf'href="[./]*{FOLDER}/([^"#]+)\.html')
TEMPLATE = Path(__file__).parent / "pages" / "source.html"
LARGEST = 100_000
"""bytes: what is longer is data"""


@cache
def source_files(root: Path = ROOT) -> list[str]:
    """Every file that may have a page, relative to the root, in order."""
    found = [path for folder in SHOWN for path in sorted((root / folder).rglob("*")) if path.suffix in KINDS]
    hidden = ("__pycache__", "node_modules", "fixtures")
    kept = [path for path in found if path.is_file() and not set(hidden) & set(path.parts)]
    return [path.relative_to(root).as_posix() for path in kept if path.stat().st_size <= LARGEST]


def write_source_pages(folder: Path, paths: list[str], repository: str, root: Path = ROOT) -> None:
    """A page a file, by a small template of our own; `repository` is an address of its files on the web, or empty."""
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    for path in paths:
        page = folder / FOLDER / f"{path}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        up, parent = "../" * (path.count("/") + 1), str(Path(path).parent)
        names = {"path": path, "name": Path(path).name, "folder": parent, "up": up, "repository": repository}
        page.write_text(template.render(names, lines=_lines(path, root)), encoding="utf-8")


def _lines(path: str, root: Path) -> list[dict[str, str]]:
    """Each line's code, coloured, and the row of the definition that begins there."""
    text = (root / path).read_text(encoding="utf-8")
    back = _rows_of(path, root) if path.endswith(".py") else {}
    coloured = highlight(text, get_lexer_for_filename(path, stripnl=False), HtmlFormatter(nowrap=True)).split("\n")
    shown = coloured[: len(text.splitlines())]
    return [{"code": Markup(line), "row": back.get(number, "")} for number, line in enumerate(shown, 1)]


def linked_files(pages: Iterable[str]) -> list[str]:
    """The files that the text of some pages links to, and the twins and lessons: these have a page each."""
    found = {path for text in pages for path in LINKED.findall(text)}
    return [path for path in source_files() if path in found or path.startswith(tuple(f"{one}/" for one in ALWAYS))]


def code_page(paths: list[str]) -> str:
    """The list of the files that have a page, by folder."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(str(Path(path).parent), []).append(path)
    parts = ["# The source", "With line numbers; a definition that has a row face to face links to it."]
    for folder, inside in folders.items():
        parts.append(f'```{{raw}} html\n<div class="anchor" id="{folder}"></div>\n```')
        parts.append(f"## `{folder}/`")
        parts.append(" · ".join(f'<a href="{FOLDER}/{path}.html">{Path(path).name}</a>' for path in inside))
    return "---\nhide-toc: true\n---\n\n" + "\n\n".join(parts) + "\n"


def _rows_of(path: str, root: Path) -> dict[int, str]:
    """The page and anchor of the row of each definition of a file, by the line that it begins on."""
    known = places(root)
    if not any(file == path for file, _ in known):
        return {}
    return {one.first: known[path, one.name] for one in read(path, root).definitions if (path, one.name) in known}
