"""Checks a built site, as `python tools/site/links.py FOLDER`: every link leads somewhere, and nothing is fetched.

What is asked of each page: a link to a page or a file of the site finds it, a link to a place on a page finds its id;
and scripts, styles, fonts and pictures are the site's own, so that it reads without a network.
"""

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
IN_STYLES = re.compile(r"(?:url\(|@import)\s*['\"]?\s*(https?:)?//", re.IGNORECASE)


@dataclass
class Page(HTMLParser):
    """The ids of a page, and what it points to: tag, attribute and address."""

    ids: set[str] = field(default_factory=set)
    targets: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value is not None:
                self.targets.append((tag, name, value))


def read_pages(folder: Path) -> dict[Path, Page]:
    """All pages of a site."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        page = pages[path.resolve()] = Page()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
    return pages


def problems(folder: Path) -> list[str]:
    """A line for each link that leads nowhere, and for each thing that would be fetched."""
    pages, found = read_pages(folder), []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        for tag, attribute, address in page.targets:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if (tag, attribute) in FETCHED and parts.scheme != "data":
                    found.append(f"{name}: {tag} fetches {address}")
            elif problem := _problem(path, parts.path, unquote(parts.fragment), pages):
                found.append(f"{name}: {address} {problem}")
    for path in sorted(folder.rglob("*.css")):
        if IN_STYLES.search(path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(folder)}: a style fetches what is not the site's")
    return found if pages else [f"{folder}: no page there"]


def _problem(path: Path, target: str, fragment: str, pages: dict[Path, Page]) -> str:
    there = (path.parent / unquote(target)).resolve() if target else path
    if not there.is_file():
        return "leads to no file"
    if fragment and there in pages and fragment not in pages[there].ids:
        return "leads to no such place on the page"
    return ""


def main(argv: list[str]) -> int:
    """Print the problems; 1 where there are some."""
    if len(argv) != 1:
        print("usage: python tools/site/links.py FOLDER", file=sys.stderr)
        return 2
    found = problems(Path(argv[0]))
    print("\n".join(found) or f"{len(read_pages(Path(argv[0])))} pages, every link leads somewhere, nothing is fetched")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
