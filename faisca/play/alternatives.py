"""What a token could have been: the likeliest ones, with the model's own probability and that of the settings."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from faisca.backend import Sampling
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.loaded_model import LoadedModel
from faisca.play.asks import Ask, Settings
from faisca.play.writing import prompt_ids, sampling_of
from faisca.text import format_bytes, printable

SHOWN = 12
"""alternatives of a token"""
MOST_BYTES = 2e9
"""of logits, in float32, that one question may take"""


def alternatives(model: LoadedModel, ask: Ask, settings: Settings) -> Iterator[dict[str, Any]]:
    """`alternatives`: what may follow the ask's tokens, likeliest first; FaiscaError where the text is too long."""
    sampling, tokens = sampling_of(model, settings), [*prompt_ids(model, ask), *ask.after]
    size = 4.0 * len(tokens) * model.setup.model_config.vocabulary_size
    if size > MOST_BYTES:
        raise FaiscaError(f"the alternatives after {len(tokens)} tokens take {format_bytes(size)}: use a shorter text")
    logits = model.logits(np.array([tokens], np.int32))[0, -1]
    own, drawn = probabilities(logits, Sampling(1.0, 0, 1.0, 1)), probabilities(logits, sampling)
    best = np.argsort(-own, kind="stable")[:SHOWN]
    found = [
        {"id": int(i), "text": _shown(model.tokenizer, int(i), tokens), "own": float(own[i]), "drawn": float(drawn[i])}
        | ({"end": True} if i in model.tokenizer.ends else {})
        for i in best
    ]
    yield {"event": "alternatives", "alternatives": found, "rest": float(max(0.0, 1 - own[best].sum()))}


def probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """How probable each token is with these settings: logits float [V] -> float64 [V], 0 for what is filtered out.

    As the twins' `filter_logits`, except that they round to integers so that both draw the same.
    """
    likeliest_first = np.argsort(-logits, kind="stable")
    if sampling.greedy:
        first: np.ndarray = np.eye(1, len(logits), int(likeliest_first[0]))[0]
        return first
    kept = likeliest_first[: sampling.top_k or None]
    scaled = logits[kept].astype(np.float64) / sampling.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    # A candidate stays if the likelier ones do not reach top-p yet: the first always does.
    probs[probs.cumsum() - probs >= sampling.top_p] = 0
    found = np.zeros(len(logits))
    found[kept] = probs / probs.sum()
    return found


def _shown(tokenizer: Tokenizer, token: int, before: list[int]) -> str:
    """A token's text; where it is part of a character, or no text at all, its bytes or its number."""
    text = tokenizer.decode([token], before)
    if "\ufffd" not in text and printable(text) == text and (text or token in tokenizer.ends):
        return text
    if token < tokenizer.vocabulary_size and tokenizer.token_bytes[token]:
        return f"⟨{tokenizer.token_bytes[token].hex(' ')}⟩"
    return f"⟨{token}⟩"
