"""Explanations: what both twins' docstrings say, once, and what each says alone; as Markdown and as HTML."""

import re
from difflib import SequenceMatcher
from html import escape

SENTENCES = re.compile(r"(?<=[.:;?!])\s+(?=[A-Z`\[(])|\n\s*\n")
SPECIAL = re.compile(r"([\\*_{}\[\]<>#|~$!^])")


def sentences(text: str) -> list[str]:
    """A docstring in sentences, each on one line."""
    return [" ".join(one.split()) for one in SENTENCES.split(text.strip()) if one.strip()]


def parted(ours: str, theirs: str) -> tuple[str, str, str]:
    """What both say, what we say alone, and what they say alone."""
    if ours == theirs:
        return ours, "", ""
    left, right = sentences(ours), sentences(theirs)
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    shared = [left[block.a + i] for block in blocks for i in range(block.size)]
    return (" ".join(shared), *(" ".join(one for one in side if one not in shared) for side in (left, right)))


def markdown(text: str) -> str:
    """A docstring as Markdown: what is no code in backticks means itself."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(_escaped(" ".join(one.split())) for one in paragraphs)


def html(text: str) -> str:
    """The same within a line of HTML."""
    parts = re.split(r"`+([^`]+)`+", " ".join(text.split()))
    return "".join(f"<code>{escape(part)}</code>" if i % 2 else escape(part) for i, part in enumerate(parts))


def html_beside(ours: str, theirs: str) -> str:
    """What we say, with those words in bold that they do not say."""
    left, right = ours.split(), theirs.split()
    found, end = [], 0
    for block in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        if block.a > end:
            found.append(f"<b>{html(' '.join(left[end : block.a]))}</b>")
        if block.size:
            found.append(html(" ".join(left[block.a : block.a + block.size])))
        end = block.a + block.size
    return " ".join(found)


def _escaped(text: str) -> str:
    parts = re.split(r"(`+[^`]+`+)", text)
    found = "".join(part if i % 2 else SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts))
    return re.sub(r"^(\d+)([.)])|^([-+=])", lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", found)
