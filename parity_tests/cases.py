"""What is compared: the twins on every device found here, and small models of every option."""

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from twins import MlxTwin, TorchTwin

from faisca.backend import Runtime, load_backend
from faisca.config import Config, GRPOConfig, ModelConfig, RunConfig, SFTConfig
from faisca.data.byte_level import END_OF_TEXT
from faisca.data.tokenizer import Tokenizer
from faisca.lora import adapted
from faisca.parity.cases import Case, Side, uneven_parameters
from faisca.training import stages
from faisca.training.setup import Setup


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def torch_devices() -> list[str]:
    if not installed("torch"):
        return []
    import torch

    return ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()


def mlx_devices() -> list[str]:
    if not installed("mlx"):
        return []
    from faisca.system.fast_blas import load_fast_blas

    load_fast_blas()
    import mlx.core as mx

    return ["cpu"] + ["gpu"] * (mx.metal.is_available() or mx.cuda.is_available())


@dataclass(frozen=True)
class LossSide(Side):
    """A side whose cross-entropy is the fused or the explicit one, whatever the device offers."""

    fused: bool

    def open(self, **changes: Any) -> Runtime:
        return dataclasses.replace(super().open(**changes), fused_loss=self.fused)


@dataclass(frozen=True)
class Twin:
    """A twin on a device: through the boundary as a `side`, and from the inside."""

    name: str
    device: str
    compile: str = "off"
    fused: bool | None = None
    """MLX's fused cross-entropy, which falls back on the CPU, or not; None takes what the device is for"""

    @property
    def side(self) -> Side:
        config = RunConfig(device=self.device, dtype="float32", compile=self.compile)
        if self.fused is None:
            return Side(load_backend(self.name), config)
        return LossSide(load_backend(self.name), config, self.fused)

    def run(self, config: Config, folder: Path) -> dict[str, Any]:
        """The summary of all stages of a configuration, in float32."""
        chosen = {"backend": self.name, "device": self.device, "dtype": "float32", "compile": self.compile}
        return stages.run(dataclasses.replace(config, run=dataclasses.replace(config.run, **chosen)), folder)

    @property
    def inside(self) -> Any:
        return self._opened(narrow=False)

    @property
    def narrow(self) -> Any:
        """From the inside, with hidden states in bfloat16."""
        return self._opened(narrow=True)

    def _opened(self, narrow: bool) -> Any:
        if self.name == "torch":
            return TorchTwin(self.device, narrow)
        return MlxTwin(self.device, narrow, self.device != "cpu" if self.fused is None else self.fused)

    def __str__(self) -> str:
        words = [self.name, self.device] + ["compiled"] * (self.compile == "on")
        return "-".join(words + ([] if self.fused is None else ["fused" if self.fused else "explicit"]))


TWINS = [Twin("torch", device) for device in torch_devices()] + [Twin("mlx", device) for device in mlx_devices()]
PAIRED = [twin for twin in TWINS[1:] if TWINS[0].name == "torch"]
COMPILED = [Twin("mlx", twin.device, "on") for twin in PAIRED if twin.name == "mlx"]
OTHER_LOSS = [Twin("mlx", twin.device, fused=twin.device == "cpu") for twin in TWINS if twin.name == "mlx"]
"""MLX with the cross-entropy that its device does not take by itself"""


def model_config(**options: Any) -> ModelConfig:
    """A small model; `options` are those of ModelConfig."""
    small = {"context": 32, "dim": 24, "num_layers": 2, "num_heads": 2, "hidden_dim": 40, "vocabulary_size": 101}
    return ModelConfig(**(small | options))


def make_case(seed: int = 0, *, rows: int = 4, length: int = 20, steps: int = 20, **options: Any) -> Case:
    """A case on a small model with uneven weights."""
    config = model_config(**options)
    return Case(config, uneven_parameters(config, seed), 0, rows=rows, length=length, steps=steps, seed=seed)


def make_adapted(seed: int = 0, *, rows: int = 4, length: int = 20, steps: int = 20, **options: Any) -> Case:
    """A case whose model has an adapter, uneven as all its weights; options that begin with lora_ are the adapter's."""
    lora = {"lora_rank": 3, "lora_alpha": 5.0} | {n: v for n, v in options.items() if n.startswith("lora_")}
    model = model_config(**{name: value for name, value in options.items() if name not in lora})
    config = adapted(model, SFTConfig(**lora))
    return Case(config, uneven_parameters(config, seed), 0, rows=rows, length=length, steps=steps, seed=seed)


def setup_of(side: Side, case: Case, grpo: GRPOConfig) -> Setup:
    """The case's model and end-of-text, with options of GRPO; of its tokens, only the ids matter."""
    ids = [i for i in range(case.model.vocabulary_size) if i != case.end_of_text]
    tokens, end = {i.to_bytes(2): i for i in ids}, {END_OF_TEXT: case.end_of_text}
    encoding = tiktoken.Encoding("bare", pat_str=".", mergeable_ranks=tokens, special_tokens=end)
    config = Config(grpo=grpo, run=dataclasses.replace(side.config, seed=case.seed))
    return Setup(config, side.backend, side.open(), Tokenizer("bpe", encoding), case.model)


GPT2 = {"activation": "gelu_tanh", "tie_embeddings": True, "attention_bias": True, "num_heads": 4}
OPTIONS = [
    {"activation": activation, "tie_embeddings": tie, "attention_bias": bias, "num_heads": heads}
    for activation in ("gelu", "gelu_tanh")
    for tie in (False, True)
    for bias in (False, True)
    for heads in (1, 2, 4)
] + [{"norm_epsilon": 0.1}, {"attention_dropout": 1e-9}, {"num_layers": 1, "dim": 9, "num_heads": 3}]
"""every choice of GPT-2's architecture, together; attention dropout so rare that it only chooses the other path"""
LLAMA = {"norm": "rms", "positions": "rope", "activation": "swiglu", "feed_forward_bias": False}
LLAMA |= {"num_heads": 4, "num_kv_heads": 2, "norm_epsilon": 1e-6}
STRETCHED = {"rope_factor": 8.0, "rope_original_context": 64, "rope_base": 500.0}
"""Llama 3's scaling, so that of a small head's pairs some are kept, some stretched, and some lie between"""
MODERN: list[dict[str, Any]] = [
    LLAMA,
    LLAMA | {"tie_embeddings": True, "head_dim": 12} | STRETCHED,
    LLAMA | {"attention_bias": True, "attention_output_bias": "off", "num_kv_heads": 1},
    LLAMA | {"qk_norm": True, "head_dim": 10},
    LLAMA | {"norm_epsilon": 0.3, "qk_norm": True, "attention_dropout": 1e-9},
    {"norm": "rms"},
    {"positions": "rope"},
    {"activation": "swiglu"},
    {"activation": "relu2"},
    {"num_heads": 6, "num_kv_heads": 3},
    {"qk_norm": True},
    LLAMA | {"qk_norm": True, "qk_norm_over": "all", "head_dim": 10},
    {"qk_norm": True, "qk_norm_over": "all", "attention_bias": True},
    {"logit_soft_cap": 2.0},
    LLAMA | {"logit_soft_cap": 5.0, "tie_embeddings": True},
    {"head_dim": 5, "attention_output_bias": "on"},
    {"bigram_rows": 7},
    LLAMA | {"bigram_rows": 1000, "tie_embeddings": True},
]
"""what Llama, Qwen and others have, together and one by one"""
OPTIONS += MODERN
MIXTURE = LLAMA | {"num_experts": 6, "experts_per_token": 2, "expert_dim": 14}
EXPERTS: list[dict[str, Any]] = [
    MIXTURE,
    MIXTURE | {"shared_expert_dim": 9, "normalise_experts": False, "experts_per_token": 3, "qk_norm": True},
    MIXTURE | {"experts_per_token": 1, "expert_dim": 0, "balance_weight": 0.3, "router_z_weight": 0.1},
    {"num_experts": 4, "experts_per_token": 4, "feed_forward_bias": False, "activation": "gelu"},
]
"""mixtures of experts, as Mixtral's, OLMoE's and others'"""
OPTIONS += EXPERTS


def option_id(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items())


def even_attention(**options: Any) -> Case:
    """A model whose first attention layer weighs all it sees equally, and has values of 1: its output is its mask's."""
    case = make_case(attention_bias=True, dim=8, num_heads=8, context=16, **options)
    for name, value in case.parameters.items():
        if "attention" in name:
            value[...] = 0
    case.parameters["transformer_blocks.0.attention.in_proj.bias"][16:] = 1
    case.parameters["transformer_blocks.0.attention.out_proj.weight"][...] = np.eye(8)
    return case
