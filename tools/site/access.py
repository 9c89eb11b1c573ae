"""What the theme leaves out for those who read by keyboard or by ear; in the pages that Sphinx has built."""

import re
from pathlib import Path

REPAIRS = (
    (re.compile(r'(<p class="caption" role="heading")>'), r'\1 aria-level="2">'),
    (re.compile(r'<aside class="sidebar-drawer'), r'<aside aria-label="Site" class="sidebar-drawer'),
    (re.compile(r'<aside class="toc-drawer'), r'<aside aria-label="This page" class="toc-drawer'),
    # A wide table scrolls, so the keyboard must get there; a corner without a title is no heading.
    (
        re.compile(r'<div class="table-wrapper'),
        '<div tabindex="0" role="group" aria-label="table" class="table-wrapper',
    ),
    (re.compile(r'<th class="head[^"]*">(<p></p>)?</th>'), "<td></td>"),
)


SIGNATURE = re.compile(r"<dl>\n(<dd>.*?)</dl>", re.DOTALL)
"""a signature's parameters, a line each, which are no list of definitions"""


def repair(folder: Path) -> None:
    """Repair all pages of a folder."""
    for path in folder.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for pattern, better in REPAIRS:
            text = pattern.sub(better, text)
        text = SIGNATURE.sub(lambda found: _spans(found[1]), text)
        path.write_text(text, encoding="utf-8")


def _spans(listed: str) -> str:
    return listed.replace("<dd>", '<span class="parameter">').replace("</dd>", "</span>")
