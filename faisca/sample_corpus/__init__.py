"""The embedded corpus `sample`: Portuguese headlines written by a grammar, for a first run without a network.

Every headline is invented. The grammar is data: one TOML file a subject, and `lexicon.toml` with
the words that all subjects share. A file has three sections, `both`, `european` and `brazilian`;
a variant's grammar is `both` and its own section together. Templates stand one a line; the
fillers of a slot are separated by semicolons or line ends, and may hold slots themselves:

    {club}               a filler of the slot `club`, without its article: Benfica
    {o club}             with its article: o Benfica
    {de club}            after a preposition (de, em, a, por), contracted as grammar asks: do Benfica
    {=club}              the ending that agrees with the latest filler of `club`: o, a, os or as
    {2-40}, {10-90:5}    a number between the two, in steps of the third
    [vence|bate|]        one of the alternatives; the empty one leaves it out

Nouns keep their article (o, a, os, as) in the data, which is how gender and number reach
contractions and endings. A leaf filler is not used twice in one headline.
"""

import hashlib
import re
import tomllib
import unicodedata
from collections.abc import Iterator
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa

from faisca.streams import generator, permutation

CORPUS_SEED = 2016
VALIDATION_SHARE = 0.065
SUBJECTS = ["politica", "economia", "justica", "internacional", "saude", "educacao", "meteorologia", "transportes", "cultura", "ciencia", "tecnologia", "modalidades", "futebol"]
HOSTS = {
    "european": ("www.exemplo.pt", "diario.exemplo.pt", "correio.exemplo.pt"),
    "brazilian": ("www.exemplo.com.br", "portal.exemplo.com.br", "gazeta.exemplo.com.br"),
}

ARTICLES = frozenset(("o", "a", "os", "as"))
CONTRACTED = {"de": "d", "em": "n", "por": "pel"}
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(=|(?:o|de|em|a|por) )?([a-z_]+)\}|\{(\d+)-(\d+)(?::(\d+))?\}")


def sample_headlines() -> tuple[pa.Table, pa.Table]:
    """Training and validation headlines: columns `title`, `language` ("pt") and `requested_url`, all strings.

    Always the same rows: the seed is the corpus's own, not the run's. A title's hash decides which
    table it belongs to, so no title is in both. Half of the titles are European (`.pt/` in the
    address), half Brazilian (`.com.br/`).
    """
    files = {name: _read(name) for name in ("lexicon", *SUBJECTS)}
    rows = {
        title: _address(title, variant, files[subject][variant]["path"])
        for variant in HOSTS
        for subject, title in _variant_titles(files, variant)
    }
    titles = list(rows)
    order = permutation(CORPUS_SEED, "sample corpus: order", len(titles))
    mixed = [titles[i] for i in order]
    held_out = [title for title in mixed if _fraction(title) < VALIDATION_SHARE]
    train = [title for title in mixed if _fraction(title) >= VALIDATION_SHARE]
    return _table(train, rows), _table(held_out, rows)


class Grammar:
    """Templates and slots of one variant; `expand` writes one headline."""

    def __init__(self, slots: dict[str, list[str]], random: np.random.Generator) -> None:
        self.slots = slots
        self.random = random
        self.used: set[str] = set()
        self.endings: dict[str, str] = {}

    def expand(self, template: str) -> str:
        """One headline from `template`, its first letter a capital."""
        self.used.clear()
        self.endings.clear()
        text = " ".join(self._fill(template).split())
        return text[0].upper() + text[1:]

    def pick(self, options: list[str]) -> str:
        """One of the options, each as likely as the others."""
        return options[int(self.random.random() * len(options))]

    def _fill(self, text: str) -> str:
        if "[" in text:
            text = CHOICE.sub(lambda match: self.pick(match[1].split("|")), text)
        return SLOT.sub(self._fill_slot, text) if "{" in text else text

    def _fill_slot(self, match: re.Match[str]) -> str:
        prefix, name, least, most, step = match.groups()
        if name is None:
            return str(self.pick(list(range(int(least), int(most) + 1, int(step or 1)))))
        if prefix == "=":
            return self.endings[name]
        noun = self._fill(self._fresh(self.slots[name]))
        article, _, rest = noun.partition(" ")
        if article not in ARTICLES:
            article, rest = "", noun
        self.endings[name] = article
        return attach((prefix or "").strip(), article, rest)

    def _fresh(self, options: list[str]) -> str:
        choice = self.pick(options)
        if choice in self.used:
            choice = self.pick([option for option in options if option not in self.used] or options)
        if "{" not in choice:
            self.used.add(choice)
        return choice
