"""The options of the optimiser, which every stage has, and of adapters: each states its range beside its meaning."""

from dataclasses import dataclass
from typing import Annotated, Literal

from faisca.config.ranges import CountOrOff, NotNegative, Positive, Range, Share, ShareOrAll


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, bias-corrected); with weight_decay 0 it is Adam. Or Muon with it."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """what moves the blocks' matrices; muon: along the nearest orthogonal matrix (Jordan et al. 2024), in steps as long
    as AdamW's, with half of its memory; all other weights have AdamW"""
    muon_learning_rate: NotNegative = 0.0
    """Muon's peak learning rate, on the same schedule; 0: learning_rate"""
    muon_momentum: Share = 0.95
    """decay rate of Muon's one moment (Nesterov's)"""
    learning_rate: Positive = 3e-3
    """peak learning rate"""
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    """learning rate after the warm-up; wsd: constant, and linear down over the last decay_share of the steps"""
    warmup_steps: CountOrOff = 20
    """steps in which the learning rate rises linearly to its peak"""
    min_learning_rate_share: ShareOrAll = 0.1
    """where cosine and wsd end, as a share of the peak"""
    decay_share: Annotated[float, Range(above=0, most=1)] = 0.2
    """of all steps, those in which wsd decays"""
    weight_decay: NotNegative = 0.1
    """decoupled weight decay"""
    decay: Literal["matrices", "all"] = "matrices"
    """what decays: matrices and tables only, or every parameter, as the original does"""
    beta1: Share = 0.9
    """decay rate of the first moment"""
    beta2: Share = 0.999
    """decay rate of the second moment"""
    epsilon: Positive = 1e-8
    """added to the root of the second moment"""
    clip_norm: NotNegative = 1.0
    """largest gradient norm; 0 does not clip"""

    @property
    def muon_rate_ratio(self) -> float:
        """Muon's learning rate over AdamW's, at every step."""
        return (self.muon_learning_rate or self.learning_rate) / self.learning_rate


@dataclass(frozen=True)
class LoRAConfig:
    """An adapter that is trained in the place of all weights (LoRA: Hu et al. 2022, arXiv 2106.09685)."""

    lora_rank: CountOrOff = 0
    """train alpha / rank · B A beside matrices that stay as they are, A with this many rows; 0: train all weights"""
    lora_alpha: Positive = 16.0
    """an adapter counts alpha / rank times"""
    lora_targets: tuple[str, ...] = ("all",)
    """matrices that have one: all of the blocks', or some of query, key, value, output, gate, up, down and experts"""
    lora_dropout: Share = 0.0
    """share of the numbers that an adapter reads, dropped in training alone; 0: none, and GRPO's first ratios are 1"""
    lora_dora: bool = False
    """also train the length of each row: m · (W + alpha / rank · B A) / its norm (DoRA: arXiv 2402.09353)"""
