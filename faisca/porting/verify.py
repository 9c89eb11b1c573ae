"""Whether a port changed anything: source and target answer the same questions, each through its own library.

Logits on texts and on a row of random tokens as long as the context; the likeliest tokens after
some texts; the end-of-text id; ids of hostile texts. A comparison of arrays would miss what goes
wrong between arrays and answers: a transposed square matrix, another GELU, another epsilon. Where
a format's own libraries are missing, one of our twins answers, and that is said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from faisca.config import ModelConfig
from faisca.data.tokenizer import Tokenizer
from faisca.porting.formats import Portable
from faisca.porting.libraries import Reader
from faisca.porting.readers import nudged_by
from faisca.streams import generator

LIMIT = 1e-4
"""largest difference of float32 logits of ordinary size"""
NUDGED = 16.0
"""times what a last bit of each weight moves: the limit of a row that float32 settles no better; sums round too"""
ORDINARY_SIZE = 32.0
"""rounding grows with the numbers: for logits of 100, as GPT-2's, the limit is 3e-4"""
LONGEST = 512
"""positions of the longest row where there is no positional table: logits of all of 8,192 would take gigabytes"""
NEW_TOKENS = 16
PROMPTS = 4
"""of the texts, those that are continued: enough to use a cache, few enough for a large model"""
TEXTS = (
    "Presidente da República visita o Porto",
    "Benfica vence Sporting por 3-1 e é campeão",
    "",
    "   \t\r\n espaços  no\u00a0meio\u200b e no fim   ",
    "<|endoftext|>não é<|endoftext|> o fim",
    "ação AÇÃO açao c\u0327a\u0303o 'S 'll d'água",
    "👩‍👩‍👧‍👦🇵🇹 𝔘𝔫𝔦 \u202eعربى\u202c 漢字かな",
    "\x00\x01\x7f\ufeff\ufffd\U0010ffff",
    "0123456789" * 5 + "€$%&!?…—“”«»" + "\n" * 5,
)
QUESTIONS = len(TEXTS) + 2
"""rows of logits, and the texts that are continued"""


@dataclass(frozen=True)
class Comparison:
    """One library's answers beside the source's: a row of the table."""

    library: str
    largest_logit_difference: float
    logit_limit: float
    unsettled: int
    """rows of logits, of all ten, that float32 itself does not settle to LIMIT: their limit is that of NUDGED"""
    equal_tokens: int
    tokens: int
    ties: int
    """prompts at which the likeliest two tokens were closer than the limit, and another one won"""
    end_of_text_ids: Sequence[int]
    stops: Sequence[int]
    """the ids that should end a text"""
    equal_texts: int
    texts: int

    def problem(self) -> str:
        """The first thing that does not hold; empty where all does."""
        if not self.largest_logit_difference < self.logit_limit:  # also where it is not a number
            return f"logits differ by {self.largest_logit_difference:.2g}, the limit is {self.logit_limit:.2g}"
        if self.equal_tokens != self.tokens:
            return f"{self.tokens - self.equal_tokens} of {self.tokens} greedy tokens differ"
        if list(self.end_of_text_ids) != list(self.stops):
            return f"end of text is {self.end_of_text_ids} instead of {self.stops}"
        if self.equal_texts != self.texts:
            return f"{self.texts - self.equal_texts} of {self.texts} texts have other tokens"
        return ""


def compare(source: Reader, target: Reader, portable: Portable, told: Callable[[], None] = lambda: None) -> Comparison:
    """Ask both what they make of `portable`, see the module's docstring; `told` comes before each of `QUESTIONS`."""
    model, tokenizer = portable.model, portable.tokenizer
    count = min(NEW_TOKENS, model.context // 2)
    prompts = [[*tokenizer.beginning, *tokenizer.encode(text)][: model.context - count] for text in TEXTS]
    rows, apart, size = [*prompts, _random_row(model)], list[float](), 0.0
    for row in rows:
        told()
        ours, theirs = source.logits(row), target.logits(row)
        size = max(size, float(np.abs(ours).max()))
        apart.append(float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else np.inf)
    limits = [LIMIT * max(1.0, size / ORDINARY_SIZE)] * len(rows)
    unsettled = [i for i, difference in enumerate(apart) if limits[i] <= difference < np.inf]  # no NaN
    for i, moved in zip(unsettled, nudged_by(portable, [rows[i] for i in unsettled]), strict=True):
        limits[i] = max(limits[i], NUDGED * moved)
    worst = max(range(len(rows)), key=lambda i: (not apart[i] < limits[i], apart[i] / limits[i]))
    told()
    equal, tokens, ties = _compare_greedy(source, target, prompts[:PROMPTS], count, max(limits[:PROMPTS]))
    return Comparison(
        library=target.name,
        largest_logit_difference=apart[worst],
        logit_limit=limits[worst],
        unsettled=len(unsettled),
        equal_tokens=equal,
        tokens=tokens,
        ties=ties,
        end_of_text_ids=list(target.end_of_text_ids),
        stops=list(tokenizer.ends),
        equal_texts=sum(_same_text(tokenizer, target, text) for text in TEXTS),
        texts=len(TEXTS),
    )


def largest_difference(one: Reader, other: Reader, portable: Portable) -> float:
    """Of the logits of two models, on the texts that are continued and on random tokens."""
    texts = [[*portable.tokenizer.beginning, *portable.tokenizer.encode(text)] for text in TEXTS[:PROMPTS]]
    rows = [*(row[: portable.model.context] for row in texts), _random_row(portable.model)]
    return max(float(np.abs(one.logits(row) - other.logits(row)).max()) for row in rows)


def _compare_greedy(
    source: Reader, target: Reader, prompts: list[list[int]], count: int, limit: float
) -> tuple[int, int, int]:
    """How many tokens are equal, of how many, and how many prompts end early at a tie."""
    equal = tokens = ties = 0
    for prompt in prompts:
        ours, theirs = source.greedy(prompt, count), target.greedy(prompt, count)
        pairs = list(zip(ours, theirs, strict=False))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        tie = same < len(pairs) and _is_tie(source, [*prompt, *ours[:same]], pairs[same], limit)
        equal, ties = equal + same, ties + tie
        tokens += same if tie else max(len(ours), len(theirs))
    return equal, tokens, ties


def _is_tie(source: Reader, ids: list[int], pair: tuple[int, int], limit: float) -> bool:
    last = source.logits(ids)[-1]
    return bool(abs(last[pair[0]] - last[pair[1]]) < limit)


def _same_text(tokenizer: Tokenizer, target: Reader, text: str) -> bool:
    ids = tokenizer.encode(text)
    return target.encode(text) == ids and target.decode(ids) == tokenizer.decode(ids)


def _random_row(model: ModelConfig) -> list[int]:
    """Random tokens at every position: no row of a positional table goes unseen; a rotation is one formula."""
    draws = generator(0, "tokens that faisca port compares")
    length = model.context if model.positions == "learned" else min(model.context, LONGEST)
    return [int(token) for token in draws.integers(model.vocabulary_size, size=length)]
