"""Conversations on the command line: one answer, or turn by turn."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from faisca.text import printable

if TYPE_CHECKING:
    from faisca.data.chat import Message
    from faisca.loaded_model import LoadedModel


def opening(system: str | None) -> list[dict[str, str]]:
    """How a conversation begins: with nothing, or with what the system says."""
    return [] if system is None else [{"role": "system", "content": system}]


def ask(model: "LoadedModel", messages: "Sequence[Message]", seed: int, settings: Mapping[str, Any]) -> str:
    """The answer to a conversation; standard error says where it is cut short, and how to get more."""
    sampling = model.sampling(**settings)
    answer = model.answer(messages, seed, sampling)
    if answer.cut == "max_new_tokens":
        words = f"after {sampling.max_new_tokens} tokens: for more of it, use a larger --max-new-tokens"
    elif answer.cut:
        words = f"where the model's context of {model.setup.model_config.context} tokens is full: begin a new one"
    if answer.cut:
        print(f"faisca: the answer is cut {words}", file=sys.stderr, flush=True)
    return answer.text


def converse(model: "LoadedModel", system: str | None, seed: int, settings: Mapping[str, Any]) -> int:
    """Answer a line of standard input at a time, all turns kept, until it ends (Ctrl-D); returns the exit status.

    The n-th answer draws with seed + n.
    """
    messages, answered = opening(system), 0
    while (line := _next_line()) is not None:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        answer = ask(model, messages, seed + answered, settings)
        messages.append({"role": "assistant", "content": answer})
        answered += 1
        print(printable(answer), flush=True)
    return 0


def _next_line() -> str | None:
    """A line without its end; None where there are no more."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None
