"""Where our arrays lie in another project's folder: what a layout (`gpt2.py`, `llama.py`) has to say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from faisca.config import ModelConfig
from faisca.errors import FaiscaError
from faisca.parameters import parameter_shapes
from faisca.system.tensors import Shape, Tensors

COMMON_KEYS = frozenset(
    "architectures model_type model_file transformers_version dtype torch_dtype use_cache bos_token_id eos_token_id"
    " pad_token_id unk_token_id sep_token_id cls_token_id decoder_start_token_id initializer_range vocab_size"
    " tie_word_embeddings _name_or_path _model_name_or_path name_or_path auto_map transformers.js_config"
    " is_llama_config task_specific_params output_attentions output_hidden_states return_dict return_dict_in_generate"
    " gradient_checkpointing id2label label2id problem_type chunk_size_feed_forward is_decoder is_encoder_decoder"
    " finetuning_task torchscript use_bfloat16 attn_implementation _attn_implementation"
    " _attn_implementation_autoset unsloth_fixed unsloth_version summary_activation summary_first_dropout"
    " summary_proj_to_labels summary_type summary_use_proj".split()
)
"""keys of config.json that are read elsewhere, or that change nothing of what a model computes"""
HEAD = "lm_head.weight"
Refusals = Mapping[str, tuple[tuple[Any, ...], str]]
REFUSED: Refusals = {
    "quantization": ((None,), "its weights are quantised: port the folder it was made from"),
    "quantization_config": ((None,), "its weights are quantised: port the folder it was made from"),
    "attn_logit_softcapping": ((None, 0), "our attention does not cap its scores"),
    "final_logit_softcapping": ((None, 0), "our logits are not capped"),
    "logit_scale": ((None, 1), "our logits are not scaled"),
    "logits_scaling": ((None, 1), "our logits are not scaled"),
    "embedding_multiplier": ((None, 1), "our embeddings are not scaled"),
    "residual_multiplier": ((None, 1), "our residual stream is not scaled"),
    "attention_multiplier": ((None,), "our attention has no scale but 1/√width"),
    "query_pre_attn_scalar": ((None,), "our attention has no scale but 1/√width"),
    "clip_qkv": ((None,), "our queries, keys and values are not clipped"),
    "num_experts": ((None, 0), "this family's feed-forward layer is no mixture of experts"),
    "num_local_experts": ((None, 0), "this family's feed-forward layer is no mixture of experts"),
    "add_cross_attention": ((None, False), "our model has no cross-attention"),
    "no_rope_layers": ((None, []), "our layers all turn their queries and keys"),
    "rope_interleaved": ((None, False), "our rotation pairs halves, not neighbours"),
    "rope_traditional": ((None, False), "our rotation pairs halves, not neighbours"),
}
"""keys that would change what is computed: the values that do not, and what our model lacks"""
INSTEAD = "use the folder with transformers or mlx_lm"


@dataclass(frozen=True)
class Place:
    """Where one of our arrays lies: under several names where they have its rows one after the other."""

    names: tuple[str, ...]
    rows: tuple[int, ...] = ()
    """how many rows each of several names has"""
    transposed: bool = False
    stacked: bool = False
    """ours is a stack of theirs, as experts' matrices are"""

    def theirs(self, shape: Shape) -> dict[str, Shape]:
        """Shapes of their arrays, of ours."""
        if self.stacked:
            return dict.fromkeys(self.names, shape[1:])
        if len(self.names) > 1:
            return {name: (rows, *shape[1:]) for name, rows in zip(self.names, self.rows, strict=True)}
        return {self.names[0]: shape[::-1] if self.transposed else shape}

    def read(self, theirs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Our array of theirs."""
        if self.stacked:
            first = theirs[self.names[0]]
            stack = np.empty((len(self.names), *first.shape), first.dtype)
            for i, name in enumerate(self.names):  # one by one: all at once would be twice the stack
                stack[i] = theirs[name]
            return stack
        if len(self.names) > 1:
            return np.concatenate([theirs[name] for name in self.names])
        array = theirs[self.names[0]]
        return np.ascontiguousarray(array.T) if self.transposed else array

    def write(self, name: str, ours: np.ndarray) -> np.ndarray:
        """Their array `name` of ours."""
        if self.stacked:
            matrix: np.ndarray = ours[self.names.index(name)]
            return matrix
        if len(self.names) > 1:
            i = self.names.index(name)
            start = sum(self.rows[:i])
            return ours[start : start + self.rows[i]]
        return np.ascontiguousarray(ours.T) if self.transposed else ours


def as_they_are(theirs: Tensors, model: ModelConfig) -> Tensors:
    """Of a layout that has no other names."""
    return theirs


@dataclass(frozen=True)
class Layout:
    """One project's way to store a model: its config.json and its names, in both directions."""

    name: str
    config: Callable[[ModelConfig], dict[str, Any]]
    """a model -> what config.json says of it"""
    read_model: Callable[[Mapping[str, Any], str], dict[str, Any]]
    """config.json and its name -> the options of a ModelConfig, all but what the weights say; or a FaiscaError"""
    places: Callable[[ModelConfig], dict[str, Place]]
    """a model -> where each of its arrays lies, by our name"""
    lacks: Callable[[ModelConfig], list[str]]
    """a model -> its options that the layout has no words for"""
    zeros: Callable[[ModelConfig], dict[str, Shape]]
    """a model -> arrays of zeros that stand for what it does not have"""
    keys: frozenset[str]
    """of config.json: those that `read_model` reads or knows"""
    refused: Refusals = field(default_factory=dict)
    """as REFUSED, of this layout alone"""
    named: Callable[[Tensors, ModelConfig], Tensors] = as_they_are
    """arrays of a folder, under the names that `places` has where it may have others, too"""


def check_config(config: Mapping[str, Any], layout: Layout, source: str) -> list[str]:
    """Refuse by name what we do not compute; returns the keys that nobody here knows."""
    refused = {key: value for key, value in {**REFUSED, **layout.refused}.items() if key not in layout.keys}
    for key, (fine, meaning) in refused.items():
        if key in config and not any(config[key] is value or config[key] == value for value in fine):
            remedy = "" if "port" in meaning or ":" in meaning else f"; {INSTEAD}"
            raise FaiscaError(f"{source}: {key} {config[key]!r} is refused: {meaning}{remedy}")
    return sorted(set(config) - layout.keys - COMMON_KEYS - set(refused))


def to_ours(theirs: Tensors, layout: Layout, model: ModelConfig, source: str) -> Tensors:
    """Their arrays under our names, each put together when it is read; FaiscaError where names or shapes differ."""
    places, shapes = layout.places(model), parameter_shapes(model)
    wanted = {name: shape for ours, place in places.items() for name, shape in place.theirs(shapes[ours]).items()}
    zeros = layout.zeros(model)
    missing = [name for name in wanted if name not in theirs]
    extra = [name for name in theirs if name not in wanted | zeros]
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is unknown"
        raise FaiscaError(f"{source}: weight {what}: config.json asks for {layout.name} of {model.num_layers} blocks")
    for name, shape in (wanted | {name: shape for name, shape in zeros.items() if name in theirs}).items():
        if theirs.shapes[name] != shape:
            found = list(theirs.shapes[name])
            raise FaiscaError(f"{source}: weight {name} has shape {found}, but config.json asks for {list(shape)}")
    for name in zeros:
        if name in theirs and theirs[name].any():
            raise FaiscaError(f"{source}: config.json says that there is no bias, but {name} is not zero")
    return Tensors(shapes, lambda name: places[name].read(theirs), dict.fromkeys(shapes, theirs.dtype))


def to_theirs(ours: Mapping[str, np.ndarray], layout: Layout, model: ModelConfig) -> Tensors:
    """Our arrays under their names, each made when it is read: float32."""
    shapes = parameter_shapes(model)
    owners: dict[str, tuple[str, Place]] = {}
    found: dict[str, Shape] = {}
    for name, place in layout.places(model).items():
        found |= place.theirs(shapes[name])
        owners |= dict.fromkeys(place.names, (name, place))
    zeros, one = layout.zeros(model), keeping(ours.__getitem__)

    def read(name: str) -> np.ndarray:
        if name in zeros:
            return np.zeros(zeros[name], np.float32)
        our_name, place = owners[name]
        return place.write(name, one(our_name))

    return Tensors(found | zeros, read, dict.fromkeys(found | zeros, "float32"))


def keeping(read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """`read`, which keeps what it read last: parts of an array are asked for one after the other."""
    last: dict[str, np.ndarray] = {}

    def read_or_keep(name: str) -> np.ndarray:
        if name not in last:
            last.clear()
            last[name] = read(name)
        return last[name]

    return read_or_keep


def required(config: Mapping[str, Any], key: str, source: str) -> Any:
    """A value that has no default in all libraries, or a FaiscaError."""
    if config.get(key) is None:
        raise FaiscaError(f"{source} has no {key}, for which libraries have different defaults: add it")
    return config[key]
