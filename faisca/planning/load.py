"""What a stage computes at a time: the numbers that its memory follows from."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from faisca.backend import PLACES_MULTIPLE, Runtime
from faisca.config import Adapter, Config, ModelConfig, adapter_of, plain
from faisca.lora import adapted
from faisca.muon import matrix_stacks
from faisca.parameters import count_parameters, in_block, parameter_shapes, trained

FLOAT = 4
"""bytes of a float32"""


@dataclass(frozen=True)
class Load:
    """One optimiser step of a stage: R rows of T tokens at a time, N = R·T; a model as `ModelConfig` has it."""

    model: ModelConfig
    """with its real vocabulary size"""
    backend: str
    rows: int
    """R: windows or completions computed at a time"""
    length: int
    """T: tokens in a row"""
    chunk: int
    """rows of logits alive at a time"""
    accumulates: bool = False
    """whether gradients of earlier micro-batches wait"""
    policy: bool = False
    """GRPO: no dropout, a reference, log-probabilities in place of a loss"""
    scored: int = 0
    """GRPO: positions whose log-probabilities are computed, at most"""
    explores: bool = False
    """GRPO with an entropy bonus, whose gradient takes a chunk of logits more"""
    narrow: bool = False
    """factors of products in bfloat16"""
    explicit: bool = False
    """scores, softmax and product one after the other"""
    narrow_weights: bool = False
    """where nothing trains them, the blocks' matrices are kept in bfloat16: GRPO's reference, and an adapter's base"""
    muon: bool = False
    """the blocks' matrices have one moment, and move all layers at a time"""
    checkpointing: bool = False
    """blocks are computed again in the backward pass; GRPO's updates, which run without dropout, never do"""

    @property
    def tokens(self) -> int:
        """N: tokens computed at a time."""
        return self.rows * self.length

    @property
    def logits_rows(self) -> int:
        """Rows of a chunk of logits."""
        return min(self.chunk, self.scored or self.tokens)

    @property
    def width(self) -> float:
        """Bytes of a factor of a product."""
        return 2 if self.narrow else FLOAT

    @property
    def dropout(self) -> bool:
        """Whether activations are dropped."""
        return self.model.dropout > 0 and not self.policy

    @property
    def attention_dropout(self) -> bool:
        """Whether attention weights are dropped."""
        return self.model.attention_dropout > 0 and not self.policy

    @property
    def queries(self) -> int:
        """H·K: numbers a token of all queries, as wide as what the heads attend to."""
        return self.model.num_heads * self.model.head_width

    @property
    def keys(self) -> int:
        """G·K: numbers a token of all keys; values are as many."""
        return self.model.kv_heads * self.model.head_width

    @property
    def projected(self) -> int:
        """(H + 2·G)·K: numbers a token that one product makes: queries, keys and values."""
        return self.queries + 2 * self.keys

    @property
    def changed(self) -> int:
        """Numbers a token of queries and keys that a rotation or a norm makes anew: (H + G)·K, or none."""
        return self.queries + self.keys if self.model.positions == "rope" or self.model.qk_norm else 0

    @property
    def hidden(self) -> int:
        """F: numbers a token between up and down; with experts, in all that it goes through."""
        model = self.model
        if not model.num_experts:
            return model.hidden_dim
        return model.experts_per_token * model.expert_width + model.shared_expert_dim

    @property
    def rows_of_experts(self) -> int:
        """S·D: numbers a token of its rows, a row an expert, or none."""
        return self.model.experts_per_token * self.model.dim if self.model.num_experts else 0

    @property
    def adapter(self) -> Adapter | None:
        """What alone is trained, where there is one."""
        return adapter_of(self.model)

    @cached_property
    def parameters(self) -> int:
        """Bytes of the weights of the model under training: float32, but of an adapter's base what `frozen` says."""
        return self.trained + self.frozen if self.adapter else self.trained

    @cached_property
    def trained(self) -> int:
        """Bytes of the weights that are trained, float32; gradients, and each of Adam's two moments, are as many."""
        shapes = parameter_shapes(self.model).items()
        return FLOAT * sum(math.prod(shape) for name, shape in shapes if trained(name, self.model))

    @cached_property
    def matrices(self) -> int:
        """Numbers in the weight matrices of all blocks, which bfloat16 copies."""
        return sum(math.prod(shape) for name, shape in parameter_shapes(self.model).items() if in_block(name, shape))

    @property
    def copied_matrices(self) -> int:
        """Bytes of copies of the blocks' matrices in the dtype of products, where they are kept in another."""
        kept = 2 if self.adapter and self.narrow_weights else FLOAT
        return 0 if kept == self.width else int(self.width * self.matrices)

    @property
    def moments(self) -> int:
        """Bytes of the optimiser's moments: Adam's two of every weight, Muon's one."""
        return 2 * self.trained - (FLOAT * self.matrices if self.muon else 0)

    @cached_property
    def largest_stack(self) -> int:
        """Bytes of the largest matrix, of all layers together: what Muon makes orthogonal at a time."""
        shapes = parameter_shapes(self.model)
        return FLOAT * max(sum(math.prod(shapes[name]) for name in names) for names in matrix_stacks(self.model))

    @property
    def frozen(self) -> int:
        """Bytes of the weights of a model that nothing trains, its adapter not among them."""
        return FLOAT * count_parameters(plain(self.model)) - (2 * self.matrices if self.narrow_weights else 0)

    @property
    def head(self) -> int:
        """Bytes of the output head, float32: vocabulary · width; as many as the token embedding's."""
        return FLOAT * self.model.vocabulary_size * self.model.dim

    @property
    def head_gradient(self) -> int:
        """Bytes of its gradient; with an adapter, nobody makes it."""
        return 0 if self.adapter else self.head

    @property
    def bigram_gradient(self) -> int:
        """Bytes of the bigrams' table, and of its gradient; with an adapter, nobody makes it."""
        return 0 if self.adapter else FLOAT * self.model.bigram_rows * self.model.dim

    @property
    def stream(self) -> int:
        """Bytes of the residual stream, float32 [N, D]: one of the arrays that lie between two blocks."""
        return FLOAT * self.tokens * self.model.dim

    @property
    def logits(self) -> int:
        """Bytes of a chunk of logits, float32."""
        return FLOAT * self.logits_rows * self.model.vocabulary_size


def load_of(config: Config, model: ModelConfig, runtime: Runtime, stage: str) -> Load:
    """What a stage of `config` computes at a time; `model` has its real vocabulary size."""
    load = Load(
        model=adapted(model, getattr(config, stage)),
        backend=runtime.backend,
        rows=rows_of(config, stage),
        length=config.data.window,
        chunk=runtime.loss_chunk,
        narrow=runtime.dtype == "bfloat16",
        explicit=runtime.attention == "explicit",
        narrow_weights=runtime.weights == "bfloat16",
        muon=getattr(config, stage).optimizer == "muon",
    )
    if stage == "grpo":
        new = min(config.grpo.max_new_tokens, model.context)
        places = -(-load.rows * new // PLACES_MULTIPLE) * PLACES_MULTIPLE
        # a prompt is short beside a completion: a row is as long as the longest completion, in steps of 16
        length = min(-(-new // 16) * 16, model.context)
        accumulates = load.rows < config.grpo.minibatch_size
        return replace(
            load,
            length=length,
            policy=True,
            scored=min(places, load.rows * length),
            accumulates=accumulates,
            explores=config.grpo.entropy_weight > 0,
        )
    accumulates = load.rows < getattr(config, stage).batch_size
    return replace(load, accumulates=accumulates, checkpointing=runtime.gradient_checkpointing)


def rows_of(config: Config, stage: str) -> int:
    """Windows or completions that a stage computes at a time."""
    if stage == "grpo":
        return int(config.grpo.micro_batch_size or config.grpo.minibatch_size)
    train = getattr(config, stage)
    return int(train.micro_batch_size or train.batch_size)
