"""What a page asks for, read from JSON: everything is checked, for anybody may have written it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from faisca.data.chat import Message, check_messages
from faisca.errors import FaiscaError
from faisca.text import shortened

MOST_ROWS, MOST_NEW_TOKENS, MOST_ASKS = 8, 1024, 16
"""headlines of a column at once, tokens of each, columns of a request"""
LARGEST = 2**53 - 1
"""the largest integer that a browser counts to"""

Prompt = str | list[Message]
"""how a headline begins, or a conversation"""


@dataclass(frozen=True)
class Settings:
    """How tokens are drawn, for all columns."""

    seed: int
    rows: int
    """headlines of each column"""
    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Ask:
    """What one column is to write: to a prompt, or to a conversation; from the beginning, or from some tokens on."""

    column: str
    """STAGE/BACKEND"""
    prompt: Prompt
    row: int | None = None
    """the headline that is gone on with; None: all of them, from the beginning"""
    after: tuple[int, ...] = ()
    """its tokens so far, the one that was chosen for it included"""


def parse_request(body: bytes) -> tuple[list[Ask], Settings]:
    """The asks of a request, and their settings; FaiscaError for anything else."""
    found = _object(_json(body), "the request")
    _known(found, {"asks", "settings"}, "the request")
    asks = found.get("asks")
    if not isinstance(asks, list) or not 1 <= len(asks) <= MOST_ASKS:
        raise FaiscaError(f"asks are no list of 1 to {MOST_ASKS}: send one a column")
    return [_ask(_object(ask, "an ask")) for ask in asks], _settings(_object(found.get("settings"), "settings"))


def _ask(found: Mapping[str, Any]) -> Ask:
    _known(found, {"column", "prompt", "messages", "row", "after"}, "an ask")
    column, prompt, messages = found.get("column"), found.get("prompt"), found.get("messages")
    if not isinstance(column, str):
        raise FaiscaError(f"column {_shown(column)} is no text: name STAGE/BACKEND")
    if (prompt is None) == (messages is None) or not isinstance(prompt, str | None):
        raise FaiscaError(f"column {_shown(column)} has neither a prompt nor messages, or both: send one of them")
    row, after = found.get("row"), found.get("after", [])
    if not isinstance(after, list) or len(after) > MOST_NEW_TOKENS:
        raise FaiscaError(f"after is no list of at most {MOST_NEW_TOKENS} token ids: send those of one headline")
    ids = tuple(_whole("a token of after", token, 0, 2**31 - 1) for token in after)
    if ids and row is None:
        raise FaiscaError("after has tokens of no row: say which headline goes on")
    row = None if row is None else _whole("row", row, 0, MOST_ROWS - 1)
    return Ask(column, _texts(check_messages(messages) if prompt is None else prompt), row, ids)


def _texts(prompt: Prompt) -> Prompt:
    """The prompt or the messages, of Unicode text alone: JSON can have halves of characters."""
    try:
        for message in [{"": prompt}] if isinstance(prompt, str) else prompt:
            "".join(map(str, message.values())).encode()
    except UnicodeEncodeError as error:
        raise FaiscaError(f"the text is not valid Unicode ({error.reason}): mend it") from error
    return prompt


def _settings(found: Mapping[str, Any]) -> Settings:
    _known(found, {"seed", "rows", "temperature", "top_k", "top_p", "max_new_tokens"}, "settings")
    return Settings(
        seed=_whole("seed", found.get("seed"), 0, LARGEST),
        rows=_whole("rows", found.get("rows"), 1, MOST_ROWS),
        temperature=_number("temperature", found.get("temperature")),
        top_k=_whole("top_k", found.get("top_k"), 0, LARGEST),
        top_p=_number("top_p", found.get("top_p")),
        max_new_tokens=_whole("max_new_tokens", found.get("max_new_tokens"), 1, MOST_NEW_TOKENS),
    )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of too many digits, too deep
        raise FaiscaError(f"the request is no JSON ({type(error).__name__}): use the page") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise FaiscaError(f"{name} {_shown(value)} is no JSON object: use the page")
    return value


def _known(found: Mapping[str, Any], names: set[str], of: str) -> None:
    if unknown := found.keys() - names:
        raise FaiscaError(f"{of} has {_shown(min(unknown))}, which is unknown: leave it out")


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FaiscaError(f"{name} {_shown(value)} is out of range: use a whole number from {least} to {most}")
    return value


def _number(name: str, value: Any) -> float:
    """A number; which of them make sense, the configuration's own ranges say."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
        raise FaiscaError(f"{name} {_shown(value)} is no number: send one")
    return float(value)


def _shown(value: Any) -> str:
    return shortened(ascii(value), 40)
