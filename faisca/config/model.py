"""The options of the model: each field states its range beside its meaning."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from faisca.config.ranges import Count, CountOrOff, NotNegative, Positive, Range, Share


@dataclass(frozen=True)
class ModelConfig:
    """A decoder with pre-norm blocks: as GPT-2 by default, as Llama or Qwen with other choices (preset modern)."""

    context: Count = 64
    """longest sequence, in tokens"""
    dim: Count = 128
    """width of the residual stream"""
    num_layers: Count = 4
    """transformer blocks"""
    num_heads: Count = 2
    """attention heads"""
    num_kv_heads: CountOrOff = 0
    """heads of keys and values, each shared by as many query heads (grouped-query attention); 0: one a query head"""
    head_dim: CountOrOff = 0
    """width of a head; 0: dim / num_heads"""
    hidden_dim: Count = 512
    """width of the feed-forward layer"""
    num_experts: CountOrOff = 0
    """feed-forward layers in each block, of which a router picks some for each token (Shazeer et al. 2017); 0: one"""
    experts_per_token: Count = 2
    """experts that a token goes through; of router logits that are equal, the first expert's counts as the larger"""
    expert_dim: CountOrOff = 0
    """width of an expert; 0: hidden_dim"""
    shared_expert_dim: CountOrOff = 0
    """width of one more expert, which every token goes through, as DeepSeekMoE has; 0: none"""
    normalise_experts: bool = True
    """the weights of a token's experts add up to 1, as Mixtral's and Qwen3's; or are shares of all, as OLMoE's"""
    balance_weight: NotNegative = 0.01
    """of the balance loss: experts × Σ share of choices × mean probability (Fedus et al. 2022); not in GRPO"""
    router_z_weight: NotNegative = 0.001
    """of the mean square of the router logits' log-sum-exp (Zoph et al. 2022); not in GRPO"""
    dropout: Share = 0.0
    """share of activations dropped in training: embeddings, attention output, feed-forward"""
    attention_dropout: Share = 0.0
    """share of attention weights dropped in training; above 0 it disables fused attention"""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm: without the mean and without a bias, as Llama has"""
    norm_epsilon: Positive = 1e-5
    """added to the variance, or to the mean square, under the root"""
    positions: Literal["learned", "rope"] = "learned"
    """a learned table, added to the tokens; or rotary: queries and keys are turned by their position"""
    rope_base: Positive = 10_000.0
    """rotary: wavelengths reach from 2π to nearly 2π times this, in tokens"""
    rope_factor: Annotated[float, Range(least=1)] = 1.0
    """rotary, Llama 3's scaling: long wavelengths are stretched by this; 1 stretches none"""
    rope_low_frequency: Positive = 1.0
    """wavelengths above rope_original_context / this are stretched wholly"""
    rope_high_frequency: Positive = 4.0
    """wavelengths below rope_original_context / this are not stretched"""
    rope_original_context: Count = 8192
    """the context before the stretching"""
    qk_norm: bool = False
    """RMSNorm of each query and key, before they are turned, as Qwen3 has"""
    qk_norm_over: Literal["head", "all"] = "head"
    """what that norm is over: a head, as Qwen3's, or all heads of a position together, as OLMoE's"""
    activation: Literal["gelu", "gelu_tanh", "swiglu", "relu2"] = "gelu"
    """exact (erf) GELU; GPT-2's tanh approximation; SiLU of a gate, as Llama has; or the square of ReLU"""
    bigram_rows: CountOrOff = 0
    """rows of a table of bigrams, added to the tokens; pairs of neighbours share rows, picked by a hash; 0: no table"""
    tie_embeddings: bool = False
    """use the token embedding as the output head"""
    logit_soft_cap: NotNegative = 0.0
    """logits are squeezed into ± this, by tanh, as Gemma 2's; 0: not"""
    attention_bias: bool = False
    """biases of queries, keys and values, as GPT-2 and Qwen2.5 have"""
    attention_output_bias: Literal["auto", "on", "off"] = "auto"
    """bias of the attention's output; auto: where attention_bias is, as GPT-2 has, and Qwen2.5 has not"""
    feed_forward_bias: bool = True
    """biases of the feed-forward layers, as GPT-2 has, and Llama has not"""
    initial_range: NotNegative = 0.0
    """initial values of matrices and tables are N(0, this²), as Llama's 0.02; 0: as the original's"""
    zero_outputs: bool = False
    """what ends a branch, the attention's output and the feed-forward layers' down, begins at 0: so each block adds
    nothing at first (Zhang et al. 2019, Fixup)"""
    vocabulary_size: CountOrOff = 0
    """0 takes the tokenizer's; a checkpoint records the real number"""

    @property
    def head_width(self) -> int:
        """Width of a head of queries, keys or values."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def qk_norm_widths(self) -> tuple[int, int]:
        """Widths of the norms of queries and of keys."""
        heads, groups = (self.num_heads, self.kv_heads) if self.qk_norm_over == "all" else (1, 1)
        return heads * self.head_width, groups * self.head_width

    @property
    def expert_width(self) -> int:
        """Width of an expert."""
        return self.expert_dim or self.hidden_dim

    @property
    def output_bias(self) -> bool:
        """Whether the attention's output has a bias."""
        return self.attention_bias if self.attention_output_bias == "auto" else self.attention_output_bias == "on"


@dataclass(frozen=True)
class Adapter:
    """LoRA (Hu et al. 2022): beside a matrix W that stays as it is, alpha / rank · B A, which alone is trained."""

    rank: int
    """rows of A, columns of B"""
    alpha: float
    dropout: float
    """share of the numbers that A reads, dropped in training"""
    targets: tuple[str, ...]
    """of `faisca.config.rules.TARGETS`, in that order"""
    dora: bool = False
    """whether rows have lengths of their own, m, which are trained, too (DoRA: Liu et al. 2024)"""

    @property
    def scale(self) -> float:
        """How many times B A counts."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class AdaptedModel(ModelConfig):
    """A model that a stage trains by an adapter: no option, but made of the model's and the stage's."""

    adapter: Adapter = field(kw_only=True)


def adapter_of(model: ModelConfig) -> Adapter | None:
    """The adapter of a model that has one."""
    return model.adapter if isinstance(model, AdaptedModel) else None


def plain(model: ModelConfig) -> ModelConfig:
    """The model without its adapter."""
    return ModelConfig(**{option.name: getattr(model, option.name) for option in fields(ModelConfig)})
