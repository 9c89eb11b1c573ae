"""Words for people, and strict JSON for programs: sizes, durations, names, suggestions, texts that fit a window."""

import difflib
import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import Any

LONGEST_NAME = 20
"""characters of a reward's name in a table"""
SUM_OF = "sum of "
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


def reward_name(rewards: Sequence[str]) -> str:
    """`grpo.reward` as `summary.json` has it: a text."""
    return rewards[0] if len(rewards) == 1 else f"{SUM_OF}{len(rewards)}: {', '.join(rewards)}"


def reward_title(reward: str) -> str:
    """The name of the rewards as tables and charts have it: a file without its folder, and not too long."""
    if reward.startswith(SUM_OF):
        return f"reward ({reward.partition(':')[0]})"
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
    return shortened(" ".join(printable(sample).split()), LONGEST_SAMPLE)


def shortened(text: str, limit: int = 300) -> str:
    """The text; beyond `limit` characters its beginning and an ellipsis, so that a cut shows."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def in_one_line(error: Exception, without: str = "^$") -> str:
    """What another library's error says, on one line and not too long; its type where that says nothing.

    `without` is a pattern of words that only hide what matters.
    """
    words = re.sub(without, "", " ".join(str(error).split()))
    text = shortened("".join(filter(str.isprintable, words)))
    return text if text and not isinstance(error, KeyError) else f"{type(error).__name__} {text}".strip()


def format_bytes(size: float) -> str:
    """A size in decimal units, for people: 0 B, 1.5 kB, 512 MB, 1.2 GB."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


def clock(seconds: float) -> str:
    """A duration as H:MM:SS."""
    return str(timedelta(seconds=round(seconds)))


def suggest(name: str, candidates: Iterable[str]) -> str:
    """The remedy for an unknown name: the candidate that looks like it, else all of them."""
    known = list(candidates)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose among {', '.join(known)}"


def json_text(value: Any, indent: int | None = None, escaped: bool = False) -> str:
    """Strict JSON of numbers (NumPy's too), texts, lists and dicts; what is not finite becomes null.

    `escaped` writes it in ASCII.
    """
    return json.dumps(_json_value(value), ensure_ascii=escaped, allow_nan=False, indent=indent)


def explained(value: Any) -> Any:
    """The value with NAME_is, a word, beside each number of a dict that is not finite, for JSON has none for it."""
    if isinstance(value, (list, tuple)):
        return [explained(item) for item in value]
    if not isinstance(value, dict):
        return value
    words = {f"{key}_is": _not_finite(item) for key, item in value.items() if isinstance(item, Real)}
    return {key: explained(item) for key, item in value.items()} | {key: word for key, word in words.items() if word}


def _not_finite(number: Any) -> str:
    if math.isnan(number):
        return "not a number"
    return "" if math.isfinite(number) else "infinite" if number > 0 else "minus infinite"


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if hasattr(value, "tolist"):  # a NumPy number or array
        return _json_value(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _filled(lines: Iterable[str], width: int) -> list[str]:
    return textwrap.wrap(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)


def _broken(line: str, width: int) -> list[str]:
    """What goes on is indented further; in a list of names and meanings it stands below the meaning."""
    words = re.match(r" *(\S+ {2,})?", line)
    assert words is not None, "it matches every text"
    indent = " " * (len(words[0]) + (0 if words[1] else 2))
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
