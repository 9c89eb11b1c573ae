"""A tokenizer.json of any kind, by Hugging Face's own engine, behind the methods of tiktoken's that we use.

For what a ported model brings: byte-level BPEs with other splits into words, special tokens anywhere and an end of
text with another name; SentencePiece's BPE (Llama 2, Mistral) and Unigram (T5), whose words begin with U+2581. What a
token means is asked of the file's own decoder, so there is no list of kinds: only whether text comes back.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Engine

from faisca.data.byte_level import byte_characters
from faisca.errors import FaiscaError

COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
"""files that stand beside a tokenizer.json: they travel with it, byte by byte"""
NO_TOKEN = "\N{REPLACEMENT CHARACTER}".encode()
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""how SentencePiece writes a byte of a character that is no token"""
SAMPLES = ("a", "A b", "a, b. c", "d'a", "a-b", "(a)", "1.5", "a? b!", "a do n't b")
"""texts that must come back; WordPiece would move their spaces"""


class JsonEncoding:
    """What tiktoken.Encoding is to us, of a tokenizer.json; special tokens in a text are text like any other."""

    def __init__(self, engine: Engine, companions: Mapping[str, bytes], end_of_text: int, source: str) -> None:
        self.engine, self.eot_token = engine, end_of_text
        self.engine.encode_special_tokens = True
        self.engine.no_truncation()
        self.engine.no_padding()
        self.n_vocab = max(engine.get_vocab(with_added_tokens=True).values()) + 1
        self._added = {i: token.content for i, token in engine.get_added_tokens_decoder().items()}
        if end_of_text not in self._added:
            raise FaiscaError(
                f"{source}: {end_of_text}, said to end a text, is none of its added tokens: correct eos_token"
            )
        self._bytes = {character: byte for byte, character in byte_characters().items()}
        self.byte_level = self._written("\u0120") == " "
        """whether its tokens are written as GPT-2's are"""
        self._byte_fallback = self._written("<0x41>") == "A"
        self.bos = tuple(i for i in _begins(engine, companions, source) if i != end_of_text)
        """the ids that the model's own tokenizer begins a text with"""
        first = self.encode_ordinary("a")[:1]
        self.begins_with_space = any(self.decode_single_token_bytes(i).startswith(b" ") for i in first)
        """whether the first token of a text brings a space that is not in the text"""
        self._check(source)

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
        """The bytes of a token inside a text; U+FFFD's where no token has that id."""
        written = self._added.get(token) or self.engine.id_to_token(token)
        if written is None:
            return NO_TOKEN
        if self.byte_level:
            if token in self._added or not set(written) <= set(self._bytes):
                return written.encode()
            return bytes(self._bytes[character] for character in written)
        if self._byte_fallback and (byte := BYTE.fullmatch(written)):
            return bytes.fromhex(byte[1])
        return self._written("a", written)[1:].encode()

    def first_bytes(self, token: int) -> bytes:
        """The bytes of a token that begins a text: SentencePiece's decoders leave out a space there."""
        inside = self.decode_single_token_bytes(token)
        if self.byte_level or inside == NO_TOKEN or (inside >= b"\x80" and len(inside) == 1):
            return inside
        return self._written(str(self.engine.id_to_token(token))).encode()

    def _written(self, *tokens: str) -> str:
        """What the file's decoder makes of tokens."""
        decoder = self.engine.decoder
        return decoder.decode(list(tokens)) if decoder else " ".join(tokens)

    def _check(self, source: str) -> None:
        """Raise a FaiscaError where text does not come back from its ids."""
        for text in SAMPLES:
            ids = self.encode_ordinary(text)
            parts = [self.first_bytes(i) for i in ids[:1]] + [self.decode_single_token_bytes(i) for i in ids[1:]]
            back = b"".join(parts).decode("utf-8", "replace")
            if back != text and not self._unknown().intersection(ids):
                kind = type(self.engine.model).__name__
                raise FaiscaError(
                    f"{source} does not give text back: {text!r} comes back from its {kind} as {back!r}; use a model "
                    "whose tokenizer does, a BPE or Unigram as language models have"
                )

    def _unknown(self) -> set[int | None]:
        """The id that stands for whatever is no token, if there is one."""
        model = json.loads(self.engine.to_str())["model"]
        return {model.get("unk_id"), self.engine.token_to_id(model.get("unk_token") or "")} - {None}


def parse_tokenizer(text: str, source: str) -> Engine:
    """The engine of a tokenizer.json, or a FaiscaError that names `source`."""
    try:
        return Engine.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise FaiscaError(f"{source} is no tokenizer.json that can be read: {error}") from error


def named_end_of_text(engine: Engine, companions: Mapping[str, bytes], source: str) -> int | None:
    """The id of the eos_token that tokenizer_config.json or special_tokens_map.json names; None where neither does."""
    return _named(engine, companions, "eos_token", source)


def _named(engine: Engine, companions: Mapping[str, bytes], key: str, source: str) -> int | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = json_file(companions, name, source).get(key)
        content = token.get("content") if isinstance(token, dict) else token
        if content is not None:
            break
    else:
        return None
    found = engine.token_to_id(str(content))
    if found is None:
        raise FaiscaError(f"{source}: {name} has {key} {content!r}, which tokenizer.json has not")
    return int(found)


def _begins(engine: Engine, companions: Mapping[str, bytes], source: str) -> list[int]:
    """What is put before a text: as tokenizer_config.json says, else as tokenizer.json does; as in transformers."""
    stated = json_file(companions, "tokenizer_config.json", source).get("add_bos_token")
    if isinstance(stated, bool):
        bos = _named(engine, companions, "bos_token", source) if stated else None
        return [] if bos is None else [bos]
    plain, whole = (engine.encode("a", add_special_tokens=special).ids for special in (False, True))
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(plain)] == plain), [])


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
