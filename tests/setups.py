"""A real `Setup` around a twin, or around what stands in for one: what sampling, measuring and GRPO take."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tiktoken
from small_models import SMALL, cpu_runtime

from faisca.backend import Backend
from faisca.config import Config, RunConfig
from faisca.data.byte_level import END_OF_TEXT
from faisca.data.tokenizer import Tokenizer
from faisca.training.setup import Setup


def bare_tokenizer(tokens: Sequence[bytes]) -> Tokenizer:
    """These tokens, and end-of-text after them; it decodes, and encodes the empty text alone."""
    ranks, end = {token: i for i, token in enumerate(tokens)}, {END_OF_TEXT: len(tokens)}
    return Tokenizer("bpe", tiktoken.Encoding("bare", pat_str=".", mergeable_ranks=ranks, special_tokens=end))


TWELVE = bare_tokenizer([bytes([i]) for i in range(SMALL.vocabulary_size - 1)])
"""as many tokens as SMALL has, END last"""


def small_setup(
    twin: Backend, tokenizer: Tokenizer = TWELVE, sections: Mapping[str, Any] | None = None, **model: Any
) -> Setup:
    """SMALL with the tokenizer's vocabulary, on the CPU, with seed 1.

    `sections` are those of `Config`, `model` options of `ModelConfig`.
    """
    config = Config(**{"run": RunConfig(seed=1)} | dict(sections or {}))
    options = {"vocabulary_size": tokenizer.vocabulary_size} | model
    return Setup(config, twin, cpu_runtime(twin), tokenizer, dataclasses.replace(SMALL, **options))
