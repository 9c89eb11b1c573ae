"""Hugging Face folders of GPT-2: names, transposed matrices, and configuration, in both directions.

Hugging Face stores the attention and feed-forward matrices as [inputs, outputs] (its Conv1D), always
has attention biases, and may leave out the prefix `transformer.`. Zeros stand for biases that a model
does not have; `attention_bias` in config.json, which others ignore, says so on the way back.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from faisca.config import ModelConfig
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import Parameters, parameter_shapes
from faisca.porting.formats import Portable, check_training, float32, model_config, read_json, read_tokenizer
from faisca.porting.weight_files import read_file

PREFIX = "transformer."
MODEL_FILE = Path(__file__).parents[2] / "faisca_mlx" / "exported" / "faisca_gpt2.py"
"""for mlx-lm to import from a folder that its own GPT-2 cannot compute: a user then says --trust-remote-code"""
TRAINING_FILE = "faisca.json"
"""what is known of the training, for the way back"""
TOP_NAMES = {
    "token_embedding": "wte",
    "positional_embedding": "wpe",
    "final_layer_norm": "ln_f",
}
BLOCK_NAMES = {
    "norm1": "ln_1",
    "attention.in_proj": "attn.c_attn",
    "attention.out_proj": "attn.c_proj",
    "norm2": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
"""our modules of a block, and theirs; c_ matrices are transposed"""
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
OTHER_NAMES = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$")
"""causal masks that older folders hold"""
UNSUPPORTED = {
    "scale_attn_weights": (True, "attention without its scale"),
    "scale_attn_by_inverse_layer_idx": (False, "attention scaled by layer"),
    "add_cross_attention": (False, "cross-attention"),
}
"""options of GPT-2 that our model lacks: the only value that will do, and what any other would mean"""


def read_folder(folder: Path, tokenizer_json: Path | None = None) -> Portable:
    """A Hugging Face GPT-2 folder, tied or not, exact or tanh GELU; `tokenizer_json` is for one that has none."""
    config = read_json(folder / "config.json")
    _check_config(config, folder)
    arrays = _read_arrays(folder)
    tokenizer = _read_tokenizer(folder, config, tokenizer_json)
    training = read_json(folder / TRAINING_FILE) if (folder / TRAINING_FILE).is_file() else {}
    check_training(training, folder / TRAINING_FILE)
    model = _read_model(config, str(folder / "config.json"))
    return Portable(
        format="hf",
        found="a Hugging Face GPT-2 folder",
        model=model,
        parameters=_to_ours(arrays, model, folder),
        tokenizer=tokenizer,
        training=training,
    )


def config_json(portable: Portable) -> dict[str, Any]:
    """config.json: GPT-2's names, those that mlx-lm reads, and what the way back needs."""
    model, end_of_text = portable.model, portable.tokenizer.end_of_text
    config: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{"vocab_size": model.vocabulary_size, "n_positions": model.context, "n_ctx": model.context},
        **{"n_embd": model.dim, "n_layer": model.num_layers, "n_head": model.num_heads, "n_inner": model.hidden_dim},
        "activation_function": ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.norm_epsilon,
        **{"resid_pdrop": model.dropout, "embd_pdrop": model.dropout, "attn_pdrop": model.attention_dropout},
        "tie_word_embeddings": model.tie_embeddings,
        **{"bos_token_id": end_of_text, "eos_token_id": end_of_text},
        "dtype": "float32",
        "attention_bias": model.attention_bias,
    }
    return config | ({"model_file": MODEL_FILE.name} if needs_model_file(model) else {})


def needs_model_file(model: ModelConfig) -> bool:
    """Whether mlx-lm's own GPT-2 cannot compute this model."""
    return not (model.tie_embeddings and model.activation == "gelu_tanh" and model.hidden_dim == 4 * model.dim)


def to_theirs(portable: Portable) -> Parameters:
    """Our parameters under GPT-2's names; mlx-lm's own GPT-2 wants no prefix, an untied head needs one."""
    model, ours = portable.model, portable.parameters
    prefix = "" if model.tie_embeddings else PREFIX
    theirs = {}
    for name, array in ours.items():
        theirs[_their_name(name, prefix)] = np.ascontiguousarray(array.T) if _transposed(name) else array
    if not model.attention_bias:
        for i in range(model.num_layers):
            theirs[f"{prefix}h.{i}.attn.c_attn.bias"] = np.zeros(3 * model.dim, np.float32)
            theirs[f"{prefix}h.{i}.attn.c_proj.bias"] = np.zeros(model.dim, np.float32)
    return theirs


def _to_ours(theirs: Parameters, model: ModelConfig, folder: Path) -> Parameters:
    theirs = {name.removeprefix(PREFIX): array for name, array in theirs.items()}
    head = theirs.pop("lm_head.weight", None)
    known = {_their_name(name, ""): (name, shape) for name, shape in _shapes(model).items()}
    extra, missing = [name for name in theirs if name not in known], [name for name in known if name not in theirs]
    if extra or missing:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is unknown"
        raise FaiscaError(f"{folder}: weight {what}: config.json asks for a GPT-2 of {model.num_layers} blocks")
    ours = {}
    for their_name, array in theirs.items():
        name, shape = known[their_name]
        turned = np.ascontiguousarray(array.T) if _transposed(name) else array
        _check_shape(their_name, array, shape[::-1] if _transposed(name) else shape, folder)
        if model.attention_bias or not _zero_bias(name, array, folder):
            ours[name] = turned
    return ours | _head(head, theirs["wte.weight"], model, folder)


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes, as we store them, of all that GPT-2 has besides the head."""
    return parameter_shapes(replace(model, attention_bias=True, tie_embeddings=True))


def _check_shape(name: str, array: np.ndarray, shape: tuple[int, ...], folder: Path) -> None:
    if array.shape != shape:
        raise FaiscaError(
            f"{folder}: weight {name} has shape {list(array.shape)}, but config.json asks for {list(shape)}"
        )


def _head(head: np.ndarray | None, embedding: np.ndarray, model: ModelConfig, folder: Path) -> Parameters:
    if model.tie_embeddings:
        if head is not None and not np.array_equal(head, embedding):
            raise FaiscaError(
                f"{folder}: config.json has tie_word_embeddings true, but lm_head.weight differs from wte.weight: "
                "one of them is wrong"
            )
        return {}
    if head is None:
        raise FaiscaError(f"{folder}: config.json has tie_word_embeddings false, but lm_head.weight is missing")
    _check_shape("lm_head.weight", head, embedding.shape, folder)
    return {"out_head.weight": head}


def _zero_bias(name: str, array: np.ndarray, folder: Path) -> bool:
    bias = "attention" in name and name.endswith("bias")
    if bias and array.any():
        raise FaiscaError(f"{folder}: config.json has attention_bias false, but {_their_name(name, '')} is not zero")
    return bias


def _their_name(name: str, prefix: str) -> str:
    if name == "out_head.weight":
        return "lm_head.weight"
    module, _, kind = name.rpartition(".")
    if module in TOP_NAMES:
        return f"{prefix}{TOP_NAMES[module]}.{kind}"
    _, i, inner = module.split(".", 2)
    return f"{prefix}h.{i}.{BLOCK_NAMES[inner]}.{kind}"


def _transposed(name: str) -> bool:
    return name.endswith("weight") and ("attention" in name or "feed_forward" in name)


def _check_config(config: dict[str, Any], folder: Path) -> None:
    if config.get("model_type") != "gpt2":
        raise FaiscaError(
            f"{folder / 'config.json'}: model_type {config.get('model_type')!r} does not fit: only GPT-2 comes in "
            "(model_type gpt2, as GPT-2 and DistilGPT-2 have), as our model is built like it; port a folder of that "
            "kind, or use this one with transformers or mlx_lm"
        )
    if "quantization" in config or "quantization_config" in config:
        raise FaiscaError(f"{folder / 'config.json'}: quantization is set: port the folder it was made from instead")
    for key, (fine, meaning) in UNSUPPORTED.items():
        if config.get(key, fine) != fine:
            raise FaiscaError(f"{folder / 'config.json'}: {key} {config[key]}: our model has no {meaning}")


def _read_model(config: dict[str, Any], source: str) -> ModelConfig:
    """GPT-2's options as ours; what the file leaves out is as in GPT-2 small, which is Hugging Face's default."""
    name = config.get("activation_function", "gelu_new")
    activation = OTHER_NAMES | {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    if name not in activation:
        raise FaiscaError(f"{source}: activation_function {name!r} is unknown: our model has {', '.join(activation)}")
    dim = config.get("n_embd", 768)
    return model_config(
        {
            "vocabulary_size": config.get("vocab_size", 50257),
            "context": config.get("n_positions", 1024),
            "dim": dim,
            "num_layers": config.get("n_layer", 12),
            "num_heads": config.get("n_head", 12),
            "hidden_dim": 4 * dim if config.get("n_inner") is None else config["n_inner"],
            "activation": activation[name],
            "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
            "dropout": config.get("resid_pdrop", 0.1),
            "attention_dropout": config.get("attn_pdrop", 0.1),
            "tie_embeddings": config.get("tie_word_embeddings", True),
            "attention_bias": config.get("attention_bias", True),
        },
        source,
    )


def _read_arrays(folder: Path) -> Parameters:
    """All weights of a folder: one file, several with an index, or an older folder's pickle, read safely."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(Path(str(name)).name == name for name in weight_map.values()):
            raise FaiscaError(f"{index} has no weight_map of file names: copy the folder again")
        names = sorted(set(weight_map.values()))
    elif not (folder / names[0]).is_file() and (folder / "pytorch_model.bin").is_file():
        names = ["pytorch_model.bin"]
    weights: Parameters = {}
    for file in names:
        arrays = {name: array for name, array in read_file(folder / file)[0].items() if not BUFFERS.search(name)}
        weights |= float32(arrays, folder / file)
    return weights


def _read_tokenizer(folder: Path, config: dict[str, Any], named: Path | None) -> Tokenizer:
    own = folder / "tokenizer.json"
    if named and own.is_file():
        raise FaiscaError(f"--tokenizer does not go with {folder}, which has its own: leave it out")
    if not named and not own.is_file():
        raise FaiscaError(
            f"{folder} has no tokenizer.json: name the model's with --tokenizer FILE; "
            f"transformers.AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}') writes one"
        )
    tokenizer = read_tokenizer(named or own)
    stated = config.get("eos_token_id", 50256)
    if stated != tokenizer.end_of_text and tokenizer.vocabulary_size == config.get("vocab_size", 50257):
        raise FaiscaError(
            f"{folder / 'config.json'}: eos_token_id {stated} is not the tokenizer's <|endoftext|>, "
            f"{tokenizer.end_of_text}: correct it"
        )
    return tokenizer
