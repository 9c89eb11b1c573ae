"""The libraries that read what we write, behind the twins' `interop` modules; imported only when asked for."""

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from faisca.backends import BACKENDS
from faisca.errors import FaiscaError
from faisca.system.packages import importable
from faisca.system.tensors import Tensors

NEEDS = {name: (row.needs, "safetensors") for name, row in BACKENDS.items()} | {
    row.reader: (row.needs, row.reader) for row in BACKENDS.values()
}
"""the packages behind each library that reads: a twin, or what it reads Hugging Face folders with"""
REMEDIES = {name: row.remedy for name, row in BACKENDS.items()} | {
    "transformers": "pip install torch 'transformers>=5,<6'",
    "mlx_lm": "pip install mlx-lm",
}
TWINS = {name: name for name in BACKENDS} | {row.reader: name for name, row in BACKENDS.items()}
"""the twin that speaks each library"""


class Reader(Protocol):
    """A model with its tokenizer, as one library loads it from the target or the source."""

    name: str
    """what the table calls it"""
    end_of_text_ids: list[int]
    """every id at which the library would stop"""

    def logits(self, ids: list[int]) -> np.ndarray:
        """T token ids -> float32 [T, V]."""

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The likeliest `count` tokens after `ids`, fewer where an end-of-text came, which is the last then."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text: a literal <|endoftext|> is text like any other."""

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""


def missing_package(library: str) -> str | None:
    """The first package that `library` needs and that is not installed here."""
    return next((name for name in NEEDS[library] if not importable(name)), None)


def require(library: str) -> None:
    """Raise a FaiscaError with the remedy where a library is not installed."""
    if package := missing_package(library):
        raise FaiscaError(f"{package} is not installed, but this needs it: {REMEDIES[library]}")


def read_arrays(library: str, path: Path) -> Tensors:
    """A weights file as torch or mlx reads it; bfloat16 arrays as float32, when they are asked for."""
    require(library)
    return cast(Tensors, _interop(library).read_arrays(path=path))


def open_exported(library: str, folder: Path, adapter: Path | None = None) -> Reader:
    """A Hugging Face folder as transformers or mlx_lm loads it, in float32 on the CPU; with the adapter of a folder."""
    require(library)
    if adapter is not None and library == "transformers" and not importable("peft"):
        raise FaiscaError("peft is not installed, but an adapter needs it: pip install peft, or add --no-verify")
    return cast(Reader, _interop(library).open_exported(folder=folder, adapter=adapter))


def convert_tokenizer(folder: Path) -> tuple[str, str]:
    """tokenizer.json of a folder that has a tokenizer.model alone, and which library made it; FaiscaError if none."""
    remedy = "pip install sentencepiece protobuf 'transformers>=5,<6', or name its tokenizer.json with --tokenizer FILE"
    library = next((row.reader for row in BACKENDS.values() if missing_package(row.reader) is None), None)
    if library is None:
        raise FaiscaError(
            f"{folder} has a tokenizer.model and no tokenizer.json, and nothing here converts it: {remedy}"
        )
    try:
        return cast(str, _interop(library).convert_tokenizer(folder=folder)), library
    except FaiscaError as error:
        raise FaiscaError(f"{error}; {remedy}") from error


def _interop(library: str) -> Any:
    return importlib.import_module(f"faisca_{TWINS[library]}.interop")
