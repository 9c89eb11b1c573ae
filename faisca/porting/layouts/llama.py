"""Llama's folders, and those of its kin: Mistral without a window, Qwen2.5 (q, k, v biases), Qwen3 (q, k norms).

Their matrices are [outputs, inputs] as ours; queries, keys and values lie apart, which we have as one. The base of
the rotation stands in config.json as transformers 4 and mlx-lm want it, and in the object that transformers 5 reads.
"""

from collections.abc import Mapping
from typing import Any

from faisca.config import ModelConfig
from faisca.errors import FaiscaError
from faisca.parameters import parameter_shapes
from faisca.porting.layouts.layout import INSTEAD, Layout, Place, required
from faisca.porting.layouts.rope import KEYS as ROPE_KEYS
from faisca.porting.layouts.rope import read_rope, write_rope
from faisca.system.tensors import Shape

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""families that are written, and transformers' classes of them"""
FAMILIES = (*CLASSES, "mistral")
"""families that are read; Mistral's layout is Llama's, and goes out as such"""
TOP_NAMES = {"token_embedding": "model.embed_tokens", "final_layer_norm": "model.norm", "out_head": "lm_head"}
BLOCK_NAMES = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attention.out_proj": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
WINDOWED = ("llama", "mistral", "mixtral", "olmoe")
"""families whose window is used where there is one; Qwen's are off by default"""
WITH_BASE = ("llama", "mistral", "olmoe")
"""families for whose base of the rotation all libraries have the same default"""
KEYS = ROPE_KEYS | frozenset(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"
    " max_position_embeddings rms_norm_eps attention_dropout attention_bias attention_output_bias mlp_bias dropout"
    " sliding_window use_sliding_window max_window_layers layer_types".split()
)
REFUSED = {
    "hidden_act": (("silu", "swish"), "our gated feed-forward layer has SiLU"),
    "pretraining_tp": ((None, 1), "our products are not cut into slices: set it to 1, where the weights are the same"),
    "use_qk_norm": ((None, False), "our norms of queries and keys are those of Qwen3"),
}


def config(model: ModelConfig) -> dict[str, Any]:
    """config.json of the family whose class computes just this model."""
    family = _family(model)
    return words(model, family, CLASSES[family]) | _own_words(model, family)


def plain_config(model: ModelConfig) -> dict[str, Any]:
    """config.json of a Llama whose output biases are zeros, where the model has none of these."""
    own = _own_words(model, "llama") | {"attention_output_bias": model.attention_output_bias}
    return words(model, "llama", CLASSES["llama"]) | own


def words(model: ModelConfig, family: str, name: str) -> dict[str, Any]:
    """What config.json of all families of this kind says; `name` is transformers' class."""
    return {
        "architectures": [name],
        "model_type": family,
        "vocab_size": model.vocabulary_size,
        "max_position_embeddings": model.context,
        **{"hidden_size": model.dim, "intermediate_size": model.hidden_dim, "num_hidden_layers": model.num_layers},
        **{"num_attention_heads": model.num_heads, "num_key_value_heads": model.kv_heads},
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "attention_dropout": model.attention_dropout,
        "dropout": model.dropout,
        "tie_word_embeddings": model.tie_embeddings,
        **write_rope(model),
    }


def _own_words(model: ModelConfig, family: str) -> dict[str, Any]:
    values: dict[str, Any]
    if family == "llama":
        values = {"attention_bias": model.attention_bias, "mlp_bias": model.feed_forward_bias}
    else:
        values = {"use_sliding_window": False}
    return values | ({} if family == "qwen2" else {"head_dim": model.head_width})


def read_model(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The families' options as ours."""
    family, heads = config["model_type"], required(config, "num_attention_heads", source)
    context = required(config, "max_position_embeddings", source)
    _check_windows(config, context, source)
    biased = bool(config.get("attention_bias", False)) and family in ("llama", "qwen3", "qwen3_moe", "olmoe")
    groups = config.get("num_key_value_heads") or (heads if family in ("llama", "olmoe") else None)
    stated = family in ("qwen3", "qwen3_moe")
    width = required(config, "head_dim", source) if stated else config.get("head_dim") or 0
    if family == "qwen2" and width:
        raise FaiscaError(f"{source}: head_dim {width} is refused: mlx_lm's Qwen2 has none; {INSTEAD}")
    dim = required(config, "hidden_size", source)
    return {
        "vocabulary_size": required(config, "vocab_size", source),
        "context": context,
        "dim": dim,
        "num_layers": required(config, "num_hidden_layers", source),
        "num_heads": heads,
        "num_kv_heads": groups or required(config, "num_key_value_heads", source),
        "head_dim": 0 if isinstance(heads, int) and isinstance(width, int) and width * heads == dim else width,
        "hidden_dim": required(config, "intermediate_size", source),
        **{"norm": "rms", "activation": "swiglu", "positions": "rope", "qk_norm": family == "qwen3"},
        "norm_epsilon": required(config, "rms_norm_eps", source),
        "attention_bias": biased or family == "qwen2",
        "attention_output_bias": "off" if family == "qwen2" else config.get("attention_output_bias", "auto"),
        "feed_forward_bias": bool(config.get("mlp_bias", False)) and family == "llama",
        "dropout": config.get("dropout", 0.0),
        "attention_dropout": config.get("attention_dropout") or 0.0,
        **({"tie_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}),
        **read_rope(config, source, has_default=family in WITH_BASE),
    }


def places(model: ModelConfig) -> dict[str, Place]:
    """Where our arrays lie."""
    return {name: place(name, model) for name in parameter_shapes(model)}


def zeros(model: ModelConfig) -> dict[str, Shape]:
    """Nothing: what these families do not have is not stored."""
    return {}


def plain_zeros(model: ModelConfig) -> dict[str, Shape]:
    """Biases of the attention's output, which Llama has where it has those of queries, keys and values."""
    if not model.attention_bias or model.output_bias:
        return {}
    return {f"model.layers.{i}.self_attn.o_proj.bias": (model.dim,) for i in range(model.num_layers)}


def lacks(model: ModelConfig) -> list[str]:
    """What none of the families has, or has together with the rest."""
    biases = ("attention_bias", "feed_forward_bias")
    divides = model.dim % model.num_heads == 0  # or transformers' Llama refuses it
    family = _family(model)
    fits = {
        f"model.head_dim {model.head_dim}": family == "qwen3" or (divides and (family == "llama" or _plain(model))),
        **{f"model.{name} with model.qk_norm": not (model.qk_norm and getattr(model, name)) for name in biases},
        "model.qk_norm_over all": model.qk_norm_over == "head",
        "model.feed_forward_bias with Qwen2's biases": family != "qwen2" or not model.feed_forward_bias,
        **of_all(model),
    }
    return [name for name, fine in fits.items() if not fine]


def plain_lacks(model: ModelConfig) -> list[str]:
    """What Llama alone has not."""
    fits = {
        f"model.head_dim {model.head_dim}": model.dim % model.num_heads == 0,
        "model.qk_norm": not model.qk_norm,
        **of_all(model),
    }
    return [name for name, fine in fits.items() if not fine]


def of_all(model: ModelConfig) -> dict[str, bool]:
    """Whether the options fit that all families share."""
    return {
        f"model.norm {model.norm}": model.norm == "rms",
        f"model.positions {model.positions}": model.positions == "rope",
        f"model.activation {model.activation}": model.activation == "swiglu",
        f"model.logit_soft_cap {model.logit_soft_cap:g}": not model.logit_soft_cap,
        f"model.bigram_rows {model.bigram_rows}": not model.bigram_rows,
        "model.attention_output_bias without model.attention_bias": model.attention_bias or not model.output_bias,
    }


def _plain(model: ModelConfig) -> bool:
    """Whether heads have the width that mlx-lm's Qwen2 knows alone."""
    return model.head_width * model.num_heads == model.dim


def _family(model: ModelConfig) -> str:
    if model.qk_norm:
        return "qwen3"
    return "qwen2" if model.attention_bias and not model.output_bias else "llama"


def _check_windows(config: Mapping[str, Any], context: Any, source: str) -> None:
    """Attention that sees no further than a window is not ours, unless the window holds the whole context."""
    used = config.get("use_sliding_window", config["model_type"] in WINDOWED)
    window = config.get("sliding_window") if used else None
    if window is not None and isinstance(context, int) and window < context:
        raise FaiscaError(
            f"{source}: sliding_window {window} is refused: our attention sees the whole context; with "
            f"max_position_embeddings {window} in place of {context} it is the same model"
        )
    other = sorted(set(config.get("layer_types") or []) - {"full_attention"})
    if other and window is None:
        raise FaiscaError(f"{source}: layer_types {other[0]!r} is refused: our layers have full_attention; {INSTEAD}")


def place(name: str, model: ModelConfig) -> Place:
    """Where one of our arrays lies."""
    module, _, kind = name.rpartition(".")
    if module in TOP_NAMES:
        return Place((f"{TOP_NAMES[module]}.{kind}",))
    _, i, inner = module.split(".", 2)
    if inner == "attention.in_proj":
        rows = tuple(heads * model.head_width for heads in (model.num_heads, model.kv_heads, model.kv_heads))
        return Place(tuple(f"model.layers.{i}.self_attn.{part}_proj.{kind}" for part in "qkv"), rows)
    return Place((f"model.layers.{i}.{BLOCK_NAMES[inner]}.{kind}",))


LAYOUT = Layout("a Llama or Qwen", config, read_model, places, lacks, zeros, KEYS, REFUSED)
PLAIN = Layout("a Llama", plain_config, read_model, places, plain_lacks, plain_zeros, KEYS, REFUSED)
"""Llama alone, with zeros for biases of the output: for what Qwen2 is not taken for"""
