"""Folders of mixtures of experts: Mixtral's, OLMoE's and Qwen3-MoE's, in all but the feed-forward layers as Llama's.

On the hub a matrix of an expert is an array of its own, which is what goes out: transformers and mlx-lm read it. What
transformers 5 stacks (all experts' gates above their ups, and its own block's name for Mixtral's) and what mlx-lm
stacks (`switch_mlp`) come in too.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from faisca.config import ModelConfig
from faisca.errors import FaiscaError
from faisca.parameters import parameter_shapes
from faisca.porting.layouts import llama
from faisca.porting.layouts.layout import INSTEAD, Layout, Place, keeping, required
from faisca.system.tensors import Shape, Tensors

CLASSES = {"mixtral": "MixtralForCausalLM", "olmoe": "OlmoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
"""families, and transformers' classes of them"""
WIDTHS = {"mixtral": "intermediate_size", "olmoe": "intermediate_size", "qwen3_moe": "moe_intermediate_size"}
"""what an expert's width is called"""
MIXTRAL = {"gate": "w1", "down": "w2", "up": "w3"}
"""our matrices of an expert, and what Mixtral's folders call them; others': gate_proj and so on"""
KEYS = llama.KEYS | frozenset(
    "num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step"
    " mlp_only_layers output_router_logits router_aux_loss_coef router_z_loss_coef hidden_dim".split()
)
REFUSED = llama.REFUSED | {"router_jitter_noise": ((None, 0), "our routers have no noise: set it to 0, as in use")}
WHOLE = 8
"""transformers' grouped product takes rows of whole 16 bytes alone: so many numbers of two bytes"""
STACK = re.compile(
    r"(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.(?:experts\.(gate_up|down)_proj|switch_mlp\.(gate|up|down)_proj\.weight)"
)
"""a stack of all experts: of transformers', or of mlx-lm's"""


def config(model: ModelConfig) -> dict[str, Any]:
    """config.json of the family whose class computes just this model."""
    family = _family(model)
    own: dict[str, Any] = {
        "num_experts_per_tok": model.experts_per_token,
        "router_aux_loss_coef": model.balance_weight / model.experts_per_token,  # theirs is of shares of tokens
        "router_z_loss_coef": model.router_z_weight,
    }
    if family == "mixtral":
        own |= {"num_local_experts": model.num_experts}
    else:
        own |= {"num_experts": model.num_experts, "norm_topk_prob": model.normalise_experts}
    if family == "qwen3_moe":
        own |= {"moe_intermediate_size": model.expert_width, "head_dim": model.head_width}
        own |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False}
    else:
        own |= {"intermediate_size": model.expert_width, "hidden_dim": model.hidden_dim}
    if family == "olmoe":
        own |= {"attention_bias": model.attention_bias}
    return llama.words(model, family, CLASSES[family]) | own


def read_model(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The families' options as ours."""
    family, values = config["model_type"], llama.read_model(config, source)
    _refuse(config, values, source)
    width, count = required(config, WIDTHS[family], source), required(config, "num_experts_per_tok", source)
    if family != "qwen3_moe":
        values["hidden_dim"] = config.get("hidden_dim", width)  # nothing is as wide: for the way back
    if isinstance(weight := config.get("router_aux_loss_coef"), int | float) and isinstance(count, int):
        values["balance_weight"] = float(f"{weight * count:.12g}")
    if "router_z_loss_coef" in config:
        values["router_z_weight"] = config["router_z_loss_coef"]
    return values | {
        "qk_norm": family != "mixtral",
        "qk_norm_over": "all" if family == "olmoe" else "head",
        "num_experts": _experts(config, source),
        "experts_per_token": count,
        "expert_dim": 0 if width == values["hidden_dim"] else width,
        "normalise_experts": family == "mixtral" or _normalised(config, source),
    }


def places(model: ModelConfig) -> dict[str, Place]:
    """Where our arrays lie."""
    return {name: _place(name, model) for name in parameter_shapes(model)}


def lacks(model: ModelConfig) -> list[str]:
    """What none of the families has, or has together with the rest."""
    family, divided = _family(model), model.head_width * model.num_heads == model.dim
    biased = model.attention_bias
    fits = {
        f"model.shared_expert_dim {model.shared_expert_dim}": not model.shared_expert_dim,
        "model.normalise_experts False without model.qk_norm": model.normalise_experts or family != "mixtral",
        f"model.head_dim {model.head_dim}": family == "qwen3_moe" or divided,
        f"model.rope_factor {model.rope_factor:g}": family == "olmoe" or model.rope_factor == 1,
        f"model.expert_dim {model.expert_width} (no multiple of {WHOLE})": not model.expert_width % WHOLE,
        f"model.dim {model.dim} (no multiple of {WHOLE})": not model.dim % WHOLE,
        "model.attention_bias": not biased or (family == "olmoe" and model.output_bias),
        **llama.of_all(model),
    }
    return [name for name, fine in fits.items() if not fine]


def zeros(model: ModelConfig) -> dict[str, Shape]:
    """Nothing: what these families do not have is not stored."""
    return {}


def named(theirs: Tensors, model: ModelConfig) -> Tensors:
    """Arrays as the hub has them, of stacks too: an expert's is read from its stack, which is kept for the next."""
    origins: dict[str, tuple[str, Any]] = {}
    for name, shape in theirs.shapes.items():
        stack = STACK.fullmatch(name)
        origins |= _parts(stack, shape, model) if stack and len(shape) == 3 else {_block(name, model): (name, ...)}
    one = keeping(theirs.__getitem__)

    def read(name: str) -> np.ndarray:
        old, where = origins[name]
        array: np.ndarray = one(old)[where]
        return array

    shapes = {new: np.broadcast_to(0, theirs.shapes[old])[where].shape for new, (old, where) in origins.items()}
    return Tensors(shapes, read, {new: theirs.dtypes[old] for new, (old, _) in origins.items()})


def _parts(stack: re.Match[str], shape: Shape, model: ModelConfig) -> dict[str, tuple[str, Any]]:
    """The hub's names of all matrices in a stack, and where each is."""
    half = shape[1] // 2
    cuts = {stack[2] or stack[3]: slice(None)}
    if stack[2] == "gate_up":
        cuts = {"gate": slice(half), "up": slice(half, None)}
    experts = range(shape[0])
    return {_expert(stack[1], i, part, model): (stack[0], (i, cut)) for part, cut in cuts.items() for i in experts}


def _family(model: ModelConfig) -> str:
    if not model.qk_norm:
        return "mixtral"
    return "olmoe" if model.qk_norm_over == "all" else "qwen3_moe"


def _place(name: str, model: ModelConfig) -> Place:
    layer = name.removeprefix("transformer_blocks.").partition(".")[0]
    part = name.partition(".feed_forward.")[2].removesuffix(".weight")
    if part == "router":
        return Place((_block(f"model.layers.{layer}.mlp.gate.weight", model),))
    if part:
        kind, experts = part.removeprefix("experts."), range(model.num_experts)
        return Place(tuple(_expert(f"model.layers.{layer}", i, kind, model) for i in experts), stacked=True)
    return llama.place(name, model)


def _expert(layer: str, number: int, part: str, model: ModelConfig) -> str:
    """The hub's name of a matrix: `part` is gate, up or down."""
    if _family(model) == "mixtral":
        return f"{layer}.block_sparse_moe.experts.{number}.{MIXTRAL[part]}.weight"
    return f"{layer}.mlp.experts.{number}.{part}_proj.weight"


def _block(name: str, model: ModelConfig) -> str:
    """Mixtral's block has a name of its own on the hub, and in transformers 5 that of all others."""
    return name.replace(".mlp.", ".block_sparse_moe.") if _family(model) == "mixtral" else name


def _experts(config: Mapping[str, Any], source: str) -> Any:
    """How many there are: transformers 5 writes another key than the hub has."""
    found = {key: config[key] for key in ("num_experts", "num_local_experts") if config.get(key) is not None}
    if len(set(map(str, found.values()))) > 1:
        both = " and ".join(f"{key} {value}" for key, value in found.items())
        raise FaiscaError(f"{source}: {both} contradict each other: correct the wrong one")
    key = "num_local_experts" if config["model_type"] == "mixtral" else "num_experts"
    return next(iter(found.values()), None) or required({}, key, source)


def _normalised(config: Mapping[str, Any], source: str) -> Any:
    """OLMoE's are not, where nothing says it; for Qwen's, libraries differ."""
    default = {"norm_topk_prob": False} if config["model_type"] == "olmoe" else {}
    return required({**default, **config}, "norm_topk_prob", source)


def _refuse(config: Mapping[str, Any], values: Mapping[str, Any], source: str) -> None:
    """Raise a FaiscaError for what our model, or a library, does not compute; `values` are the options of any Llama."""
    family, layers = config["model_type"], "all our layers have experts, or none"
    width, scaled = config.get(WIDTHS[family]), values.get("rope_factor", 1) != 1
    whole = all(not isinstance(size, int) or size % WHOLE == 0 for size in (width, values["dim"]))
    checks = {
        "decoder_sparse_step": (config.get("decoder_sparse_step") in (None, 1), layers),
        "mlp_only_layers": (config.get("mlp_only_layers") in (None, []), layers),
        "head_dim": (family == "qwen3_moe" or not values["head_dim"], f"mlx_lm's {family} has none"),
        "rope_parameters": (family == "olmoe" or not scaled, f"mlx_lm's {family} does not scale its rotation"),
        WIDTHS[family]: (whole, f"transformers' experts need multiples of {WHOLE}, as hidden_size too"),
    }
    for key, (fine, meaning) in checks.items():
        if not fine:
            raise FaiscaError(f"{source}: {key} {config.get(key)!r} is refused: {meaning}; {INSTEAD}")


LAYOUT = Layout("a Mixtral, OLMoE or Qwen3-MoE", config, read_model, places, lacks, zeros, KEYS, REFUSED, named)
