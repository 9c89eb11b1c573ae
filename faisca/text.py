"""Words for people: texts that fit a narrow window, and names that follow the configuration."""

import re
import textwrap
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

LONGEST_NAME = 20
"""characters of a reward's name in a table"""
LONGEST_SAMPLE = 160
"""characters of a headline in a table or a log"""


def fit(text: str, width: int) -> str:
    """The text as it is where its lines fit; else paragraphs are filled anew and indented lines broken at words."""
    lines = text.splitlines()
    if max(map(len, lines), default=0) <= width:
        return text
    fitted: list[str] = []
    for indented, block in groupby(lines, lambda line: not line or line.startswith(" ")):
        whole = list(block)
        fitted += [part for line in whole for part in _broken(line, width)] if indented else _filled(whole, width)
    return "\n".join(fitted) + ("\n" if text.endswith("\n") else "")


def titles_name(url_contains: str) -> str:
    """What the titles whose address contains this are called: `.pt` for `.pt/`; SFT where nothing is asked for."""
    return url_contains.strip("/") or "SFT"


def reward_title(reward: str) -> str:
    """`grpo.reward` as tables and charts name it: a file without its folder, and not too long."""
    kind, colon, rest = reward.rpartition(":")
    name = f"{Path(kind).name}{colon}{rest}" if kind.endswith(".py") else reward
    if len(name) > LONGEST_NAME:
        name = f"…{name[1 - LONGEST_NAME :]}" if kind.endswith(".py") else f"{name[: LONGEST_NAME - 1]}…"
    return f"reward ({name})"


def printable(text: str) -> str:
    """The text with control characters as spaces: what an untrained model samples may steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def one_line(sample: str) -> str:
    """A headline as tables and logs show it: printable, on one line, and not too long."""
    text = " ".join(printable(sample).split())
    return text if len(text) <= LONGEST_SAMPLE else text[: LONGEST_SAMPLE - 1] + "…"


def _filled(lines: Iterable[str], width: int) -> list[str]:
    return textwrap.wrap(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)


def _broken(line: str, width: int) -> list[str]:
    """What goes on is indented further; in a list of names and meanings it stands below the meaning."""
    words = re.match(r" *(\S+ {2,})?", line)
    assert words is not None, "it matches every text"
    indent = " " * (len(words[0]) + (0 if words[1] else 2))
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
