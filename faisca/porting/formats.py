"""What a model is on its way from one format to another: NumPy arrays, a configuration, a tokenizer.

Reading and writing need no framework, so a port works where the target's library is missing (it
is then not verified). Whatever format a model comes from, `check_portable` is what it must pass.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faisca.backends import BACKENDS
from faisca.config import STAGES, ModelConfig
from faisca.config.files import config_from_dict
from faisca.data.tokenizer import END_OF_TEXT, Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import Parameters, check_finite, check_parameters
from faisca.text import in_one_line, shortened

FORMATS = ("faisca", *BACKENDS, "hf")


@dataclass(frozen=True)
class Portable:
    """A model without its framework."""

    format: str
    """one of FORMATS"""
    found: str
    """what was found at the source, in words"""
    model: ModelConfig
    parameters: Parameters = field(repr=False)
    """float32, by canonical name"""
    tokenizer: Tokenizer
    training: Mapping[str, Any] = field(repr=False)
    """what a checkpoint's state.json tells of the training; empty where nothing is known"""
    notes: tuple[str, ...] = ()
    """what the user should know: assumptions, and what is left behind"""
    tokenizer_named: bool = False
    """whether the user named the tokenizer, which then must have as many tokens as the model"""


def check_portable(portable: Portable, source: Path) -> None:
    """Raise a FaiscaError where configuration, weights and tokenizer do not belong together."""
    try:
        check_parameters(portable.parameters, portable.model)
    except FaiscaError as error:
        raise FaiscaError(f"{source}: {error}") from None
    tokens, rows = portable.tokenizer.vocabulary_size, portable.model.vocabulary_size
    # model.vocabulary_size may be larger on purpose: our own files say so
    padded = portable.format != "hf" and tokens < rows and not portable.tokenizer_named
    if tokens != rows and not padded:
        raise FaiscaError(
            f"{source}: the tokenizer has {tokens} tokens ({END_OF_TEXT} is {portable.tokenizer.end_of_text}), "
            f"but token_embedding.weight has {rows} rows: use the tokenizer.json that the model was trained with "
            f"({'in the folder' if portable.format == 'hf' else '--tokenizer FILE, if nothing beside it says it'})"
        )


def model_config(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The model section in `values`; a FaiscaError names `source` and the option that does not fit."""
    narrow = {"window": 1, "stride": 1}  # the default window may be larger than this model's context
    try:
        return config_from_dict({"model": values, "data": narrow}).model
    except FaiscaError as error:
        raise FaiscaError(f"{source}: {error}") from None


def float32(arrays: Mapping[str, np.ndarray], source: Path) -> Parameters:
    """Contiguous float32 copies: exact for float16, bfloat16 and float32; a FaiscaError for other types and NaN."""
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32):
            raise FaiscaError(f"{source}: {name} is {array.dtype}: weights are float32, float16 or bfloat16")
    check_finite(arrays, source)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a FaiscaError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise cannot_be_read(path, error) from error
    if not isinstance(values, dict):
        raise FaiscaError(f"{path} holds a {type(values).__name__}: it should hold a JSON object")
    return values


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, or a FaiscaError."""
    try:
        return Tokenizer.from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_be_read(path, error) from error


def check_training(training: Mapping[str, Any], source: Path) -> None:
    """Raise a FaiscaError where a description of the training, which a stranger may have written, is malformed."""
    fits = {
        "stage": training.get("stage", "pretrain") in STAGES,
        "step": isinstance(training.get("step", 0), int) and training.get("step", 0) >= 0,
        "config": isinstance(training.get("config", {}), dict),
        "hold_out_seed": isinstance(training.get("hold_out_seed", 0), int | None),
        "stages": all(isinstance(stage, dict) and stage.get("stage") in STAGES for stage in training.get("stages", [])),
    }
    for key, fine in fits.items():
        if not fine:
            value = shortened(str(training[key]), 60)
            raise FaiscaError(f"{source}: training.{key} {value!r} is not what faisca port writes")


def cannot_be_read(path: Path, error: Exception) -> FaiscaError:
    """The one line for a file that is missing, truncated or something else."""
    return FaiscaError(f"{path} cannot be read ({in_one_line(error)}): check that it is whole and what its name says")
