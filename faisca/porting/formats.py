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
from faisca.data.byte_level import END_OF_TEXT
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import check_shapes
from faisca.system.tensors import STORED, Tensors, check_finite
from faisca.text import in_one_line, shortened

FORMATS = ("faisca", *BACKENDS, "hf")
ADAPTER_FORMATS = ("peft", "mlx-lm")
"""of adapters, see `adapter_folders.py`"""
PADDING = 64
"""a vocabulary of a Hugging Face folder that is larger than its tokenizer's is padded where it is a multiple of this"""
NOTHING_BESIDE: Mapping[str, bytes] = {}


@dataclass(frozen=True)
class Portable:
    """A model without its framework."""

    format: str
    """one of FORMATS"""
    found: str
    """what was found at the source, in words"""
    model: ModelConfig
    parameters: Mapping[str, np.ndarray] = field(repr=False)
    """float32, by canonical name; read when asked for, where they come from a file"""
    tokenizer: Tokenizer
    training: Mapping[str, Any] = field(repr=False)
    """what a checkpoint's state.json tells of the training; empty where nothing is known"""
    notes: tuple[str, ...] = ()
    """what the user should know: assumptions, and what is left behind"""
    tokenizer_named: bool = False
    """whether the user named the tokenizer, which then must have as many tokens as the model"""
    dtype: str = "float32"
    """what the weights are stored as where they come from"""


def check_portable(portable: Portable, source: Path) -> None:
    """Raise a FaiscaError where configuration, weights and tokenizer do not belong together."""
    try:
        check_shapes(Tensors.of(portable.parameters).shapes, portable.model)
    except FaiscaError as error:
        raise FaiscaError(f"{source}: {error}") from None
    tokens, rows = portable.tokenizer.vocabulary_size, portable.model.vocabulary_size
    # model.vocabulary_size may be larger on purpose: our own files say so, and Qwen's matrices are padded
    padded = tokens < rows and not portable.tokenizer_named and (portable.format != "hf" or rows % PADDING == 0)
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


def float32(arrays: Tensors, source: Path) -> Tensors:
    """As float32, when they are read: exact for float16 and bfloat16. FaiscaError for other types, and then for NaN."""
    for name, dtype in arrays.dtypes.items():
        if dtype not in STORED:
            raise FaiscaError(
                f"{source}: {name} is {dtype}: weights are float32, float16 or bfloat16; what is quantised is ported "
                "from the folder it was made from"
            )

    def read(name: str) -> np.ndarray:
        array = arrays[name]
        check_finite({name: array}, source)
        return np.ascontiguousarray(array, np.float32)

    return Tensors(arrays.shapes, read, arrays.dtypes)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a FaiscaError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise cannot_be_read(path, error) from error
    if not isinstance(values, dict):
        raise FaiscaError(f"{path} holds a {type(values).__name__}: it should hold a JSON object")
    return values


def read_tokenizer(
    path: Path, companions: Mapping[str, bytes] = NOTHING_BESIDE, end_of_text: int | None = None
) -> Tokenizer:
    """The tokenizer in a tokenizer.json, or a FaiscaError; `end_of_text` where its companions do not say it."""
    try:
        return Tokenizer.from_files({"tokenizer.json": path.read_bytes(), **companions}, str(path), end_of_text)
    except OSError as error:
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
