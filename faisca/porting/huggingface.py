"""Hugging Face folders: config.json, weights and tokenizer, in both directions; `layouts/` has the families'."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from faisca.config import ModelConfig
from faisca.data.json_encoding import COMPANIONS, as_ids, json_file, parse_tokenizer
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.porting.formats import (
    Portable,
    cannot_be_read,
    check_training,
    float32,
    model_config,
    read_json,
    read_tokenizer,
)
from faisca.porting.layouts import experts, gpt2, layout, llama
from faisca.porting.layouts.layout import HEAD, Layout, check_config
from faisca.porting.libraries import convert_tokenizer
from faisca.porting.weight_files import read_file
from faisca.system.tensors import Tensors
from faisca.text import json_text

LAYOUTS = {"gpt2": gpt2.LAYOUT} | dict.fromkeys(llama.FAMILIES, llama.LAYOUT) | {"llama": llama.PLAIN}
LAYOUTS |= dict.fromkeys(experts.CLASSES, experts.LAYOUT)
"""by model_type"""
MODEL_FILE = Path(__file__).parents[2] / "faisca_mlx" / "exported" / "faisca_gpt2.py"
"""for mlx-lm to import from a folder that its own GPT-2 cannot compute: a user then says --trust-remote-code"""
TRAINING_FILE = "faisca.json"
"""what is known of the training, for the way back"""
BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
"""causal masks and frequencies that older folders hold"""


def read_folder(folder: Path, tokenizer_json: Path | None = None) -> Portable:
    """A Hugging Face folder of a family that we compute; `tokenizer_json` is for one that has none."""
    config, source = read_json(folder / "config.json"), str(folder / "config.json")
    found = _layout_of(config, source)
    unknown = check_config(config, found, source)
    theirs = _read_arrays(folder)
    training = read_json(folder / TRAINING_FILE) if (folder / TRAINING_FILE).is_file() else {}
    check_training(training, folder / TRAINING_FILE)
    options = {"tie_embeddings": HEAD not in theirs, **found.read_model(config, source)}
    model = model_config(options | {"initial_range": config.get("initializer_range", 0.0)}, source)
    theirs = _one_head(found.named(theirs, model), found, model, folder)
    tokenizer, converted = _read_tokenizer(folder, config, tokenizer_json)
    return Portable(
        format="hf",
        found=f"a Hugging Face {config['model_type']} folder ({theirs.dtype})",
        model=model,
        parameters=layout.to_ours(theirs, found, model, str(folder)),
        tokenizer=tokenizer,
        training=training,
        notes=(*(f"{source}: nothing is known here of {key}, which is left out" for key in unknown), *converted),
        dtype=theirs.dtype,
    )


def layout_of(portable: Portable) -> Layout:
    """The layout that a model goes out as; a FaiscaError names the options that no family has together."""
    model, lacking = portable.model, dict[str, list[str]]()
    for found in (experts.LAYOUT,) if model.num_experts else (gpt2.LAYOUT, llama.LAYOUT, llama.PLAIN):
        lacking[found.name] = found.lacks(model)
        if lacking[found.name]:
            continue
        # transformers reads any tokenizer of Qwen2 as if it had NFC
        if found.config(model)["model_type"] != "qwen2" or nfc(portable.tokenizer):
            return found
    name, options = min(lacking.items(), key=lambda item: len(item[1]))
    raise FaiscaError(
        f"no Hugging Face family computes this model: {name} has not {', '.join(options)}; write it --to torch, mlx or "
        "faisca, which hold every model"
    )


def nfc(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer composes characters (Unicode's NFC) before it does anything else."""
    if tokenizer.kind != "json":
        return False
    normalizer = json.loads(tokenizer.json_text()).get("normalizer") or {}
    return "NFC" in [part.get("type") for part in (normalizer, *normalizer.get("normalizers", []))]


def config_json(portable: Portable, dtype: str = "float32") -> dict[str, Any]:
    """config.json: the family's names, those that mlx-lm reads, and what the way back needs."""
    model, tokenizer = portable.model, portable.tokenizer
    ends = list(tokenizer.ends)
    begin = _companion(tokenizer, "generation_config.json").get("bos_token_id", tokenizer.beginning[0])
    return {
        **layout_of(portable).config(model),
        **{"bos_token_id": begin, "eos_token_id": ends[0] if len(ends) == 1 else ends},
        "dtype": dtype,
        **({"initializer_range": model.initial_range} if model.initial_range else {}),
        **({"model_file": MODEL_FILE.name} if needs_model_file(portable) else {}),
    }


def needs_model_file(portable: Portable) -> bool:
    """Whether mlx-lm's own classes cannot compute this model."""
    return layout_of(portable) is gpt2.LAYOUT and gpt2.needs_model_file(portable.model)


def to_theirs(portable: Portable) -> Tensors:
    """Our parameters under the family's names."""
    return layout.to_theirs(portable.parameters, layout_of(portable), portable.model)


def _layout_of(config: Mapping[str, Any], source: str) -> Layout:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        raise FaiscaError(
            f"{source}: model_type {kind!r} is refused: what comes in is {', '.join(LAYOUTS)}, as our model has their "
            "options; port a folder of such a kind, or use this one with transformers or mlx_lm"
        )
    return LAYOUTS[kind]


def _one_head(theirs: Tensors, found: Layout, model: ModelConfig, folder: Path) -> Tensors:
    """Without a tied head that is stored a second time, which must be the embedding."""
    if model.tie_embeddings == (HEAD not in theirs):
        return theirs
    if not model.tie_embeddings:
        raise FaiscaError(f"{folder}: config.json has tie_word_embeddings false, but {HEAD} is missing")
    (embedding,) = found.places(model)["token_embedding.weight"].names
    if embedding in theirs and not np.array_equal(theirs[HEAD], theirs[embedding]):
        raise FaiscaError(
            f"{folder}: config.json has tie_word_embeddings true, but {HEAD} differs from {embedding}: "
            "one of them is wrong"
        )
    return theirs.only([name for name in theirs if name != HEAD])


def _read_arrays(folder: Path) -> Tensors:
    """All weights of a folder: one file, several with an index, or pickles, read safely."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            names = _indexed(index)
            break
        if (folder / f"{stem}.{ending}").is_file():
            names = [f"{stem}.{ending}"]
            break
    else:
        names = ["model.safetensors"]  # missing, as its error says
    parts = []
    for file in names:
        arrays = read_file(folder / file)[0]
        parts.append(float32(arrays.only([name for name in arrays if not BUFFERS.search(name)]), folder / file))
    return Tensors.joined(parts)


def _indexed(index: Path) -> list[str]:
    """The files that an index names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(Path(str(name)).name == name for name in weight_map.values()):
        raise FaiscaError(f"{index} has no weight_map of file names: copy the folder again")
    return sorted(set(weight_map.values()))


def _read_tokenizer(folder: Path, config: Mapping[str, Any], named: Path | None) -> tuple[Tokenizer, list[str]]:
    """The folder's tokenizer, and a note where it had to be converted."""
    own, slow = folder / "tokenizer.json", folder / "tokenizer.model"
    if named and own.is_file():
        raise FaiscaError(f"--tokenizer does not go with {folder}, which has its own: leave it out")
    if not named and not own.is_file() and not slow.is_file():
        raise FaiscaError(
            f"{folder} has no tokenizer.json: name the model's with --tokenizer FILE; "
            f"transformers.AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}') writes one"
        )
    stated = as_ids(config.get("eos_token_id", 50256 if config["model_type"] == "gpt2" else None))
    companions = {name: _read_bytes(folder / name) for name in COMPANIONS if (folder / name).is_file()}
    end, notes = stated[0] if stated else None, list[str]()
    if named or own.is_file():
        tokenizer = read_tokenizer(named or own, companions, end)
    else:
        text, library = convert_tokenizer(folder)
        tokenizer = Tokenizer.from_files({"tokenizer.json": text.encode(), **companions}, str(slow), end)
        notes.append(f"{folder} has no tokenizer.json: {library} made one of its tokenizer.model")
    if tokenizer.kind == "json":
        tokenizer = _with_end_of_text(tokenizer, stated)
    strange = [i for i in stated if i not in tokenizer.ends]
    if strange and tokenizer.vocabulary_size == config.get("vocab_size", 50257):
        raise FaiscaError(
            f"{folder / 'config.json'}: eos_token_id {strange[0]} is not the tokenizer's end of text, "
            f"{tokenizer.end_of_text}: correct it"
        )
    return tokenizer, notes


def _with_end_of_text(tokenizer: Tokenizer, stated: list[int]) -> Tokenizer:
    """With files that say what ends a text, where config.json alone said it: it does not travel."""
    made = dict(tokenizer.companions)
    if _companion(tokenizer, "tokenizer_config.json").get("eos_token") is None:
        engine = parse_tokenizer(tokenizer.json_text(), "tokenizer.json")
        known = {"tokenizer_class": "PreTrainedTokenizerFast"} | _companion(tokenizer, "tokenizer_config.json")
        known |= {"eos_token": engine.id_to_token(tokenizer.end_of_text)}
        made["tokenizer_config.json"] = json_text(known).encode()
    if len(stated) > 1 and "generation_config.json" not in made:
        made["generation_config.json"] = json_text({"eos_token_id": stated}).encode()
    return replace(tokenizer, companions=made)


def _companion(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    return json_file(tokenizer.companions, name, "the tokenizer's files")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise cannot_be_read(path, error) from error
