"""Adapters in others' folders: PEFT's and mlx-lm's, which differ in names, transposes and in what the scale is called.

    PEFT      base_model.model.MODULE.lora_A.weight [r, inputs], lora_B.weight [outputs, r], lora_alpha = scale · r
    mlx-lm    MODULE.lora_a [inputs, r], lora_b [r, outputs], scale
    DoRA      lora_magnitude_vector, and m: [outputs]

MODULE is the base's in transformers, as in model.layers.0.self_attn.q_proj. What ours do not have is refused by name:
other ranks for some matrices, biases or whole modules that are trained too, some layers alone.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from faisca.config import AdaptedModel, Adapter
from faisca.config.rules import TARGETS, possible_targets
from faisca.errors import FaiscaError
from faisca.lora import with_adapter
from faisca.parameters import adapter_parts, in_adapter, parameter_shapes
from faisca.porting.formats import Portable, float32, read_json
from faisca.porting.huggingface import layout_of
from faisca.porting.weight_files import read_safetensors, write_pieces
from faisca.system.tensors import Tensors, safetensors_chunks
from faisca.text import json_text

CONFIG = "adapter_config.json"
OFF: tuple[Any, ...] = (None, False, [], {}, "")
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_rslora": (OFF, "a scale of alpha / √rank, where ours is alpha / rank"),
    "rank_pattern": (OFF, "other ranks for some matrices, where ours has one"),
    "alpha_pattern": (OFF, "other scales for some matrices, where ours has one"),
    "modules_to_save": (OFF, "whole modules that are trained as well"),
    "bias": ((None, "none"), "biases that are trained as well"),
    "lora_bias": (OFF, "biases of its own"),
    "layers_to_transform": (OFF, "some of the layers alone, where ours has all"),
    "layer_replication": (OFF, "layers that stand there several times"),
    "target_parameters": (OFF, "parameters that are no matrices of a layer of ours"),
    "trainable_token_indices": (OFF, "tokens whose embeddings are trained as well"),
    "fan_in_fan_out": (OFF, "matrices the other way round, as GPT-2's in transformers"),
    "alora_invocation_tokens": (OFF, "tokens that turn it on"),
}
"""PEFT's options that would change what is computed: the values that do not, and what the others mean"""


@dataclass(frozen=True)
class AdapterFormat:
    """One project's way to store an adapter."""

    words: str
    file: str
    names: tuple[str, str, str]
    """of A, of B and of DoRA's m, behind a module's"""
    prefix: str
    transposed: bool
    write: Callable[[Adapter, list[str], str], dict[str, Any]]
    """an adapter, its modules in a layer, and what its base is called -> adapter_config.json"""
    read: Callable[[Mapping[str, Any], str], tuple[int, float, float, bool]]
    """adapter_config.json and its name -> rank, alpha, dropout and whether it is DoRA, or a FaiscaError"""


def _peft_config(adapter: Adapter, modules: list[str], base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(module.rpartition(".")[2] for module in modules),
        "use_dora": adapter.dora,
        "bias": "none",
        "inference_mode": True,
    }


def _read_peft(config: Mapping[str, Any], source: str) -> tuple[int, float, float, bool]:
    if config.get("peft_type") != "LORA":
        raise FaiscaError(f"{source}: peft_type {config.get('peft_type')!r} is refused: our adapters are LORA")
    for key, (fine, meaning) in REFUSED.items():
        if key in config and config[key] not in fine:
            raise FaiscaError(f"{source}: {key} {config[key]!r} is refused: it means {meaning}; use it with peft")
    rank, alpha, dropout = (_number(config, key, source) for key in ("r", "lora_alpha", "lora_dropout"))
    return int(rank), float(alpha), float(dropout), bool(config.get("use_dora"))


def _mlx_config(adapter: Adapter, modules: list[str], base: str) -> dict[str, Any]:
    parameters = {"rank": adapter.rank, "scale": adapter.scale, "dropout": adapter.dropout, "keys": sorted(modules)}
    kind = "dora" if adapter.dora else "lora"
    return {"fine_tune_type": kind, "model": base, "num_layers": -1, "lora_parameters": parameters}


def _read_mlx(config: Mapping[str, Any], source: str) -> tuple[int, float, float, bool]:
    kind, found = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    if kind not in ("lora", "dora") or not isinstance(found, dict):
        raise FaiscaError(
            f"{source}: fine_tune_type {kind!r} is refused: our adapters are lora or dora; use it with mlx_lm"
        )
    rank, scale, dropout = (_number(found, key, source) for key in ("rank", "scale", "dropout"))
    alpha = scale * rank
    for near in (math.nextafter(alpha, 0), math.nextafter(alpha, math.inf)):  # that alpha / rank is the same scale
        alpha = alpha if alpha / rank == scale else near
    return int(rank), float(alpha), float(dropout), kind == "dora"


FORMATS = {
    "peft": AdapterFormat(
        words="a PEFT adapter",
        file="adapter_model.safetensors",
        names=("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
        prefix="base_model.model.",
        transposed=False,
        write=_peft_config,
        read=_read_peft,
    ),
    "mlx-lm": AdapterFormat(
        words="an mlx-lm adapter",
        file="adapters.safetensors",
        names=("lora_a", "lora_b", "m"),
        prefix="",
        transposed=True,
        write=_mlx_config,
        read=_read_mlx,
    ),
}
"""by what `--to` calls them"""


def format_of(folder: Path) -> str:
    """Which of FORMATS a folder has; empty where it holds no adapter."""
    if not os.path.isfile(folder / CONFIG):  # a name too long is no folder
        return ""
    return "peft" if "peft_type" in read_json(folder / CONFIG) else "mlx-lm"


def read_adapter(folder: Path, base: Portable) -> tuple[AdaptedModel, Tensors]:
    """The base's model with the adapter in a folder, and the adapter's arrays under our names, float32."""
    form, source = FORMATS[format_of(folder)], str(folder / CONFIG)
    rank, alpha, dropout, dora = form.read(read_json(folder / CONFIG), source)
    theirs = float32(read_safetensors(folder / form.file)[0], folder / form.file)
    possible = Adapter(rank, alpha, dropout, possible_targets(base.model), dora)
    ours = {name: array for array, name in _array_names(base, with_adapter(base.model, possible), form).items()}
    for name in theirs:
        if name not in ours:
            raise FaiscaError(f"{folder / form.file}: {name} is refused: no adapter of ours has it; {_has(base)}")
    parts = {ours[name].split(".")[-2] for name in theirs}
    targets = tuple(target for target in TARGETS if target in parts)
    model = with_adapter(base.model, Adapter(rank, alpha, dropout, targets, dora))
    wanted = {name: shape for name, shape in parameter_shapes(model).items() if in_adapter(name)}
    places = {ours[name]: name for name in theirs}
    for name, shape in wanted.items():
        if name not in places:
            raise FaiscaError(f"{folder / form.file}: {_array_names(base, model, form)[name]} is missing: {_has(base)}")
        found = theirs.shapes[places[name]][::-1] if form.transposed else theirs.shapes[places[name]]
        if found != shape:
            raise FaiscaError(
                f"{folder / form.file}: {places[name]} has shape {list(theirs.shapes[places[name]])}, and with rank "
                f"{rank} on this base another: name the base that it was trained on with --base"
            )
    return model, Tensors(wanted, partial(_turned, theirs, places, form), dict.fromkeys(wanted, "float32"))


def write_adapter(
    folder: Path, format: str, base: Portable, model: AdaptedModel, arrays: Mapping[str, np.ndarray], called: str
) -> None:
    """A folder of a format; `called` is what its configuration says of its base."""
    form = FORMATS[format]
    names = {theirs: ours for ours, theirs in _array_names(base, model, form).items()}
    shapes = {n: arrays[o].shape[::-1] if form.transposed else arrays[o].shape for n, o in names.items()}
    turned = Tensors(shapes, lambda name: _turned(arrays, names, form, name), dict.fromkeys(shapes, "float32"))
    folder.mkdir()
    kind = {"format": "mlx" if form.transposed else "pt"}
    write_pieces(safetensors_chunks(shapes, turned, "float32", kind), folder / form.file)
    # model.layers.N.MODULE.lora_a: the modules of a layer, which are those of all layers
    inner = {name.removeprefix(form.prefix).split(".", 3)[3] for name in names}
    modules = sorted({name.partition(".lora_")[0].removesuffix(".m") for name in inner})
    config = form.write(model.adapter, modules, called)
    (folder / CONFIG).write_text(json_text(config, indent=2) + "\n", encoding="utf-8", newline="\n")


def _turned(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], form: AdapterFormat, name: str) -> np.ndarray:
    array = arrays[names[name]]
    return np.ascontiguousarray(array.T) if form.transposed else array


def _array_names(base: Portable, model: AdaptedModel, form: AdapterFormat) -> dict[str, str]:
    """Of each of the adapter's arrays, ours and theirs; FaiscaError where they have no matrix for one of ours."""
    places, found = layout_of(base).places(base.model), dict[str, str]()
    for module, parts in adapter_parts(model).items():
        place = places[f"{module}.weight"]
        if place.transposed or place.stacked:
            kind = (
                "GPT-2's, which has queries, keys and values in one" if place.transposed else "of experts, in a stack"
            )
            raise FaiscaError(
                f"the matrix {module} is {kind}: adapters travel to Llama's, Mistral's and Qwen's kin alone"
            )
        for (part, _), theirs in zip(parts, place.names, strict=True):
            for factor, name in zip("abm" if model.adapter.dora else "ab", form.names, strict=False) if part else ():
                found[f"{module}.lora.{part}.{factor}"] = f"{form.prefix}{theirs.removesuffix('weight')}{name}"
    return found


def _has(base: Portable) -> str:
    return f"ours are of {', '.join(possible_targets(base.model))}, in every block"


def _number(values: Mapping[str, Any], key: str, source: str) -> Any:
    value = values.get(key, 0.0 if "dropout" in key else None)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value < 0
        or (value == 0 and "dropout" not in key)
    ):
        raise FaiscaError(f"{source}: {key} {value!r} is not a number above 0: correct it")
    return value
