"""Text to token ids and back: GPT-2's byte-level BPE, one trained on the titles, or a ported model's.

The first two run on tiktoken's engine (`byte_level.py`), which is several times as fast on short titles as Hugging
Face's; a trained BPE is stored as Hugging Face's tokenizer.json, so other tools can read it. The tokenizer.json of a
ported model may be of another kind: then Hugging Face's engine runs it (`json_encoding.py`).
(BPE: Sennrich et al. 2016, arXiv 1508.07909; on bytes: Radford et al. 2019, GPT-2.)
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import tiktoken
from tokenizers import models, pre_tokenizers, trainers

from faisca.config import TokenizerConfig
from faisca.data.byte_level import (
    END_OF_TEXT,
    GPT2_PATTERN,
    byte_level,
    json_from_tokens,
    json_with_end_of_text,
    problem,
    tiktoken_encoding,
)
from faisca.data.json_encoding import (
    COMPANIONS,
    NO_TOKEN,
    JsonEncoding,
    as_ids,
    json_file,
    named_end_of_text,
    parse_tokenizer,
)
from faisca.errors import FaiscaError

GPT2_TOKENS = 50_257
"""in GPT-2's vocabulary"""
COMPARED = 1000  # titles on which both engines must agree after training


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """Text to ids and back; of a byte-level BPE, as all but ported ones are, any text decodes to itself."""

    kind: str
    """gpt2, bpe (as this project trains them: its last token is end-of-text) or json (a ported model's)"""
    encoding: tiktoken.Encoding | JsonEncoding
    stored_json: str | None = None
    """the tokenizer.json that it came from; none of gpt2"""
    companions: Mapping[str, bytes] = field(default_factory=dict)
    """files that stood beside that tokenizer.json"""

    @staticmethod
    def gpt2(otherwise: str = "go online once") -> "Tokenizer":
        """tiktoken's 50,257 tokens; where they are neither cached nor to be had, a FaiscaError with another remedy."""
        try:
            return Tokenizer("gpt2", tiktoken.get_encoding("gpt2"))
        except (OSError, ValueError) as error:  # no network, or a damaged download
            raise FaiscaError(
                f"the gpt2 vocabulary cannot be downloaded ({type(error).__name__}): set TIKTOKEN_CACHE_DIR "
                f"to a folder that has it, or {otherwise}"
            ) from error

    @staticmethod
    def train(titles: Iterable[str], vocabulary_size: int) -> "Tokenizer":
        """Learn a BPE of `vocabulary_size` tokens, or fewer where the titles have no more to merge."""
        titles = list(titles)
        learner = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size - 1,  # end-of-text comes on top
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learner.train_from_iterator(titles, trainer, length=len(titles))
        text = json_with_end_of_text(learner)
        tokenizer = Tokenizer.from_json(text, "the trained tokenizer")
        learner.encode_special_tokens = True  # compare as ordinary text
        for title in titles[:: max(1, len(titles) // COMPARED)]:
            assert tokenizer.encode(title) == learner.encode(title).ids, f"the engines differ on {title!r}"
        return tokenizer

    @staticmethod
    def from_json(text: str, source: str) -> "Tokenizer":
        """Take a byte-level BPE from a tokenizer.json; a FaiscaError names `source` where it is none."""
        state = json.loads(parse_tokenizer(text, source).to_str())
        if found := problem(state):
            raise FaiscaError(f"{source} has {found}: use a byte-level BPE as faisca or GPT-2 writes it")
        return Tokenizer("bpe", tiktoken_encoding(state), text)

    @staticmethod
    def from_files(files: Mapping[str, bytes], source: str, end_of_text: int | None = None) -> "Tokenizer":
        """Any tokenizer that gives text back, from a tokenizer.json and its companions, by name; none is GPT-2's.

        What ends a text is what its companions name, or `end_of_text`. FaiscaError names `source`.
        """
        if "tokenizer.json" not in files:
            return Tokenizer.gpt2()
        try:
            text = files["tokenizer.json"].decode()
        except UnicodeDecodeError as error:
            raise FaiscaError(f"{source} cannot be read ({error}): copy it again") from error
        companions = {name: files[name] for name in COMPANIONS if name in files}
        engine = parse_tokenizer(text, source)
        named = named_end_of_text(engine, companions, source)
        state = json.loads(engine.to_str())
        if not problem(state) and named in (None, state["added_tokens"][0]["id"]):
            return Tokenizer("bpe", tiktoken_encoding(state), text, companions)
        ends = end_of_text if named is None else named
        if ends is None:
            raise FaiscaError(f"{source}: nothing says which token ends a text: add eos_token to tokenizer_config.json")
        return Tokenizer("json", JsonEncoding(engine, companions, ends, source), text, companions)

    @property
    def end_of_text(self) -> int:
        """The id that ends each title."""
        return self.encoding.eot_token

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Every id at which generation stops, in order: `end_of_text`, and those that generation_config.json names."""
        stated = json_file(self.companions, "generation_config.json", "the tokenizer's files").get("eos_token_id")
        return tuple(sorted({self.end_of_text, *as_ids(stated)}))

    @property
    def beginning(self) -> tuple[int, ...]:
        """The ids before a prompt: what the model's own tokenizer begins a text with, or else an end-of-text."""
        return self._bos or (self.end_of_text,)

    @property
    def _bos(self) -> tuple[int, ...]:
        return self.encoding.bos if isinstance(self.encoding, JsonEncoding) else ()

    def as_saved(self, fingerprint: str | None) -> "Tokenizer":
        """As a run of this fingerprint knows it: runs of earlier versions begin a text with an end-of-text alone."""
        if not self._bos or fingerprint in (None, self.fingerprint):
            return self
        encoding = copy(self.encoding)
        assert isinstance(encoding, JsonEncoding)
        encoding.bos = ()
        return replace(self, encoding=encoding)

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are, end-of-text included."""
        return self.encoding.n_vocab

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what determines the ids: how words are split, and the tokens.

        Of json, the whole file, and what begins a text if anything does.
        """
        if self.kind == "json":
            begins = "".join(f" {token}" for token in self._bos)
            return hashlib.sha256((self.json_text() + begins).encode()).hexdigest()
        digest = hashlib.sha256(GPT2_PATTERN.encode())
        for token in self.token_bytes:
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Each token's bytes, by id."""
        return [self.encoding.decode_single_token_bytes(i) for i in range(self.vocabulary_size)]

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text: a literal <|endoftext|> in it is text like any other."""
        return self.encoding.encode_ordinary(text)

    def encode_special(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are written out, as chat templates do."""
        if isinstance(self.encoding, JsonEncoding):
            return self.encoding.encode_special(text)
        return self.encoding.encode(text, allowed_special="all")

    def encode_titles(self, titles: Sequence[str]) -> np.ndarray:
        """Ids of all titles, end-of-text after each, and before it what the model's own tokenizer begins with: uint32.

        As `encode`, in one call of the library where that is faster.
        """
        # a literal <|endoftext|> is text like any other, not the token
        if isinstance(self.encoding, JsonEncoding) or any(END_OF_TEXT in title for title in titles):
            rows = ((*self._bos, *self.encode(title), self.end_of_text) for title in titles)
            return np.array([i for row in rows for i in row], np.uint32)
        return self.encoding.encode_to_numpy(
            "".join(title + END_OF_TEXT for title in titles), allowed_special={END_OF_TEXT}
        )

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """Text of token ids as it goes on from the ids `after`, so that the space between them is neither lost nor new.

        What begins and ends a text is left out; what is no UTF-8, or no token, becomes U+FFFD.
        """
        known, silent = range(self.vocabulary_size), {*self.ends, *self._bos}
        shown = [i for i in ids if i not in silent]
        parts = [self.token_bytes[i] if i in known else NO_TOKEN for i in shown]
        begins = shown and shown[0] in known and silent.issuperset(after)
        if isinstance(self.encoding, JsonEncoding) and begins:
            parts[0] = self.encoding.first_bytes(shown[0])
        return b"".join(parts).decode("utf-8", errors="replace")

    def bytes_per_token(self) -> np.ndarray:
        """Length of each token in bytes: int64 [V]; end-of-text counts 1, for the line break it stands for.

        Where a title's first token brings a space of its own, that space is the line break; what begins a text is none.
        """
        lengths = np.array([len(token) for token in self.token_bytes], np.int64)
        lengths[self.end_of_text] = 1
        if isinstance(self.encoding, JsonEncoding):
            lengths[list(self._bos)] = 0
            lengths[self.end_of_text] -= self.encoding.begins_with_space
        return lengths

    def json_text(self) -> str:
        """The tokenizer as Hugging Face's tokenizer.json."""
        return self.stored_json or json_from_tokens(self.token_bytes[: self.end_of_text])

    def files(self) -> dict[str, bytes]:
        """What a checkpoint keeps of it, by file name, and `from_files` reads: nothing of gpt2."""
        return {} if self.kind == "gpt2" else {"tokenizer.json": self.json_text().encode(), **self.companions}


def expected_tokens(config: TokenizerConfig) -> int:
    """The vocabulary that a configuration asks for: a BPE may find fewer tokens in its titles."""
    return GPT2_TOKENS if config.kind == "gpt2" else config.vocabulary_size


def load_tokenizer(config: TokenizerConfig, titles: pa.Array) -> Tokenizer:
    """The tokenizer that the configuration asks for; a bpe is trained on the titles."""
    if config.kind == "gpt2":
        return Tokenizer.gpt2("train a vocabulary with --tokenizer.kind bpe")
    if config.kind == "json":
        raise FaiscaError("tokenizer.kind json is a ported model's: begin with that model (--from), or choose bpe")
    return Tokenizer.train(titles.to_pylist(), config.vocabulary_size)
