"""The model's parameters without a framework: canonical names, shapes, and initial values.

Every backend stores its weights under these names and starts from these numbers, so two
backends differ in arithmetic only. Linear weights are [outputs, inputs], as in torch and MLX.
Initial values follow torch's defaults, which the original relies on: embeddings N(0, 1),
linear layers U(±1/√inputs), the fused query-key-value projection Xavier-uniform (Glorot &
Bengio 2010) over its whole matrix, norms 1 and 0. A tied embedding is N(0, 0.02²), as GPT-2's:
as an output head, N(0, 1) would start with logits of size √dim.
"""

import math

import numpy as np

from faisca.config import ModelConfig
from faisca.errors import FaiscaError
from faisca.streams import generator

Parameters = dict[str, np.ndarray]


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by canonical name, in forward order."""
    dim, hidden = config.dim, config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (config.vocabulary_size, dim),
        "positional_embedding.weight": (config.context, dim),
    }
    for i in range(config.num_layers):
        block = f"transformer_blocks.{i}"
        shapes |= _norm(f"{block}.norm1", dim)
        shapes |= _linear(f"{block}.attention.in_proj", 3 * dim, dim, bias=config.attention_bias)
        shapes |= _linear(f"{block}.attention.out_proj", dim, dim, bias=config.attention_bias)
        shapes |= _norm(f"{block}.norm2", dim)
        shapes |= _linear(f"{block}.feed_forward.up", hidden, dim, bias=True)
        shapes |= _linear(f"{block}.feed_forward.down", dim, hidden, bias=True)
    shapes |= _norm("final_layer_norm", dim)
    if not config.tie_embeddings:
        shapes["out_head.weight"] = (config.vocabulary_size, dim)
    return shapes


def initial_parameters(config: ModelConfig, seed: int) -> Parameters:
    """Initial values by canonical name: float32 arrays, each from a stream of its own."""
    return {name: _initial_value(name, shape, config, seed) for name, shape in parameter_shapes(config).items()}


def count_parameters(config: ModelConfig) -> int:
    """Numbers in the model; a tied embedding counts once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def decays(name: str, shape: tuple[int, ...], decay: str) -> bool:
    """Whether weight decay applies to a parameter: to `all`, or to `matrices` and tables only."""
    return decay == "all" or len(shape) >= 2


def check_parameters(parameters: Parameters, config: ModelConfig) -> None:
    """Raise a FaiscaError unless names and shapes are exactly those of `config`."""
    shapes = parameter_shapes(config)
    missing = [name for name in shapes if name not in parameters]
    extra = [name for name in parameters if name not in shapes]
    if missing or extra:
        listing = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in extra]
        raise FaiscaError(f"these weights do not fit the model configuration: {_first(listing)}")
    for name, shape in shapes.items():
        if parameters[name].shape != shape:
            raise FaiscaError(
                f"weight {name} has shape {list(parameters[name].shape)}, but the model configuration "
                f"asks for {list(shape)}"
            )


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _initial_value(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> np.ndarray:
    random = generator(seed, f"initial value of {name}")
    if "norm" in name:
        return np.full(shape, 1.0 if name.endswith("weight") else 0.0, np.float32)
    if "embedding" in name:
        scale = 0.02 if config.tie_embeddings else 1.0
        return (scale * random.standard_normal(shape)).astype(np.float32)
    if "attention" in name and name.endswith("bias"):
        return np.zeros(shape, np.float32)
    inputs = config.hidden_dim if "feed_forward.down" in name else config.dim
    bound = math.sqrt(6 / sum(shape)) if "in_proj" in name else 1 / math.sqrt(inputs)
    return random.uniform(-bound, bound, shape).astype(np.float32)


def _first(items: list[str], most: int = 3) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
