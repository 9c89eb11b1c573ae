"""The rewards that need no file: functions of texts, one number each."""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

FOOTBALL_WORDS = frozenset(
    "futebol benfica porto sporting bola liga campeão taça golo jogo jogador treinador "
    "fifa uefa euro messi ronaldo".split()
)


def words(text: str) -> list[str]:
    """The words of a text for matching: composed (NFC), case folded, punctuation left out."""
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())


class Phrases:
    """1.0 for a completion that has one of the phrases, however often, else 0.0: a word, or words in a row."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._phrases = [words(phrase) for phrase in phrases]

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [float(any(self._hits(words(text)))) for text in completions]

    def word_share(self, text: str) -> float:
        """The share of a text's words that are hits: what spam raises."""
        hits = self._hits(words(text))
        return sum(hits) / len(hits) if hits else 0.0

    def _hits(self, text: list[str]) -> list[bool]:
        """For each word whether it is part of a phrase."""
        hits = [False] * len(text)
        for phrase in self._phrases:
            for start in range(len(text) - len(phrase) + 1):
                if text[start : start + len(phrase)] == phrase:
                    hits[start : start + len(phrase)] = [True] * len(phrase)
        return hits


football = Phrases(sorted(FOOTBALL_WORDS))


@dataclass(frozen=True)
class Pattern:
    """1.0 for a completion in which the regular expression is found, else 0.0."""

    pattern: re.Pattern[str]

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [float(self.pattern.search(text) is not None) for text in completions]


@dataclass(frozen=True)
class Length:
    """1.0 for a completion of `least` to `most` characters; outside it falls by its distance, as a share of the bound.

    Characters, as readers count them: what a tokenizer makes of a text has no say. White space at both ends is none.
    """

    least: int
    most: int

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [self._worth(len(text.strip())) for text in completions]

    def _worth(self, length: int) -> float:
        if length < self.least:
            return length / self.least
        return max(0.0, 1 - (length - self.most) / self.most) if length > self.most else 1.0


def distinct(completions: list[str], prompts: Sequence[Any], **_: Any) -> list[float]:
    """How unlike the others a completion is, times how unlike one another its words are; both from 0 to 1.

    The first is the share of the other completions of the same prompt that are another text (1 where there is no
    other), the second `distinct_words`.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    keys = [repr(prompt) for prompt in prompts]
    for key, text in zip(keys, completions, strict=True):
        counts[key][text] += 1
    others = [counts[key].total() - 1 for key in keys]
    unlike = [
        (counts[key].total() - counts[key][text]) / many if many else 1.0
        for key, text, many in zip(keys, completions, others, strict=True)
    ]
    return [share * distinct_words(text) for share, text in zip(unlike, completions, strict=True)]


def distinct_words(text: str) -> float:
    """Different words as a share of all words of a text; 1 where there are none."""
    found = words(text)
    return len(set(found)) / len(found) if found else 1.0


@dataclass(frozen=True)
class Exact:
    """1.0 for a completion that is, white space at both ends aside, the text in a column of the prompt's line."""

    column: str

    def __call__(self, completions: list[str], **columns: Sequence[Any]) -> list[float]:
        wanted = columns[self.column]
        return [float(text.strip() == str(answer).strip()) for text, answer in zip(completions, wanted, strict=True)]


def share(values: Sequence[float]) -> float:
    """Mean of flags; NaN where there are none."""
    return math.fsum(values) / len(values) if values else math.nan
