"""The libraries that read what we write, behind the twins' `interop` modules; imported only when asked for."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from faisca.backend import REMEDY
from faisca.errors import FaiscaError

NEEDS = {
    "torch": ("torch", "safetensors"),
    "mlx": ("mlx.core",),
    "transformers": ("torch", "transformers"),
    "mlx_lm": ("mlx.core", "mlx_lm"),
}
"""the packages behind each library"""
REMEDIES = REMEDY | {
    "transformers": "pip install torch 'transformers>=5,<6'",
    "mlx_lm": "pip install mlx-lm",
}
TWINS = {"torch": "torch", "transformers": "torch", "mlx": "mlx", "mlx_lm": "mlx"}
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
    return next((name for name in NEEDS[library] if not _installed(name)), None)


def require(library: str) -> None:
    """Raise a FaiscaError with the remedy where a library is not installed."""
    if package := missing_package(library):
        raise FaiscaError(f"{package} is not installed, but this needs it: {REMEDIES[library]}")


def read_arrays(library: str, path: Path) -> dict[str, np.ndarray]:
    """A weights file as torch or mlx reads it; half-precision arrays as float32."""
    require(library)
    return cast(dict[str, np.ndarray], _interop(library).read_arrays(path=path))


def open_exported(library: str, folder: Path) -> Reader:
    """A Hugging Face folder as transformers or mlx_lm loads it, in float32 on the CPU."""
    require(library)
    return cast(Reader, _interop(library).open_exported(folder=folder))


def _interop(library: str) -> Any:
    return importlib.import_module(f"faisca_{TWINS[library]}.interop")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package of mlx.core
        return False
