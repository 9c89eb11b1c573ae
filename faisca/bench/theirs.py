"""The benchmark's model as transformers and mlx-lm want it: config.json's values, and weights under their names."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from faisca.bench.work import Work
from faisca.config import ModelConfig
from faisca.parameters import Parameters
from faisca.porting.formats import Portable
from faisca.porting.huggingface import config_json, needs_model_file, to_theirs

LLAMA = {
    "norm": "rms",
    "positions": "rope",
    "activation": "swiglu",
    "rope_factor": 1.0,
    "qk_norm": False,
    "logit_soft_cap": 0.0,
    "attention_bias": False,
    "output_bias": False,
    "feed_forward_bias": False,
}
"""what makes a model a Llama, whose classes have no dropout beside attention's"""
NAMES = {
    "token_embedding": "model.embed_tokens",
    "final_layer_norm": "model.norm",
    "out_head": "lm_head",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attention.out_proj": "self_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}


def is_llama(model: ModelConfig) -> bool:
    """Whether it is Llama's layout; any other is taken for GPT-2's."""
    return all(getattr(model, option) == value for option, value in LLAMA.items())


def their_model(work: Work) -> tuple[dict[str, Any], Parameters, bool]:
    """config.json, weights by name, and whether mlx-lm needs a file of ours to compute it."""
    if is_llama(work.model):
        return _llama_config(work), _llama_weights(work), False
    tokenizer: Any = SimpleNamespace(end_of_text=work.end_of_text)
    portable = Portable("faisca", "the benchmark's weights", work.model, work.parameters(), tokenizer, {})
    return config_json(portable), to_theirs(portable), needs_model_file(work.model)


def _llama_config(work: Work) -> dict[str, Any]:
    """The base of the rotation stands twice: as transformers 4 and mlx-lm want it, and as transformers 5."""
    model, end = work.model, work.end_of_text
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{"vocab_size": model.vocabulary_size, "max_position_embeddings": model.context, "hidden_act": "silu"},
        **{"hidden_size": model.dim, "intermediate_size": model.hidden_dim, "num_hidden_layers": model.num_layers},
        **{"num_attention_heads": model.num_heads, "num_key_value_heads": model.kv_heads},
        **{"head_dim": model.head_width, "rms_norm_eps": model.norm_epsilon},
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        **{"attention_bias": False, "mlp_bias": False, "attention_dropout": model.attention_dropout},
        "tie_word_embeddings": model.tie_embeddings,
        **{"bos_token_id": end, "eos_token_id": end, "dtype": "float32"},
    }


def _llama_weights(work: Work) -> Parameters:
    theirs: Parameters = {}
    for name, array in work.parameters().items():
        module, _, kind = name.rpartition(".")
        block, _, inner = module.removeprefix("transformer_blocks.").partition(".")
        prefix = f"model.layers.{block}." if name.startswith("transformer_blocks.") else ""
        if inner == "attention.in_proj":
            theirs |= {f"{prefix}self_attn.{part}_proj.{kind}": rows for part, rows in _split(array, work.model)}
        else:
            theirs[f"{prefix}{NAMES[inner if prefix else module]}.{kind}"] = array
    return theirs


def _split(in_proj: np.ndarray, model: ModelConfig) -> list[tuple[str, np.ndarray]]:
    """Rows of queries, keys and values, which lie apart there."""
    first, second = model.num_heads * model.head_width, (model.num_heads + model.kv_heads) * model.head_width
    return list(zip("qkv", np.split(in_proj, [first, second]), strict=True))
