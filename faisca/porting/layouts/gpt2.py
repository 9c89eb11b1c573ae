"""GPT-2's folders: names, transposed matrices, and configuration.

Hugging Face stores the attention and feed-forward matrices as [inputs, outputs] (its Conv1D), always
has biases, and may leave out the prefix `transformer.`, as mlx-lm's own GPT-2 wants it. Zeros stand for
biases that a model does not have; keys in config.json that others ignore say so on the way back.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from faisca.config import ModelConfig
from faisca.errors import FaiscaError
from faisca.parameters import parameter_shapes
from faisca.porting.layouts.layout import HEAD, Layout, Place
from faisca.system.tensors import Shape, Tensors

PREFIX = "transformer."
TOP_NAMES = {"token_embedding": "wte", "positional_embedding": "wpe", "final_layer_norm": "ln_f"}
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
KEYS = frozenset(
    "n_positions n_ctx n_embd n_layer n_head n_inner activation_function layer_norm_epsilon resid_pdrop embd_pdrop"
    " attn_pdrop attention_bias attention_output_bias feed_forward_bias reorder_and_upcast_attn".split()
)
REFUSED = {
    "scale_attn_weights": ((True,), "our model has no attention without its scale"),
    "scale_attn_by_inverse_layer_idx": ((False,), "our model has no attention scaled by layer"),
}


def config(model: ModelConfig) -> dict[str, Any]:
    """config.json: GPT-2's names, those that mlx-lm reads, and what the way back needs."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{"vocab_size": model.vocabulary_size, "n_positions": model.context, "n_ctx": model.context},
        **{"n_embd": model.dim, "n_layer": model.num_layers, "n_head": model.num_heads, "n_inner": model.hidden_dim},
        "activation_function": ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.norm_epsilon,
        **{"resid_pdrop": model.dropout, "embd_pdrop": model.dropout, "attn_pdrop": model.attention_dropout},
        "tie_word_embeddings": model.tie_embeddings,
        "attention_bias": model.attention_bias,
        "attention_output_bias": model.attention_output_bias,
        "feed_forward_bias": model.feed_forward_bias,
    }


def read_model(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """GPT-2's options as ours; what the file leaves out is as in GPT-2 small, which is Hugging Face's default."""
    name = config.get("activation_function", "gelu_new")
    activation = OTHER_NAMES | {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    if name not in activation:
        raise FaiscaError(f"{source}: activation_function {name!r} is unknown: our model has {', '.join(activation)}")
    dim = config.get("n_embd", 768)
    return {
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
        "attention_output_bias": config.get("attention_output_bias", "auto"),
        "feed_forward_bias": config.get("feed_forward_bias", True),
    }


def places(model: ModelConfig) -> dict[str, Place]:
    """Where our arrays lie; mlx-lm's own GPT-2 wants no prefix, an untied head needs one."""
    return {name: _place(name, "" if model.tie_embeddings else PREFIX) for name in parameter_shapes(model)}


def zeros(model: ModelConfig) -> dict[str, Shape]:
    """Biases that GPT-2 has and the model has not."""
    full = replace(model, attention_bias=True, attention_output_bias="on", feed_forward_bias=True)
    ours, prefix = parameter_shapes(model), "" if model.tie_embeddings else PREFIX
    absent = {name: shape for name, shape in parameter_shapes(full).items() if name not in ours}
    return {_place(name, prefix).names[0]: shape for name, shape in absent.items()}


def lacks(model: ModelConfig) -> list[str]:
    """What GPT-2 has not."""
    fits = {
        f"model.norm {model.norm}": model.norm == "layer",
        f"model.positions {model.positions}": model.positions == "learned",
        f"model.activation {model.activation}": model.activation in ACTIVATIONS,
        f"model.num_kv_heads {model.num_kv_heads}": model.kv_heads == model.num_heads,
        f"model.head_dim {model.head_dim}": model.head_width * model.num_heads == model.dim,
        "model.qk_norm": not model.qk_norm,
        f"model.logit_soft_cap {model.logit_soft_cap:g}": not model.logit_soft_cap,
        f"model.bigram_rows {model.bigram_rows}": not model.bigram_rows,
    }
    return [name for name, fine in fits.items() if not fine]


def named(theirs: Tensors, model: ModelConfig) -> Tensors:
    """A folder may leave the prefix out, or have it where the head is tied: as our places have it."""
    prefix = "" if model.tie_embeddings else PREFIX
    return theirs.renamed({name if name == HEAD else prefix + name.removeprefix(PREFIX): name for name in theirs})


def needs_model_file(model: ModelConfig) -> bool:
    """Whether mlx-lm's own GPT-2 cannot compute this model."""
    return not (model.tie_embeddings and model.activation == "gelu_tanh" and model.hidden_dim == 4 * model.dim)


def _place(name: str, prefix: str) -> Place:
    transposed = name.endswith("weight") and ("attention" in name or "feed_forward" in name)
    module, _, kind = name.rpartition(".")
    if module == "out_head":
        return Place((HEAD,))
    if module in TOP_NAMES:
        return Place((f"{prefix}{TOP_NAMES[module]}.{kind}",))
    _, i, inner = module.split(".", 2)
    return Place((f"{prefix}h.{i}.{BLOCK_NAMES[inner]}.{kind}",), transposed=transposed)


LAYOUT = Layout("a GPT-2", config, read_model, places, lacks, zeros, KEYS, REFUSED, named)
