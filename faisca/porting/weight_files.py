"""Weights files: a torch state dict or MLX arrays in one file, and a JSON beside it that says what they are.

A file has the canonical names of `faisca.parameters`, which are the names of both twins' modules.
`NAME.safetensors.json` (or `NAME.npz.json`) has what arrays cannot say: the model's configuration
(heads leave no trace in shapes), the tokenizer, the training. The original script's state dicts,
with names of their own and nothing beside them, are read as well, by torch's safe loader.
"""

import re
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from faisca.backends import BACKENDS
from faisca.config import ModelConfig
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import Parameters
from faisca.porting.formats import (
    Portable,
    cannot_be_read,
    check_training,
    float32,
    model_config,
    read_json,
    read_tokenizer,
)
from faisca.porting.libraries import read_arrays
from faisca.text import json_text

SUFFIXES = {name: row.files for name, row in BACKENDS.items()}
"""of the files that are written"""
PICKLES = (".pt", ".pth", ".bin")
ORIGINAL_HEADS = 4
ORIGINAL_NAMES = (
    (re.compile(r"attention\.in_proj_(weight|bias)$"), r"attention.in_proj.\1"),
    (re.compile(r"feed_forward\.layers\.0\."), "feed_forward.up."),
    (re.compile(r"feed_forward\.layers\.2\."), "feed_forward.down."),
)
"""how the original script names what we name otherwise"""
SIDECAR_KEYS = ("model", "tokenizer", "training")


def read_weight_file(path: Path, num_heads: int | None, tokenizer: Path | None) -> Portable:
    """A weights file of any of the formats; `num_heads` and `tokenizer` are for files with no JSON beside them."""
    sidecar = sidecar_of(path)
    if sidecar.is_file() and (num_heads or tokenizer):
        option = "--num-heads" if num_heads else "--tokenizer"
        raise FaiscaError(f"{option} does not go with {path}: {sidecar.name} says it, so leave it out")
    arrays, format = read_file(path)
    if sidecar.is_file():
        return _described(format, float32(arrays, path), sidecar)
    return _original(path, float32(canonical_names(arrays), path), format, num_heads, tokenizer)


def sidecar_of(path: Path) -> Path:
    """The JSON beside a weights file."""
    return path.with_name(f"{path.name}.json")


def read_file(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a file, float32 or as they are stored, and the format that it has: torch or mlx."""
    if path.suffix in PICKLES:
        return read_arrays("torch", path), "torch"
    if path.suffix == ".npz":
        return _read_npz(path), "mlx"
    return read_safetensors(path)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a .safetensors file (bfloat16 as float32), and who wrote it: mlx says so, all others are torch."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        arrays = {name: _array(entry) for name, entry in entries}
    except (OSError, safetensors.SafetensorError, KeyError) as error:
        raise cannot_be_read(path, error) from error
    return arrays, "mlx" if metadata.get("format") == "mlx" else "torch"


def write_weight_file(portable: Portable, path: Path, format: str) -> None:
    """Write the arrays as `format`, torch or mlx, and the JSON beside them."""
    if path.suffix == ".npz":
        np.savez(path, **portable.parameters)  # type: ignore[arg-type]  # names never collide with its own
    else:
        written_by = {"format": "pt" if format == "torch" else "mlx"}
        path.write_bytes(safetensors.numpy.save(portable.parameters, metadata=written_by))
    tokenizer = portable.tokenizer
    description = {
        "model": asdict(portable.model),
        "tokenizer": {"kind": tokenizer.kind, "json": tokenizer.json_text() if tokenizer.kind == "bpe" else None},
        "training": dict(portable.training),
    }
    sidecar_of(path).write_text(json_text(description, indent=2) + "\n", encoding="utf-8", newline="\n")


def canonical_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of the original script under our names; canonical names stay as they are."""
    return {_canonical(name): array for name, array in arrays.items()}


def _canonical(name: str) -> str:
    for pattern, ours in ORIGINAL_NAMES:
        name = pattern.sub(ours, name)
    return name


def _described(format: str, parameters: Parameters, sidecar: Path) -> Portable:
    values = read_json(sidecar)
    missing = [key for key in SIDECAR_KEYS if not isinstance(values.get(key), dict)]
    if missing:
        raise FaiscaError(f"{sidecar} has no section {missing[0]!r}: it is not the file that faisca port wrote")
    kind, stored = values["tokenizer"].get("kind"), values["tokenizer"].get("json")
    if kind != "gpt2" and not isinstance(stored, str):
        raise FaiscaError(f"{sidecar} has no tokenizer.json, the text of a tokenizer.json: its tokenizer is {kind!r}")
    check_training(values["training"], sidecar)
    return Portable(
        format=format,
        found=BACKENDS[format].file_words,
        model=model_config(values["model"], str(sidecar)),
        parameters=parameters,
        tokenizer=Tokenizer.gpt2() if kind == "gpt2" else Tokenizer.from_json(stored, str(sidecar)),
        training=values["training"],
    )


def _original(
    path: Path, parameters: Parameters, format: str, num_heads: int | None, tokenizer: Path | None
) -> Portable:
    """A state dict of the original script: sizes from its shapes, the rest as the script has it."""
    heads = f"{num_heads} heads" if num_heads else f"{ORIGINAL_HEADS} heads (--num-heads says otherwise)"
    tokens = str(tokenizer) if tokenizer else "GPT-2's tokenizer (--tokenizer says otherwise)"
    return Portable(
        format=format,
        found="a state dict of the original script",
        model=_model_of_shapes(path, parameters, num_heads or ORIGINAL_HEADS),
        parameters=parameters,
        tokenizer=read_tokenizer(tokenizer) if tokenizer else Tokenizer.gpt2("name a tokenizer.json with --tokenizer"),
        training={},
        notes=(f"no {sidecar_of(path).name} beside it: taken for the original script's, with {tokens} and {heads}",),
        tokenizer_named=tokenizer is not None,
    )


def _model_of_shapes(path: Path, parameters: Parameters, num_heads: int) -> ModelConfig:
    first = "transformer_blocks.0"
    wanted = ("token_embedding.weight", "positional_embedding.weight", f"{first}.feed_forward.up.weight")
    for name in wanted:
        if name not in parameters or parameters[name].ndim != 2:
            raise FaiscaError(f"{path} has no matrix {name}: it is no state dict of this model")
    tokens, positions, up = (parameters[name].shape for name in wanted)
    if tokens[1] % num_heads:
        raise FaiscaError(
            f"{path} has a width of {tokens[1]}, which {num_heads} heads do not divide: "
            "give the number that it was trained with, as in --num-heads 1"
        )
    blocks = {match[1] for name in parameters if (match := re.match(r"transformer_blocks\.(\d+)\.", name))}
    sizes = {
        **{"vocabulary_size": tokens[0], "dim": tokens[1], "context": positions[0], "hidden_dim": up[0]},
        **{"num_layers": len(blocks), "num_heads": num_heads},
        **{"dropout": 0.1, "attention_dropout": 0.1},
        "tie_embeddings": "out_head.weight" not in parameters,
        "attention_bias": f"{first}.attention.in_proj.bias" in parameters,
    }
    return model_config(sizes, str(path))


def _array(entry: dict[str, Any]) -> np.ndarray:
    if entry["dtype"] == "BF16":
        return _wide(np.frombuffer(entry["data"], "V2")).reshape(entry["shape"])
    dtype = safetensors.numpy._TYPES[entry["dtype"]]
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def _wide(halves: np.ndarray) -> np.ndarray:
    """bfloat16, which NumPy has no name for, as float32: it is the upper half of one."""
    return (halves.view("<u2").astype("<u4") << 16).view("<f4")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _wide(array) if array.dtype == "V2" else array for name, array in file.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise cannot_be_read(path, error) from error
