"""Builds the site: `python tools/site/build_site.py [--out FOLDER] [--repository ADDRESS]`; `make docs` calls it.

It writes the pages that Sphinx reads, has Sphinx build them, and checks every link. A public definition without a
partner, a warning of Sphinx, or a link that leads nowhere: a line each, and exit status 1. No network is needed.
ADDRESS is where the repository's files lie on the web, such as https://github.com/OWNER/NAME/blob/main.
"""

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from access import repair
from book import FOLDER, book, chapter_page, explanation
from definitions import ROOT, SiteError
from documents import contents, documents, pictures, translated
from links import problems
from rows import row_html
from sources import code_page, linked_files, write_source_pages

HERE = Path(__file__).parent
EXAMPLE = "model", "model.Attention.attend"
"""chapter and anchor of the row on the front page"""


def written_pages() -> dict[str, str]:
    """Every page by its path, in the form that Sphinx reads."""
    pages = {f"{FOLDER}/{name}.md": chapter_page(name) for name in book()}
    pages |= documents()
    pages["api.md"] = translated("api.md", (HERE / "pages" / "api.md").read_text(encoding="utf-8"), [*pages])
    pages["code.md"] = code_page(linked_files(pages.values()))
    front = (HERE / "pages" / "index.md").read_text(encoding="utf-8")
    trees = {"The twins face to face": [f"{FOLDER}/{name}" for name in book()]}
    trees |= contents([name for name in pages if not name.startswith(f"{FOLDER}/")])
    for mark, text in (("EXAMPLE", _example()), ("CHAPTERS", _chapters()), ("CONTENTS", _trees(trees))):
        front = front.replace(f"<!-- {mark} -->", text)
    return pages | {"index.md": front}


def write_pages(folder: Path, pages: dict[str, str]) -> None:
    """The pages, and the pictures beside them, in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name in pictures():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def build(out: Path, repository: str) -> list[str]:
    """The site in `out`/html; its problems, a line each."""
    pages = written_pages()
    write_pages(out / "pages", pages)
    shutil.rmtree(out / "html", ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", HERE, "-d", out / "doctrees"]
    command = [sys.executable, "-m", "sphinx", *options, out / "pages", out / "html"]
    done = subprocess.run(list(map(str, command)), check=False, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        return [line for line in done.stderr.splitlines() if line.strip()] or [f"sphinx: status {done.returncode}"]
    repair(out / "html")
    write_source_pages(out / "html", linked_files(pages.values()), repository)
    return problems(out / "html")


def known_repository() -> str:
    """Where pyproject.toml says that the files lie; empty where it says nothing."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    address = urls.get("Repository") or urls.get("Source") or ""
    return f"{address.rstrip('/')}/blob/main" if address else ""


def _example() -> str:
    chapter, anchor = EXAMPLE
    (row,) = [row for row in book()[chapter][1] if row.anchor == anchor]
    html = row_html(row).replace('href="../', 'href="')
    return f"{explanation(row)}\n\n```{{raw}} html\n{html}\n```"


def _chapters() -> str:
    """The chapters as a list, with how many rows each has."""
    lines = []
    for name, (chapter, rows) in book().items():
        lines.append(f"- [**{chapter.title}**]({FOLDER}/{name}.md) <small>{len(rows)} rows</small> — {chapter.about}")
    return "\n".join(lines)


def _trees(trees: dict[str, list[str]]) -> str:
    blocks = []
    for caption, pages in trees.items():
        listed = "\n".join(pages)
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n:maxdepth: 1\n\n{listed}\n```")
    return "\n\n".join(blocks)


def main(argv: list[str]) -> int:
    """Build, and say where it is, or what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="default: build/site")
    parser.add_argument("--repository", default=known_repository(), help="default: pyproject.toml's, if it has one")
    options = parser.parse_args(argv)
    try:
        found = build(options.out.resolve(), options.repository)
    except SiteError as error:
        found = str(error).splitlines()
    if found:
        print("\n".join(found), file=sys.stderr)
        return 1
    rows = sum(len(rows) for _, rows in book().values())
    print(f"{rows} rows in {len(book())} chapters; read {options.out / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
