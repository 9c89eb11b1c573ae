"""Code as HTML: coloured by pygments, and in bold what the other twin says otherwise."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from html import escape

from definitions import Definition
from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES, Punctuation, _TokenType

Piece = tuple[_TokenType, str]
WORDS = re.compile(r"\w+|\s+|[^\w\s]")
SHORTEST = 2
"""words in a row that count as the same where what stands around them differs"""


@cache
def pieces(definition: Definition) -> list[Piece]:
    """The code as words, blanks and signs, each with its colour."""
    code = "\n".join(line for _, line in definition.lines)
    found = PythonLexer(stripnl=False, ensurenl=False).get_tokens(code)
    return [(kind, word) for kind, text in found for word in WORDS.findall(text)]


def differing(ours: Sequence[Piece], theirs: Sequence[Piece]) -> set[int]:
    """Which of our pieces are not in theirs, in order. A sign or two between differences belong to them."""
    left, right = ([i for i, (_, word) in enumerate(side) if not word.isspace()] for side in (ours, theirs))
    words = [[side[i][1] for i in places] for side, places in ((ours, left), (theirs, right))]
    matched = [block for block in SequenceMatcher(None, *words, autojunk=False).get_matching_blocks() if block.size]
    same: set[int] = set()
    for block in matched:
        run = words[0][block.a : block.a + block.size]
        at_an_end = block.a == 0 or block.a + block.size == len(words[0])
        if at_an_end or sum(map(str.isidentifier, run)) >= 1 or len(run) > SHORTEST:
            same |= {left[i] for i in range(block.a, block.a + block.size)}
    return set(left) - same


def code(definition: Definition, bold: set[int] | None = None) -> str:
    """The code as a `<pre>`, a block a line, with the file's line numbers; long lines wrap, indented."""
    found = pieces(definition)
    marked = _with_blanks(found, bold or set())
    rows: list[str] = [""]
    for i, (kind, word) in enumerate(found):
        if "\n" in word and word.isspace():
            rows += word.count("\n") * [""]
            rows[-1] = word.rpartition("\n")[2]
        else:
            after = found[i + 1][1] if i + 1 < len(found) else ""
            rows[-1] += _coloured(kind, word, i in marked, breaks=word in "([{" and after not in ")]}")
    lines = [
        f'<span class="row-line" data-n="{number}" style="--indent:{_indent(text)}">{row or " "}</span>'
        for (number, text), row in zip(definition.lines, rows, strict=True)
    ]
    return f'<div class="highlight"><pre>{"".join(lines).replace("</b><b>", "")}</pre></div>'


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _with_blanks(found: Sequence[Piece], bold: set[int]) -> set[int]:
    """Blanks between two bold words are bold, too: a run of them is one mark."""
    return bold | {i for i, (_, word) in enumerate(found) if word.isspace() and {i - 1, i + 1} <= bold}


def _coloured(kind: _TokenType, word: str, bold: bool, breaks: bool) -> str:
    """A word in its colour; after an opening bracket a long line may break."""
    css = next((STANDARD_TYPES[one] for one in reversed(kind.split()) if one in STANDARD_TYPES), "")
    text = f'<span class="{css}">{escape(word)}</span>' if css and css not in ("n", "p", "w") else escape(word)
    text += "<wbr>" if breaks and kind in Punctuation else ""
    return f"<b>{text}</b>" if bold else text
