"""How probable a model finds its own headlines, token by token: a forward pass on the run's own backend."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.loaded_model import LoadedModel, load
from faisca.report.recorded import Record, Recorded
from faisca.report.samples import MOST_TEXTS, TITLES
from faisca.runs.checkpoint import read_state
from faisca.text import format_bytes, in_one_line
from faisca.training.generate import clean

LEVELS = (0.5, 0.2, 0.05, 0.01)
"""least probability of each shade, palest first; below the last is the darkest"""
END = "¶"
"""what the end of a headline is shown as"""
Scored = list["Token"]


@dataclass(frozen=True)
class Token:
    """A part of a headline that is at least one character."""

    text: str
    probability: float

    @property
    def level(self) -> int:
        """Its shade, 0 for what was likely."""
        return sum(self.probability < least for least in LEVELS)


@dataclass(frozen=True)
class StageTokens:
    """The headlines after a stage, scored by the model as it was then; or why they are not."""

    title: str
    headlines: list[Scored]
    left_out: str = ""


def score_stages(run: Recorded, most_bytes: float = math.inf) -> list[StageTokens]:
    """The headlines after each finished stage, scored by that stage's last checkpoint, unless that is larger."""
    return [_score_stage(run, entry, most_bytes) for entry in run.entries if entry.get("samples_after")]


def _score_stage(run: Recorded, entry: Record, most_bytes: float) -> StageTokens:
    stage = entry["stage"]
    folder = run.folder / "checkpoints" / f"{stage}-{entry.get('steps', 0):06d}"
    texts = [str(text) for text in entry["samples_after"][:MOST_TEXTS]]
    if not folder.is_dir():
        return StageTokens(TITLES[stage], [], f"its last checkpoint, {folder.name}, is not there any more")
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > most_bytes:
        words = f"its last checkpoint takes {format_bytes(size)}, which faisca report loads, but no run at its end"
        return StageTokens(TITLES[stage], [], words)
    try:
        return StageTokens(TITLES[stage], _score(_load(folder), texts))
    except (FaiscaError, RuntimeError, MemoryError) as error:  # no such device here, too little memory, a damaged file
        return StageTokens(TITLES[stage], [], in_one_line(error))


def _load(folder: Path) -> LoadedModel:
    """The checkpoint on the backend, device and dtype that trained it."""
    state = read_state(folder)
    return load(folder, state.backend, state.device, state.dtype)


def _score(model: LoadedModel, texts: list[str]) -> list[Scored]:
    """Each text's tokens with their probabilities, and the end of the text with its own."""
    tokenizer, context = model.tokenizer, model.setup.model_config.context
    begin, end = tokenizer.beginning, tokenizer.end_of_text
    rows = [[*begin, *tokenizer.encode(clean(text)), end][:context] for text in texts]
    longest = max(map(len, rows))
    # Padding is on the right, where no token looks.
    ids = np.array([row + [end] * (longest - len(row)) for row in rows], np.int32)
    log_probs = model.token_log_probs(ids)
    return [
        _tokens(tokenizer, row, len(begin), scores[: len(row) - 1]) for row, scores in zip(rows, log_probs, strict=True)
    ]


def _tokens(tokenizer: Tokenizer, row: list[int], begin: int, log_probs: np.ndarray) -> Scored:
    """Tokens whose bytes are only part of a character are one here, with the product of their probabilities."""
    tokens: Scored = []
    known, log_prob = "", 0.0
    for place in range(max(begin, 1), len(row)):
        log_prob += float(log_probs[place - 1])
        if row[place] in tokenizer.ends:
            tokens.append(Token(END, math.exp(log_prob)))
            break
        text = tokenizer.decode(row[begin : place + 1])
        if text.endswith("\ufffd") and place + 1 < len(row) and row[place + 1] not in tokenizer.ends:
            continue  # the character goes on in the next token
        tokens.append(Token(text[len(known) :], math.exp(log_prob)))
        known, log_prob = text, 0.0
    return tokens
