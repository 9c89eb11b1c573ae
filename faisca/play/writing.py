"""A column's headlines or answer, token by token: what `faisca generate` writes with the same seed and settings.

The n-th new token of a row takes the n-th of that row's uniform numbers. So a headline that is gone on with
after another token draws what it would have drawn there, and with its own token again it stays as it was.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from faisca.backend import Sampling
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.loaded_model import LoadedModel
from faisca.play.asks import Ask, Settings
from faisca.streams import uniforms
from faisca.text import printable
from faisca.training.generate import clean, encode_prompt, headline

Event = dict[str, Any]
BYTES_OF_A_CHARACTER = 4


@dataclass(eq=False)
class Row:
    """A text that grows: its token ids, and the pieces of them that are whole characters."""

    tokenizer: Tokenizer
    before: Sequence[int]
    """the ids of its prompt"""
    ids: list[int] = field(default_factory=list)
    pieces: list[Event] = field(default_factory=list)
    """`ids` and `text` of each; `end` where it is an end-of-text"""
    _known: str = ""
    _waiting: int = 0
    """ids whose bytes are only part of a character"""

    def add(self, token: int) -> list[Event]:
        """The pieces that are whole with this token: none, one, or two at an end in half a character."""
        self.ids.append(token)
        if token in self.tokenizer.ends:
            part, end = self.rest(before=1), {"ids": [token], "text": "", "end": True}
            self.pieces.append(end)
            return [*part, end]
        text = self.tokenizer.decode(self.ids, self.before)
        self._waiting += 1
        open_end = int(text.endswith("\ufffd"))  # the last id may begin a character, whatever is before it
        if open_end and self._waiting < BYTES_OF_A_CHARACTER:
            return []
        ids = self.ids[len(self.ids) - self._waiting : len(self.ids) - open_end]
        whole = text[: len(text) - open_end]
        piece = {"ids": ids, "text": printable(whole[len(self._known) :])}
        self._known, self._waiting = whole, open_end
        self.pieces.append(piece)
        return [piece]

    def rest(self, before: int = 0) -> list[Event]:
        """The part of a character at the end, or `before` the last ids, as a piece, where there is one."""
        if not self._waiting:
            return []
        whole = self.ids[: len(self.ids) - before]
        text = self.tokenizer.decode(whole, self.before)[len(self._known) :]
        found: list[Event] = [{"ids": whole[-self._waiting :], "text": printable(text)}]
        self.pieces += found
        self._waiting = 0
        return found

    def cut(self, model: LoadedModel, sampling: Sampling) -> str:
        """What ended it where the model did not: max_new_tokens or context."""
        if self.ids and self.ids[-1] in self.tokenizer.ends:
            return ""
        full = len(self.before) + len(self.ids) > model.setup.model_config.context
        return "context" if full else "max_new_tokens"


def write(model: LoadedModel, ask: Ask, settings: Settings) -> Iterator[Event]:
    """What a column writes: `begin`, `tokens` a column at a time, `scores` (probabilities of the pieces), `texts`."""
    sampling = sampling_of(model, settings)
    prompt = prompt_ids(model, ask)
    numbers = list(range(settings.rows if isinstance(ask.prompt, str) else 1)) if ask.row is None else [ask.row]
    rows = [Row(model.tokenizer, prompt) for _ in numbers]
    yield {"event": "begin", "prompt": shown_prompt(ask), "command": command(model, ask, settings)}
    yield {"event": "tokens", "tokens": [[numbers[0], p] for token in ask.after for p in rows[0].add(token)]}
    for column in _columns(model, ask, draws_of(ask, settings, numbers), sampling, prompt):
        new = zip(numbers, rows, column.tolist(), strict=True)
        yield {"event": "tokens", "tokens": [[n, p] for n, row, token in new if token >= 0 for p in row.add(token)]}
    yield {"event": "tokens", "tokens": [[n, p] for n, row in zip(numbers, rows, strict=True) for p in row.rest()]}
    yield {"event": "scores", "scores": [[n, p] for n, p in zip(numbers, _scores(model, rows), strict=True)]}
    texts = [[n, _text(model, ask, row), row.cut(model, sampling)] for n, row in zip(numbers, rows, strict=True)]
    yield {"event": "done", "texts": texts}


def sampling_of(model: LoadedModel, settings: Settings) -> Sampling:
    """The settings as the sampler takes them; FaiscaError for an impossible one."""
    return model.sampling(settings.temperature, settings.top_k, settings.top_p, settings.max_new_tokens)


def prompt_ids(model: LoadedModel, ask: Ask) -> list[int]:
    """Token ids before the ones that are written; FaiscaError where there is no room for another."""
    prompt, config = encode_prompt(model.tokenizer, ask.prompt, model.setup.model_config.context), model.setup
    if len(prompt) + len(ask.after) > config.model_config.context:
        raise FaiscaError(f"the model's context of {config.model_config.context} tokens is full: begin anew")
    limit = config.model_config.vocabulary_size
    if unknown := [token for token in ask.after if token >= limit]:
        raise FaiscaError(f"token {unknown[0]} is outside the vocabulary of {limit}: choose another")
    return prompt


def draws_of(ask: Ask, settings: Settings, rows: list[int]) -> np.ndarray:
    """Uniform numbers of these rows, float32 [R, max_new_tokens]: those of `generate`, or of `--chat`'s n-th answer."""
    many, columns = max(rows) + 1, settings.max_new_tokens
    if isinstance(ask.prompt, str):
        return uniforms(settings.seed, "generate", step=0, rows=many, columns=columns)[rows]
    answered = sum(message["role"] == "assistant" for message in ask.prompt)
    return uniforms(settings.seed + answered, "chat", step=0, rows=many, columns=columns)[rows]


def _columns(
    model: LoadedModel, ask: Ask, draws: np.ndarray, sampling: Sampling, prompt: list[int]
) -> Iterator[np.ndarray]:
    """New tokens of all rows, a column at a time, -1 where a row has none."""
    left = sampling.max_new_tokens - len(ask.after)
    if left <= 0 or (ask.after and ask.after[-1] in model.tokenizer.ends):
        return iter(())
    return model.setup.backend.generate(
        model=model.model,
        prompts=[[*prompt, *ask.after]] * len(draws),
        uniforms=draws[:, len(ask.after) :],
        sampling=Sampling(sampling.temperature, sampling.top_k, sampling.top_p, left),
        end_of_text=model.tokenizer.ends,
        log_probs=None,
    )


def _scores(model: LoadedModel, rows: list[Row]) -> list[list[float]]:
    """The model's own probability of each piece, whatever the settings: one forward pass over all rows."""
    context, end = model.setup.model_config.context, model.tokenizer.end_of_text
    whole = [[*row.before, *row.ids] for row in rows]
    longest = min(max(map(len, whole)), context)
    # Padding is on the right, where no token looks; what the last place of the context wrote is read by nobody.
    ids = np.array([(row + [end] * longest)[:longest] for row in whole], np.int32)
    if longest < 2:
        return [[] for _ in rows]
    log_probs = model.token_log_probs(ids)
    return [_of_pieces(row, log_probs[i]) for i, row in enumerate(rows)]


def _of_pieces(row: Row, log_probs: np.ndarray) -> list[float]:
    found, place = [], len(row.before) - 1
    for piece in row.pieces:
        span = log_probs[place : place + len(piece["ids"])]
        if len(span) < len(piece["ids"]):
            break  # beyond the context: nothing says it
        found.append(math.exp(float(span.sum())))
        place += len(piece["ids"])
    return found


def _text(model: LoadedModel, ask: Ask, row: Row) -> str:
    """The text as `faisca generate` prints it."""
    if isinstance(ask.prompt, str):
        return headline(model.tokenizer, ask.prompt, row.ids)
    return model.tokenizer.decode(row.ids, row.before).strip()


def shown_prompt(ask: Ask) -> str:
    """What stands before the tokens: the prompt as the model reads it, and nothing in a conversation."""
    return clean(ask.prompt) if isinstance(ask.prompt, str) else ""


def command(model: LoadedModel, ask: Ask, settings: Settings) -> str:
    """The command line that writes the same; empty for what is gone on with, and for a conversation's later turns."""
    chat = not isinstance(ask.prompt, str)
    if ask.after or (chat and len(ask.prompt) > 1):
        return ""
    runtime, prompt = model.setup.runtime, ask.prompt if isinstance(ask.prompt, str) else ask.prompt[0]["content"]
    where = f"{shlex.quote(str(model.checkpoint.folder))} --backend {runtime.backend} --device {runtime.device}"
    weights = "" if runtime.weights == "float32" else f" --weights {runtime.weights}"
    sampled = f"--temperature {settings.temperature} --top-k {settings.top_k} --top-p {settings.top_p}"
    asked = f"{'--chat' if chat else f'-n {settings.rows}'} {shlex.quote(f'--prompt={prompt}')}"
    drawn = f"--seed {settings.seed} {sampled} --max-new-tokens {settings.max_new_tokens}"
    return f"faisca generate {where}{weights} {asked} {drawn}"
