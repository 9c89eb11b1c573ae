"""Templates with slots, expanded into Portuguese that agrees; the syntax is described in `__init__.py`."""

import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

Sections = dict[str, Any]

ARTICLES = ("o", "a", "os", "as")
FORMS = {
    "o": ARTICLES,
    "O": ("O", "A", "Os", "As"),
    "um": ("um", "uma", "uns", "umas"),
    "a": ("ao", "à", "aos", "às"),
    "de": ("do", "da", "dos", "das"),
    "em": ("no", "na", "nos", "nas"),
    "por": ("pelo", "pela", "pelos", "pelas"),
    "num": ("num", "numa", "nuns", "numas"),
}
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(?:(=|\w+ )?([a-z_]+)|(\d+)-(\d+)(?::(\d+))?)\}")


def read_sections(name: str) -> Sections:
    """The content of one of the grammar's TOML files."""
    return tomllib.loads((resources.files(__package__) / f"{name}.toml").read_text("utf-8"))


class Grammar:
    """The templates and slots of a subject in one variant; `write` makes one headline after another."""

    def __init__(self, subject: Sections, lexicon: Sections, variant: str, random: np.random.Generator) -> None:
        self.random = random
        self.templates: list[str] = []
        self.slots: dict[str, list[str]] = {}
        self.used: set[str] = set()
        self.articles: dict[str, str] = {}
        for sections in (lexicon["both"], lexicon[variant], subject["both"], subject[variant]):
            self.templates += _split(sections.get("templates", ""), "\n")
            for name, fillers in sections["slots"].items():
                self.slots.setdefault(name, []).extend(_split(fillers, "[;\n]"))

    def write(self) -> str:
        """One headline, its first letter a capital; a filler without slots occurs in it only once."""
        self.used.clear()
        self.articles.clear()
        text = " ".join(self._fill(self._pick(self.templates)).split())
        return text[0].upper() + text[1:]

    def _pick(self, options: Sequence[str]) -> str:
        return options[int(self.random.random() * len(options))]

    def _fill(self, text: str) -> str:
        if "[" in text:
            text = CHOICE.sub(lambda match: self._pick(match[1].split("|")), text)
        return SLOT.sub(self._fill_slot, text) if "{" in text else text

    def _fill_slot(self, match: re.Match[str]) -> str:
        prefix, name, least, most, step = match.groups()
        if name is None:
            numbers = range(int(least), int(most) + 1, int(step or 1))
            return str(numbers[int(self.random.random() * len(numbers))])
        if prefix == "=":
            return self.articles[name]
        noun = self._fill(self._unused(self.slots[name]))
        article, _, rest = noun.partition(" ")
        if article not in ARTICLES:
            article, rest = "", noun
        self.articles[name] = article
        return f"{_agree(prefix.strip(), article)} {rest}" if prefix else rest

    def _unused(self, fillers: list[str]) -> str:
        filler = self._pick(fillers)
        if filler in self.used:
            filler = self._pick([other for other in fillers if other not in self.used] or fillers)
        if "{" not in filler:
            self.used.add(filler)
        return filler


def _agree(prefix: str, article: str) -> str:
    """The article or contracted preposition before a noun with this article; a noun may have none."""
    if article:
        return FORMS[prefix][ARTICLES.index(article)]
    return "" if prefix in ("o", "O") else prefix


def _split(text: str, separators: str) -> list[str]:
    return [stripped for piece in re.split(separators, text) if (stripped := piece.strip())]
