"""Conversations as a model's own chat template writes them: the same text, and the same ids, as transformers'.

A template is a program that came with the model, so it runs in jinja2's sandbox, with what transformers offers it
and nothing more. Special tokens that are written in a message become tokens, as they do there.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from faisca.data.byte_level import END_OF_TEXT
from faisca.data.json_encoding import json_file
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.text import in_one_line

Message = Mapping[str, Any]
"""`role` (system, user, assistant) and `content`, texts; a template may know more keys"""
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FILES = "the tokenizer's files"


class ChatTemplate:
    """The chat template of a tokenizer; FaiscaError where it has none, or one that jinja2 cannot read."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._special = _special_tokens(tokenizer)
        self._template = _compile(_source(tokenizer))

    def text(self, messages: Sequence[Message], answer: bool = False) -> str:
        """What the template writes; with `answer` as far as the assistant's next turn begins."""
        values = {**self._special, "messages": list(messages), "add_generation_prompt": answer, "tools": None}
        try:
            return self._template.render(**values, documents=None)
        except (TemplateError, TypeError, AttributeError, KeyError, ValueError) as error:  # of the stranger's program
            raise FaiscaError(
                f"the model's chat template does not take these messages ({in_one_line(error)}): change their roles"
            ) from error

    def ids(self, messages: Sequence[Message], answer: bool = False) -> list[int]:
        """Token ids of `text`; only the template says whether a token begins it."""
        return self.tokenizer.encode_special(self.text(messages, answer))


@lru_cache(maxsize=1)
def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template of a tokenizer, read once."""
    return ChatTemplate(tokenizer)


def check_messages(messages: Any) -> list[Message]:
    """The messages of a conversation, or a FaiscaError that says which is none."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise FaiscaError(f"messages are a {type(messages).__name__}, or none: write a list of {{role, content}}")
    for number, message in enumerate(messages, 1):
        for key in ("role", "content"):
            value = message.get(key) if isinstance(message, Mapping) else None
            if not isinstance(value, str):
                raise FaiscaError(f"message {number} has {key} {in_one_line(ValueError(repr(value)))}: write a text")
    return list(messages)


def has_template(files: Mapping[str, bytes]) -> bool:
    """Whether a tokenizer's files have a chat template."""
    return _stated(files) is not None


def _stated(files: Mapping[str, bytes]) -> str | None:
    """The template's text: a file of its own comes before tokenizer_config.json, as in transformers."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", "replace")
    stated = json_file(files, "tokenizer_config.json", FILES).get("chat_template")
    if isinstance(stated, list):
        stated = {entry["name"]: entry["template"] for entry in stated}.get("default")
    return stated if isinstance(stated, str) else None


def _source(tokenizer: Tokenizer) -> str:
    stated = _stated(tokenizer.companions)
    if stated is None:
        raise FaiscaError(
            "the model has no chat template: take an instruct model, or put a chat_template.jinja into its "
            "Hugging Face folder and port it again"
        )
    return stated


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The texts of the special tokens, which a template may write, by name."""
    found: dict[str, Any] = dict.fromkeys(SPECIAL[:3], END_OF_TEXT) if tokenizer.kind != "json" else {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        found |= json_file(tokenizer.companions, name, FILES)
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name in SPECIAL if isinstance(text := texts.get(name), str)}


class _Generation(Extension):
    """`{% generation %}` marks answers for those who ask; here it only has to be read."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

    def _unchanged(self, caller: Macro) -> str:
        return str(caller())


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise FaiscaError(f"the model's chat template cannot be read ({in_one_line(error)}): copy it again") from error


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
