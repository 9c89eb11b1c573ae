"""Conversations to learn answers from: a JSONL file to rows of tokens whose loss is on the answers only.

A line has `messages` ([{role, content}, …]), or `prompt` and `completion`: each a text (a turn of the user, and the
assistant's answer) or messages. The model's chat template writes the text. Counted are the assistant's turns (of
prompt and completion only those of the completion), each with the end-of-text id that closes it. Where an answer
lies is found by writing the conversation up to it: its ids must begin the whole's, as they do when it is asked.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from faisca.data.chat import ChatTemplate, Message, check_messages
from faisca.data.headlines import is_held_out
from faisca.errors import FaiscaError
from faisca.text import in_one_line


@dataclass(frozen=True)
class Row:
    """One line of a file: a conversation, and from which message on answers count."""

    where: str
    messages: list[Message]
    first: int


@dataclass(frozen=True)
class Conversations:
    """One conversation a row, padded on the right: causal attention never looks there, and no target is there."""

    tokens: np.ndarray
    """inputs and targets, int32 [n, 2, T]: targets are -1 where nothing is learnt"""

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of these rows: int32 [B, T] each."""
        rows = self.tokens[indices]
        return rows[:, 0], rows[:, 1]

    def evaluation_batches(self, batch_size: int, most: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows in order, int32 [B, T] each; what the last batch has too much has no target."""
        for start in range(0, len(self), batch_size)[:most]:
            inputs, targets = self.batch(np.arange(start, min(start + batch_size, len(self))))
            spare = ((0, batch_size - len(inputs)), (0, 0))
            yield np.pad(inputs, spare), np.pad(targets, spare, constant_values=-1)


@dataclass(frozen=True)
class ConversationSplits:
    """What a file of conversations comes to."""

    train: Conversations
    validation: Conversations
    report: str
    """one line: what is learnt from, and what was dropped"""


def read_rows(source: str) -> list[Row]:
    """The conversations of a JSONL file; a FaiscaError names the line that is none."""
    try:
        lines = Path(source).expanduser().read_bytes().splitlines()
    except OSError as error:
        raise FaiscaError(
            f"sft.conversations {source} cannot be read ({error.strerror}): name a file of JSON, an object a line"
        ) from error
    rows = [_row(line, f"{source}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise FaiscaError(f"sft.conversations {source} is empty: write a conversation a line")
    return rows


def encode_rows(
    rows: Sequence[Row], template: ChatTemplate, *, window: int, share: float, seed: int, told: Callable[[int], None]
) -> ConversationSplits:
    """Both splits; `share` is held out, by a hash of the messages and `seed`. `told` takes how many rows are done.

    Rows of more than `window` tokens are dropped and counted: cut short, they would teach answers without an end.
    """
    kept, texts, size = list[np.ndarray](), list[str](), 0
    for number, row in enumerate(rows, 1):
        inputs, targets = answers(row, template)
        size = max(size, len(inputs))
        if len(inputs) <= window:
            kept.append(np.stack([_padded(inputs, window, 0), _padded(targets, window, -1)]))
            texts.append(json.dumps(row.messages, sort_keys=True))
        told(number)
    if len(set(texts)) < 2:
        raise FaiscaError(
            f"of {len(rows)} conversations {len(set(texts))} that differ fit data.window {window} (the longest has "
            f"{size} tokens), and one is held out: use a larger --data.window, or more of them"
        )
    held_out = is_held_out(pa.array(texts), share, seed)
    tokens = np.stack(kept)
    train, validation = Conversations(tokens[~held_out]), Conversations(tokens[held_out])
    return ConversationSplits(train, validation, _report(train, validation, len(rows), window))


def answers(row: Row, template: ChatTemplate) -> tuple[list[int], list[int]]:
    """Inputs and targets of a conversation, up to its last counted token: targets are -1 outside of answers."""
    try:
        return _answers(row, template)
    except FaiscaError as error:
        raise FaiscaError(f"{row.where}: {error}") from error


def _answers(row: Row, template: ChatTemplate) -> tuple[list[int], list[int]]:
    whole = template.ids(row.messages)
    counted = np.zeros(len(whole), bool)
    for i in range(row.first, len(row.messages)):
        if row.messages[i]["role"] != "assistant":
            continue
        before, after = template.ids(row.messages[:i], answer=True), template.ids(row.messages[: i + 1])
        closes = [n for n in range(len(before), len(after)) if after[n] in template.tokenizer.ends]
        if after[: len(before)] != before or whole[: (closes or [0])[-1] + 1] != after[: (closes or [0])[-1] + 1]:
            raise FaiscaError(
                f"message {i + 1} does not go on from what comes before it, as the chat template writes it: "
                "leave out white space at its beginning, or the line"
            )
        if not closes:
            raise FaiscaError(
                f"the chat template closes message {i + 1} with none of the model's end-of-text ids "
                f"({', '.join(map(str, template.tokenizer.ends))}): name it in generation_config.json, and port again"
            )
        counted[len(before) : closes[-1] + 1] = True
    if not counted.any():
        raise FaiscaError("no message of the assistant's is to be learnt: add an answer, or leave the line out")
    end = int(np.flatnonzero(counted)[-1])
    # position t predicts token t + 1
    return whole[:end], [token if counts else -1 for token, counts in zip(whole, counted, strict=True)][1 : end + 1]


def _row(line: bytes, where: str) -> Row:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FaiscaError(f"{where} is no JSON ({in_one_line(error)}): write an object a line") from error
    names = sorted(values) if isinstance(values, dict) else [type(values).__name__]
    try:
        if "messages" in names:
            return Row(where, check_messages(values["messages"]), 0)
        if {"prompt", "completion"} <= set(names):
            before = _turns(values["prompt"], "user")
            return Row(where, [*before, *_turns(values["completion"], "assistant")], len(before))
    except FaiscaError as error:
        raise FaiscaError(f"{where}: {error}") from error
    raise FaiscaError(f"{where} has neither messages nor prompt and completion, but {', '.join(names) or 'nothing'}")


def _turns(value: Any, role: str) -> list[Message]:
    return check_messages([{"role": role, "content": value}] if isinstance(value, str) else value)


def _padded(ids: Sequence[int], length: int, value: int) -> np.ndarray:
    return np.array([*ids, *[value] * (length - len(ids))], np.int32)


def _report(train: Conversations, validation: Conversations, rows: int, window: int) -> str:
    dropped = rows - len(train) - len(validation)
    counted = int((train.tokens[:, 1] >= 0).sum())
    return (
        f"{len(train):,} training and {len(validation):,} held-out conversations from {rows:,} rows, loss on "
        f"{counted:,} tokens of answers" + (f"; dropped: {dropped:,} longer than data.window {window}" * bool(dropped))
    )
