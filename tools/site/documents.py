"""The documents of the repository as pages of the site: the same text, its links turned to where things stand there."""

import posixpath
import re
from pathlib import Path

from book import places
from definitions import ROOT, read
from sources import ALWAYS, source_files
from sources import FOLDER as SOURCE

GROUPS = {
    "Learn": ("docs/tutorial", "docs/pt/*", "docs/ARCHITECTURE", "docs/grpo", "docs/ingredients", "docs/parity"),
    "Use": ("docs/python", "docs/rewards", "docs/chat", "docs/porting", "docs/report", "docs/trackers"),
    "On your machine": ("docs/tuning", "docs/sizes", "docs/checkpoints", "docs/mlx", "docs/blas"),
    "Numbers": ("docs/benchmarks", "benchmarks/RESULTS", "docs/recipes"),
    "Reference": ("api", "code", "CONTRIBUTING", "CHANGELOG"),
}
"""the documents' order on the site; those that are named nowhere follow under More"""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s]+)\)")
CODE_PLACE = re.compile(r"(?<![\[`])`([\w.-]+(?:/[\w.-]+)+\.(?:py|toml|sh|json))(?:::?([\w.]+))?`(?!\])")
FENCE = re.compile(r"\s*(`{3,}|~{3,})")


def documents(root: Path = ROOT) -> dict[str, str]:
    """The text of each document that becomes a page, by its path in the repository."""
    paths = [*root.glob("docs/*.md"), *root.glob("docs/pt/*.md"), *root.glob("benchmarks/RESULTS.md")]
    paths += [root / "CONTRIBUTING.md", root / "CHANGELOG.md"]
    names = sorted(path.relative_to(root).as_posix() for path in paths if path.is_file())
    return {name: translated(name, (root / name).read_text(encoding="utf-8"), names, root) for name in names}


def pictures(root: Path = ROOT) -> list[str]:
    """The pictures that stand beside the documents."""
    found = [*root.glob("docs/**/*.png"), *root.glob("docs/**/*.svg"), *root.glob("benchmarks/*.png")]
    return [path.relative_to(root).as_posix() for path in found]


def contents(names: list[str]) -> dict[str, list[str]]:
    """Pages by group, in order, for the table of contents."""
    left = [name.removesuffix(".md") for name in names]
    found: dict[str, list[str]] = {}
    for group, patterns in GROUPS.items():
        found[group] = [name for pattern in patterns for name in left if Path(name).match(pattern)]
        left = [name for name in left if name not in found[group]]
    return {group: pages for group, pages in {**found, "More": left}.items() if pages}


def translated(name: str, text: str, names: list[str], root: Path = ROOT) -> str:
    """A document with links to pages of the site; what stands in a block of code stays."""
    lines, fence = [], ""
    for line in text.split("\n"):
        opened = FENCE.match(line)
        if opened and (not fence or line.strip().startswith(fence)):
            fence = "" if fence else opened[1]
        elif not fence:
            line = LINK.sub(lambda found: _link(found, name, names, root), line)
            line = CODE_PLACE.sub(lambda found: _code_place(found, name, root), line)
        lines.append(line)
    return "\n".join(lines)


def page_of(path: str, name: str = "", root: Path = ROOT) -> str | None:
    """The page of a file or folder, and of a definition in it: its row, or its line; None where there is none."""
    if name and (path, name) in places(root):
        return places(root)[path, name]
    if path in source_files(root):
        found = read(path, root).find(name) if name and path.endswith(".py") else None
        return f"{SOURCE}/{path}.html" + (f"#L{found.first}" if found else "")
    return f"code.html#{path}" if path in ALWAYS else None


def _link(found: re.Match[str], name: str, names: list[str], root: Path) -> str:
    target = found[2].partition("#")[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if path == "README.md":
        return f"[{found[1]}]({_from(name, 'index.md')})"
    if path in names:
        return found[0]
    page = page_of(path, root=root)
    if page is None and (root / path).is_file():
        return found[1]  # a file that is no page, as the licence: its words stay
    return f'<a href="{_from(name, page)}">{found[1]}</a>' if page else found[0]


def _code_place(found: re.Match[str], name: str, root: Path) -> str:
    page = page_of(found[1], found[2] or "", root)
    return f'<a href="{_from(name, page)}">{found[0]}</a>' if page else found[0]


def _from(name: str, page: str) -> str:
    return posixpath.relpath(page, posixpath.dirname(name) or ".")
