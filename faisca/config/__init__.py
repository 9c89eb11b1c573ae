"""What can be set: the whole configuration, and the names that the rest of the core takes from here.

`model.py`, `optimizer.py` and `sections.py` have every option, `ranges.py` and `rules.py` refuse the impossible,
`files.py` reads TOML.
"""

from dataclasses import dataclass, field, fields, is_dataclass

from faisca.config.model import AdaptedModel, Adapter, ModelConfig, adapter_of, plain
from faisca.config.optimizer import LoRAConfig, OptimizerConfig
from faisca.config.ranges import check_section
from faisca.config.rules import (
    check_adapter,
    check_data,
    check_grpo,
    check_model,
    check_recomputed,
    check_stages,
    check_training,
)
from faisca.config.sections import (
    COLDEST,
    STAGES,
    DataConfig,
    GRPOConfig,
    RunConfig,
    SampleConfig,
    SFTConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "COLDEST",
    "STAGES",
    "AdaptedModel",
    "Adapter",
    "Config",
    "DataConfig",
    "GRPOConfig",
    "LoRAConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "SFTConfig",
    "SampleConfig",
    "TokenizerConfig",
    "TrainConfig",
    "adapter_of",
    "plain",
]


@dataclass(frozen=True)
class Config:
    """Everything that determines a run; FaiscaError for the first impossible value, with the remedy."""

    preset: str = "spark"
    """the preset that the other values started from; a record, not an option"""
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(learning_rate=1e-3, url_contains=".pt/"))
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for section in fields(self):
            if is_dataclass(value := getattr(self, section.name)):
                check_section(section.name, value)
        check_model(self.model, self.tokenizer)
        check_data(self.data, self.model)
        check_training("pretrain", self.pretrain)
        check_training("sft", self.sft)
        check_grpo(self.grpo)
        check_adapter("sft", self.sft, self.model)
        check_adapter("grpo", self.grpo, self.model)
        check_recomputed(self.sft, self.run)
        check_stages(self.run.stages)
