"""Adapters of a model (LoRA: Hu et al. 2022) where no array library is needed: made of a stage's options, and merged.

With an adapter of rank r a product W x becomes W x + alpha / r · B (A x), x being dropped in part in training. W is the
base's and stays as it is, so an adapter belongs to one base, which is known by a hash of its weights.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from faisca.config import AdaptedModel, Adapter, GRPOConfig, ModelConfig, SFTConfig, adapter_of, plain
from faisca.config.rules import possible_targets
from faisca.parameters import adapter_parts, in_adapter, parameter_shapes
from faisca.system.tensors import Tensors

Arrays = Mapping[str, np.ndarray]


def adapted(model: ModelConfig, stage: object) -> ModelConfig:
    """The model as a stage trains it: with the adapter of its options, or where they have none without."""
    if not isinstance(stage, SFTConfig | GRPOConfig) or not stage.lora_rank:
        return plain(model)
    targets = tuple(target for target in possible_targets(model) if {target, "all"} & set(stage.lora_targets))
    options = (stage.lora_rank, float(stage.lora_alpha), stage.lora_dropout, targets, stage.lora_dora)
    return with_adapter(model, Adapter(*options))


def with_adapter(model: ModelConfig, adapter: Adapter) -> AdaptedModel:
    """The model with another adapter, or with its first."""
    return AdaptedModel(**vars(plain(model)), adapter=adapter)


def split(parameters: Arrays) -> tuple[Tensors, Tensors]:
    """The base's weights and the adapter's, both read when asked for."""
    tensors = Tensors.of(parameters)
    return tuple(tensors.only([name for name in tensors if in_adapter(name) == own]) for own in (False, True))  # type: ignore[return-value]


def merged(parameters: Arrays, model: ModelConfig) -> Tensors:
    """The weights of one model that computes the same: W + alpha / r · B A, added up in float64, with DoRA in its
    lengths; without an adapter, as they are. Each is made when it is read.
    """
    base, parts, adapter = split(parameters)[0], adapter_parts(model), adapter_of(model)

    def read(name: str) -> np.ndarray:
        weight, module, start = base[name], name.removesuffix(".weight"), 0
        if adapter is None or module not in parts or not name.endswith(".weight"):
            return weight
        whole = weight.astype(np.float64)
        for part, rows in parts[module]:
            if part:
                a, b = (parameters[f"{module}.lora.{part}.{factor}"].astype(np.float64) for factor in "ab")
                own = whole[..., start : start + rows, :]
                own += adapter.scale * b @ a
                if adapter.dora:
                    m = parameters[f"{module}.lora.{part}.m"]
                    own *= (m / np.linalg.norm(own, axis=-1))[:, None]
            start += rows
        return whole.astype(np.float32)

    return Tensors(base.shapes, read, base.dtypes)


def base_sha256(parameters: Arrays, model: ModelConfig) -> str:
    """What an adapter knows its base by: SHA-256 of the names, shapes and float32 numbers of all its weights."""
    digest = hashlib.sha256()
    for name, shape in parameter_shapes(plain(model)).items():
        digest.update(f"{name} {list(shape)}\n".encode())
        digest.update(np.ascontiguousarray(parameters[name], "<f4").tobytes())
    return digest.hexdigest()
