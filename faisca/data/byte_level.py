"""Byte-level BPEs as GPT-2 and this project write them: tokenizer.json to tiktoken's engine, and back.

tiktoken joins the pair whose union has the lowest id, Hugging Face the pair that was learnt first: the same thing
where ids follow the order of learning.
"""

import math
from itertools import pairwise
from typing import Any

import tiktoken
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

END_OF_TEXT = "<|endoftext|>"
# how GPT-2 splits a text into words before any merge, as tiktoken writes it
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def byte_level(model: models.BPE) -> Engine:
    """Hugging Face's engine, as GPT-2's files have it."""
    tokenizer = Engine(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def json_with_end_of_text(tokenizer: Engine) -> str:
    """tokenizer.json with <|endoftext|> after all tokens."""
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return str(tokenizer.to_str(pretty=True))


def problem(state: dict[str, Any]) -> str | None:
    """What in a parsed tokenizer.json is not as in ours; None where tiktoken's engine gives the same ids."""
    model, splitter = state["model"], state["pre_tokenizer"] or {}
    options = ("dropout", "byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE":
        return f"a {model['type']} model"
    if state["normalizer"] or any(model[option] for option in options):
        return "a normalizer or model options of its own"
    if splitter.get("type") != "ByteLevel" or splitter["add_prefix_space"] or not splitter["use_regex"]:
        return "words that are not split as GPT-2 splits them"
    if not _ids_follow_merges(model, state["added_tokens"]):
        return "tokens other than 256 bytes, their merges in order, and <|endoftext|>"
    return None


def tiktoken_encoding(state: dict[str, Any]) -> tiktoken.Encoding:
    """tiktoken's engine of a parsed tokenizer.json that has no `problem`."""
    byte_of = {character: byte for byte, character in byte_characters().items()}
    tokens = {token: i for token, i in state["model"]["vocab"].items() if token != END_OF_TEXT}
    ranks = {bytes(byte_of[c] for c in token): i for token, i in tokens.items()}
    specials = {END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding("bpe", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def _ids_follow_merges(model: dict[str, Any], added: list[dict[str, Any]]) -> bool:
    vocabulary = {token: i for token, i in model["vocab"].items() if token != END_OF_TEXT}
    single = {token for token, i in vocabulary.items() if i < 256}
    merged = [vocabulary[left + right] for left, right in model["merges"]]
    return (
        sorted(vocabulary.values()) == list(range(len(vocabulary)))
        and single == set(byte_characters().values())
        and merged == list(range(256, len(vocabulary)))
        and [(token["content"], token["id"]) for token in added] == [(END_OF_TEXT, len(vocabulary))]
    )


def json_from_tokens(tokens: list[bytes]) -> str:
    """tokenizer.json from tokens in the order of their ranks."""
    characters = byte_characters()
    texts = ["".join(characters[byte] for byte in token) for token in tokens]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    pairs = [merged_from(token, ranks) for token in tokens if len(token) > 1]
    merges = [(texts[ranks[left]], texts[ranks[right]]) for left, right in pairs]
    vocabulary = {text: rank for rank, text in enumerate(texts)}
    return json_with_end_of_text(byte_level(models.BPE(vocab=vocabulary, merges=merges)))


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
