"""Weights files: a torch state dict or MLX arrays in one file, and a JSON beside it that says what they are.

A file has the canonical names of `faisca.parameters`, which are the names of both twins' modules.
`NAME.safetensors.json` (or `NAME.npz.json`) has what arrays cannot say: the model's configuration
(heads leave no trace in shapes), the tokenizer, the training. The original script's state dicts,
with names of their own and nothing beside them, are read as well, by torch's safe loader.
"""

import re
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from faisca.backends import BACKENDS
from faisca.config import ModelConfig
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import parameter_shapes
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
from faisca.system.tensors import Shape, Tensors, narrowed, open_safetensors, safetensors_chunks, wide
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


def read_file(path: Path) -> tuple[Tensors, str]:
    """The arrays of a file, bfloat16 as float32, each read when asked for; and the format it has: torch or mlx."""
    if path.suffix in PICKLES:
        return read_arrays("torch", path), "torch"
    if path.suffix == ".npz":
        return _read_npz(path), "mlx"
    return read_safetensors(path)


def read_safetensors(path: Path) -> tuple[Tensors, str]:
    """The arrays of a .safetensors file, and who wrote it: mlx says so, all others are torch."""
    try:
        arrays, metadata = open_safetensors(path)
    except (OSError, SafetensorError, KeyError) as error:
        raise cannot_be_read(path, error) from error
    return arrays, "mlx" if metadata.get("format") == "mlx" else "torch"


def write_weight_file(portable: Portable, path: Path, format: str, dtype: str = "float32") -> None:
    """Write the arrays as `format`, torch or mlx, and the JSON beside them."""
    shapes = parameter_shapes(portable.model)
    if path.suffix == ".npz":
        _write_npz(portable, path, dtype)
    else:
        written_by = {"format": "pt" if format == "torch" else "mlx"}
        write_pieces(safetensors_chunks(shapes, portable.parameters, dtype, written_by), path)
    tokenizer = portable.tokenizer
    files = {name: content.decode() for name, content in tokenizer.files().items()}
    description = {
        "model": asdict(portable.model),
        "tokenizer": {"kind": tokenizer.kind, "json": files.pop("tokenizer.json", None), "beside": files},
        "training": dict(portable.training),
    }
    sidecar_of(path).write_text(json_text(description, indent=2) + "\n", encoding="utf-8", newline="\n")


def write_pieces(pieces: Iterable[bytes], path: Path) -> None:
    """Write a file piece by piece."""
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)


def canonical_names(arrays: Tensors) -> Tensors:
    """Arrays of the original script under our names; canonical names stay as they are."""
    return arrays.renamed({_canonical(name): name for name in arrays})


def _canonical(name: str) -> str:
    for pattern, ours in ORIGINAL_NAMES:
        name = pattern.sub(ours, name)
    return name


def _described(format: str, parameters: Tensors, sidecar: Path) -> Portable:
    values = read_json(sidecar)
    missing = [key for key in SIDECAR_KEYS if not isinstance(values.get(key), dict)]
    if missing:
        raise FaiscaError(f"{sidecar} has no section {missing[0]!r}: it is not the file that faisca port wrote")
    kind, stored = values["tokenizer"].get("kind"), values["tokenizer"].get("json")
    if kind != "gpt2" and not isinstance(stored, str):
        raise FaiscaError(f"{sidecar} has no tokenizer.json, the text of a tokenizer.json: its tokenizer is {kind!r}")
    check_training(values["training"], sidecar)
    beside = values["tokenizer"].get("beside", {})
    if not isinstance(beside, dict) or not all(isinstance(text, str) for text in beside.values()):
        raise FaiscaError(f"{sidecar}: tokenizer.beside holds no texts: it is not the file that faisca port wrote")
    files = {"tokenizer.json": stored} | beside if stored else {}
    return Portable(
        format=format,
        found=BACKENDS[format].file_words,
        model=model_config(values["model"], str(sidecar)),
        parameters=parameters,
        tokenizer=Tokenizer.from_files({name: text.encode() for name, text in files.items()}, str(sidecar)),
        training=values["training"],
        dtype=parameters.dtype,
    )


def _original(path: Path, parameters: Tensors, format: str, num_heads: int | None, tokenizer: Path | None) -> Portable:
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
        dtype=parameters.dtype,
    )


def _model_of_shapes(path: Path, parameters: Tensors, num_heads: int) -> ModelConfig:
    first = "transformer_blocks.0"
    wanted = ("token_embedding.weight", "positional_embedding.weight", f"{first}.feed_forward.up.weight")
    for name in wanted:
        if len(parameters.shapes.get(name, ())) != 2:
            raise FaiscaError(f"{path} has no matrix {name}: it is no state dict of this model")
    tokens, positions, up = (parameters.shapes[name] for name in wanted)
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


def _read_npz(path: Path) -> Tensors:
    """Shapes and types first, from the headers inside; bfloat16, which NumPy has not, is two bytes there."""
    try:
        with zipfile.ZipFile(path) as file:
            headers = {name.removesuffix(".npy"): _npy_header(file, name) for name in file.namelist()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise cannot_be_read(path, error) from error

    def read(name: str) -> np.ndarray:
        try:
            with np.load(path, allow_pickle=False) as file:
                array: np.ndarray = file[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise cannot_be_read(path, error) from error
        return wide(array) if array.dtype == "V2" else array

    dtypes = {name: "bfloat16" if dtype == "V2" else str(dtype) for name, (_, dtype) in headers.items()}
    return Tensors({name: shape for name, (shape, _) in headers.items()}, read, dtypes)


def _npy_header(file: zipfile.ZipFile, name: str) -> tuple[Shape, np.dtype[Any]]:
    with file.open(name) as array:
        version = np.lib.format.read_magic(array)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(array)
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects, which could run code")
    return shape, dtype


def _write_npz(portable: Portable, path: Path, dtype: str) -> None:
    """As np.savez, array by array."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as file:
        for name in parameter_shapes(portable.model):
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, narrowed(portable.parameters[name], dtype), allow_pickle=False)
