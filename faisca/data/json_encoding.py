"""A tokenizer.json of any byte-level BPE, by Hugging Face's own engine, behind the methods of tiktoken's that we use.

For what a ported model brings: other splits into words, special tokens anywhere, an end of text with another name.
"""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer as Engine

from faisca.errors import FaiscaError

COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
"""files that stand beside a tokenizer.json: they travel with it, byte by byte"""
NO_TOKEN = "\N{REPLACEMENT CHARACTER}".encode()


class JsonEncoding:
    """What tiktoken.Encoding is to us, of a tokenizer.json; special tokens in a text are text like any other."""

    def __init__(self, text: str, end_of_text: int, source: str) -> None:
        self.engine = parse_tokenizer(text, source)
        self.engine.encode_special_tokens = True
        self.engine.no_truncation()
        self.engine.no_padding()
        self.eot_token = end_of_text
        vocabulary = self.engine.get_vocab(with_added_tokens=True)
        self.n_vocab = max(vocabulary.values()) + 1
        self._added = {i: token.content for i, token in self.engine.get_added_tokens_decoder().items()}
        self._bytes = {character: byte for byte, character in byte_characters().items()}
        if end_of_text not in self._added:
            raise FaiscaError(
                f"{source}: {end_of_text}, said to end a text, is none of its added tokens: correct eos_token"
            )
        decoder = json.loads(text).get("decoder") or {}
        if decoder.get("type") != "ByteLevel":
            kind = decoder.get("type", "no decoder")
            raise FaiscaError(f"{source} has a decoder of type {kind!r}: use a model with a byte-level BPE (ByteLevel)")

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of a text."""
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken does
        return list(self.engine.encode(clean, add_special_tokens=False).ids)

    def encode_special(self, text: str) -> list[int]:
        """Token ids of a text whose special tokens are tokens."""
        self.engine.encode_special_tokens = False
        try:
            return self.encode_ordinary(text)
        finally:
            self.engine.encode_special_tokens = True

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of a token; U+FFFD's where no token has that id."""
        written = self._added.get(token) or self.engine.id_to_token(token)
        if written is None:
            return NO_TOKEN
        if token in self._added or not set(written) <= set(self._bytes):
            return written.encode()
        return bytes(self._bytes[character] for character in written)


def parse_tokenizer(text: str, source: str) -> Engine:
    """The engine of a tokenizer.json, or a FaiscaError that names `source`."""
    try:
        return Engine.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise FaiscaError(f"{source} is no tokenizer.json that can be read: {error}") from error


def named_end_of_text(files: Mapping[str, bytes], source: str) -> int | None:
    """The id of the eos_token that tokenizer_config.json names; None where it names none."""
    config = json_file(files, "tokenizer_config.json", source)
    token = config.get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    if content is None:
        return None
    found = parse_tokenizer(files["tokenizer.json"].decode(), source).token_to_id(str(content))
    if found is None:
        raise FaiscaError(f"{source}: tokenizer_config.json has eos_token {content!r}, which tokenizer.json has not")
    return int(found)


def json_file(files: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    """The object in one of the files; empty where the file is not there."""
    try:
        values = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise FaiscaError(f"{source}: {name} is no JSON ({error}): copy it again") from error
    if not isinstance(values, dict):
        raise FaiscaError(f"{source}: {name} holds no JSON object: copy it again")
    return values


def as_ids(stated: Any) -> list[int]:
    """An eos_token_id as files state it (an id, several or none) as a list."""
    if stated is None:
        return []
    return list(stated) if isinstance(stated, list) else [stated]


def byte_characters() -> dict[int, str]:
    """The printable character by which GPT-2's vocabulary files write each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def merged_from(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that were joined to `token`: what BPE makes of it one merge before the last."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        unions = [ranks.get(left + right, math.inf) for left, right in pairwise(parts)]
        i = unions.index(min(unions))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]
