"""The model's parameters without a framework: canonical names, shapes, and initial values.

Every backend stores its weights under these names and starts from these numbers, so two
backends differ in arithmetic only. Linear weights are [outputs, inputs], as in torch and MLX.
Initial values follow torch's defaults, which the original relies on: embeddings N(0, 1),
linear layers U(±1/√inputs), the fused query-key-value projection Xavier-uniform (Glorot &
Bengio 2010) over its whole matrix, norms 1 and 0. A tied embedding is N(0, 0.02²), as GPT-2's:
as an output head, N(0, 1) would start with logits of size √dim. With `initial_range` all matrices
and tables are normal, and biases 0, as GPT-2 and Llama have it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from faisca.config import Adapter, ModelConfig, adapter_of, plain
from faisca.errors import FaiscaError
from faisca.streams import generator
from faisca.system.tensors import Shape, Tensors

Parameters = dict[str, np.ndarray]
Initial = Callable[[np.random.Generator, Shape], np.ndarray]
"""draws the initial values of a shape"""


Parts = tuple[tuple[str | None, int], ...]
"""parts of a matrix, one below the other: a name, and how many rows"""


@dataclass(frozen=True)
class Parameter:
    """One row of the table: a parameter's shape, and how its initial values are drawn."""

    shape: Shape
    initial: Initial


def parameter_table(config: ModelConfig) -> dict[str, Parameter]:
    """Every parameter of a model by canonical name, in forward order; then those of its adapter."""
    embedding = _normal(config.initial_range or (0.02 if config.tie_embeddings else 1.0))
    table = {"token_embedding.weight": Parameter((config.vocabulary_size, config.dim), embedding)}
    if config.positions == "learned":
        table["positional_embedding.weight"] = Parameter((config.context, config.dim), embedding)
    if config.bigram_rows:
        table["bigram_embedding.weight"] = Parameter((config.bigram_rows, config.dim), _zeros)
    for i in range(config.num_layers):
        table |= _norm(f"transformer_blocks.{i}.norm1", config)
        table |= _attention(f"transformer_blocks.{i}.attention", config)
        table |= _norm(f"transformer_blocks.{i}.norm2", config)
        make = _experts if config.num_experts else _feed_forward
        table |= make(f"transformer_blocks.{i}.feed_forward", config)
    table |= _norm("final_layer_norm", config)
    if not config.tie_embeddings:
        table |= _linear("out_head", config.vocabulary_size, config.dim, _matrix(config, config.dim))
    adapter = adapter_of(config)
    return table | (_adapter(table, config, adapter) if adapter else {})


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shape of every parameter by canonical name, in forward order."""
    return {name: parameter.shape for name, parameter in parameter_table(config).items()}


def initial_parameters(config: ModelConfig, seed: int) -> Parameters:
    """Initial values by canonical name: float32 arrays, each from a stream of its own."""
    drawn = {name: _drawn(name, row, seed) for name, row in parameter_table(config).items()}
    return drawn | _lengths(config, drawn)


def initial_adapter(config: ModelConfig, seed: int, base: Mapping[str, np.ndarray]) -> Parameters:
    """Those of the model's adapter alone, on a base with these weights."""
    drawn = {name: _drawn(name, row, seed) for name, row in parameter_table(config).items() if in_adapter(name)}
    return drawn | _lengths(config, base)


def count_parameters(config: ModelConfig) -> int:
    """Numbers in the model; a tied embedding counts once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def decays(name: str, shape: Shape, decay: str) -> bool:
    """Whether weight decay applies to a parameter: to `all`, or to `matrices` and tables only."""
    return decay == "all" or len(shape) >= 2


def in_adapter(name: str) -> bool:
    """Whether a parameter is of an adapter: what alone is trained where there is one."""
    return ".lora." in name


def trained(name: str, config: ModelConfig) -> bool:
    """Whether training changes a parameter."""
    return adapter_of(config) is None or in_adapter(name)


def adapter_parts(config: ModelConfig) -> dict[str, Parts]:
    """Of each matrix with an adapter, by module: its parts, one below the other, and how many rows each has.

    The matrix of queries, keys and values has three parts, all others one; a part without an adapter has no name.
    """
    adapter, found = adapter_of(config), dict[str, Parts]()
    for name, shape in parameter_shapes(plain(config)).items() if adapter else ():
        assert adapter is not None
        module = name.removesuffix(".weight")
        if in_block(name, shape):
            parts = tuple(
                (part if target in adapter.targets else None, rows)
                for part, target, rows in _parts(module, shape, config)
            )
            found |= {module: parts} if any(part for part, _ in parts) else {}
    return found


def in_block(name: str, shape: Shape) -> bool:
    """Whether a parameter is a matrix of a block: what `run.weights` may keep in bfloat16.

    Tables, vectors, adapters, and routers, whose choices are the sharpest that a model makes, stay.
    """
    outside = name.endswith("router.weight") or in_adapter(name)
    return name.startswith("transformer_blocks.") and len(shape) >= 2 and not outside


def check_parameters(parameters: Mapping[str, np.ndarray], config: ModelConfig) -> None:
    """Raise a FaiscaError unless names and shapes are exactly those of `config`."""
    check_shapes(Tensors.of(parameters).shapes, config)  # of a file, without reading it


def check_shapes(found: Mapping[str, Shape], config: ModelConfig) -> None:
    """As `check_parameters`, from the shapes alone."""
    shapes = parameter_shapes(config)
    missing = [name for name in shapes if name not in found]
    extra = [name for name in found if name not in shapes]
    if missing or extra:
        listing = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in extra]
        raise FaiscaError(f"these weights do not fit the model configuration: {_first(listing)}")
    for name, shape in shapes.items():
        if found[name] != shape:
            raise FaiscaError(
                f"weight {name} has shape {list(found[name])}, but the model configuration asks for {list(shape)}"
            )


def _drawn(name: str, row: Parameter, seed: int) -> np.ndarray:
    return row.initial(generator(seed, f"initial value of {name}"), row.shape).astype(np.float32)


def _norm(name: str, config: ModelConfig) -> dict[str, Parameter]:
    row = {f"{name}.weight": Parameter((config.dim,), _ones)}
    return row | ({f"{name}.bias": Parameter((config.dim,), _zeros)} if config.norm == "layer" else {})


def _attention(name: str, config: ModelConfig) -> dict[str, Parameter]:
    """Queries, keys and values of all heads are the rows of one matrix, in this order."""
    width, inputs = config.head_width, config.dim
    heads, all_heads = config.num_heads, config.num_heads + 2 * config.kv_heads
    fused = _normal(config.initial_range) if config.initial_range else _xavier_uniform
    rows = _linear(f"{name}.in_proj", all_heads * width, inputs, fused, _zeros if config.attention_bias else None)
    if config.qk_norm:
        normed = zip(("query_norm", "key_norm"), config.qk_norm_widths, strict=True)
        rows |= {f"{name}.{norm}.weight": Parameter((numbers,), _ones) for norm, numbers in normed}
    output = _zeros if config.zero_outputs else _matrix(config, heads * width)
    return rows | _linear(f"{name}.out_proj", inputs, heads * width, output, _zeros if config.output_bias else None)


def _feed_forward(name: str, config: ModelConfig) -> dict[str, Parameter]:
    sizes = {"gate": (config.hidden_dim, config.dim)} if config.activation == "swiglu" else {}
    sizes |= {"up": (config.hidden_dim, config.dim), "down": (config.dim, config.hidden_dim)}
    rows: dict[str, Parameter] = {}
    for layer, (outputs, inputs) in sizes.items():
        empty = config.zero_outputs and layer == "down"
        bias = _zeros if config.initial_range or empty else _uniform(inputs)
        given = bias if config.feed_forward_bias else None
        rows |= _linear(f"{name}.{layer}", outputs, inputs, _zeros if empty else _matrix(config, inputs), given)
    return rows


def _experts(name: str, config: ModelConfig) -> dict[str, Parameter]:
    """The router, the experts' matrices in stacks [experts, outputs, inputs], and the shared expert's."""
    rows = _linear(f"{name}.router", config.num_experts, config.dim, _matrix(config, config.dim))
    one = _feed_forward(f"{name}.experts", replace(config, hidden_dim=config.expert_width))
    rows |= {key: Parameter((config.num_experts, *row.shape), row.initial) for key, row in one.items()}
    if config.shared_expert_dim:
        rows |= _feed_forward(f"{name}.shared", replace(config, hidden_dim=config.shared_expert_dim))
    return rows


def _parts(module: str, shape: Shape, config: ModelConfig) -> list[tuple[str, str, int]]:
    """Of a block's matrix: each part's name, the target that it belongs to, and its rows."""
    kind = module.rpartition(".")[2]
    if kind == "in_proj":
        heads = {"query": config.num_heads, "key": config.kv_heads, "value": config.kv_heads}
        return [(part, part, count * config.head_width) for part, count in heads.items()]
    part = "output" if kind == "out_proj" else kind
    return [(part, "experts" if ".experts." in module else part, shape[-2])]


def _adapter(table: Mapping[str, Parameter], config: ModelConfig, adapter: Adapter) -> dict[str, Parameter]:
    """A [rank, inputs], as PEFT and mlx-lm begin it, and B [rows, rank], 0: at first an adapter changes nothing.

    With DoRA m [rows], which begins with what `_lengths` finds.
    """
    rank, rows = adapter.rank, dict[str, Parameter]()
    for module, parts in adapter_parts(config).items():
        *stack, _, inputs = table[f"{module}.weight"].shape
        for part, outputs in parts:
            if part:
                rows[f"{module}.lora.{part}.a"] = Parameter((*stack, rank, inputs), _uniform(inputs))
                rows[f"{module}.lora.{part}.b"] = Parameter((*stack, outputs, rank), _zeros)
                rows |= {f"{module}.lora.{part}.m": Parameter((outputs,), _ones)} if adapter.dora else {}
    return rows


def _lengths(config: ModelConfig, base: Mapping[str, np.ndarray]) -> Parameters:
    """DoRA's m as it begins: how long each of the base's rows is. FaiscaError for a row of zeros, which has no way."""
    adapter, found = adapter_of(config), Parameters()
    for module, parts in adapter_parts(config).items() if adapter and adapter.dora else ():
        lengths, start = np.linalg.norm(base[f"{module}.weight"].astype(np.float64), axis=-1), 0
        if not lengths.all():
            raise FaiscaError(f"{module}.weight has a row of zeros, by whose length DoRA divides: leave lora_dora out")
        for part, rows in parts:
            found |= {f"{module}.lora.{part}.m": lengths[start : start + rows].astype(np.float32)} if part else {}
            start += rows
    return found


def _linear(name: str, outputs: int, inputs: int, weight: Initial, bias: Initial | None = None) -> dict[str, Parameter]:
    """A layer's weight [outputs, inputs], and its bias where it has one."""
    rows = {f"{name}.weight": Parameter((outputs, inputs), weight)}
    return rows | ({f"{name}.bias": Parameter((outputs,), bias)} if bias else {})


def _matrix(config: ModelConfig, inputs: int) -> Initial:
    return _normal(config.initial_range) if config.initial_range else _uniform(inputs)


def _normal(scale: float) -> Initial:
    return lambda random, shape: scale * random.standard_normal(shape)


def _uniform(inputs: int) -> Initial:
    bound = 1 / math.sqrt(inputs)
    return lambda random, shape: random.uniform(-bound, bound, shape)


def _xavier_uniform(random: np.random.Generator, shape: Shape) -> np.ndarray:
    bound = math.sqrt(6 / sum(shape))
    return random.uniform(-bound, bound, shape)


def _ones(random: np.random.Generator, shape: Shape) -> np.ndarray:
    return np.ones(shape)


def _zeros(random: np.random.Generator, shape: Shape) -> np.ndarray:
    return np.zeros(shape)


def _first(items: list[str], most: int = 3) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
