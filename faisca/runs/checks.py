"""Whether a checkpoint makes sense: its state, its arrays, and the run that wants to go on from it.

Checksums say that a checkpoint is as it was written, not that it was written by us or that it
fits: a stranger's file, or one of another version, must end in one clear line and never in a
wrong computation.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from faisca.config import STAGES, Config, ModelConfig
from faisca.config.files import config_from_dict
from faisca.errors import FaiscaError
from faisca.parameters import check_parameters, parameter_shapes

Arrays = Mapping[str, np.ndarray]

STATE = {"stage": str, "step": int, "config": dict, "model": dict}
"""what every checkpoint's state has"""
RESUMABLE = {
    **{"finished": bool, "progress": dict, "stages": list, "backend": str, "device": str, "dtype": str},
    **{"metrics_bytes": int, "seconds": float},
}
"""and what a run needs to go on from it"""
FIXED = ("model", "tokenizer")
"""sections of the configuration that a resumed run cannot change"""


def check_state(folder: Path, state: Mapping[str, Any]) -> ModelConfig:
    """The model configuration of a checkpoint; FaiscaError where its state cannot be used."""
    _check_types(folder, state, STATE)
    if state["stage"] not in STAGES or state["step"] < 0:
        raise FaiscaError(
            f"checkpoint {folder} is of {state['stage']!r} step {state['step']}, and there is no such step: "
            f"stages are {', '.join(STAGES)}"
        )
    try:
        return config_from_dict(state["config"] | {"model": state["model"]}).model
    except FaiscaError as error:
        raise FaiscaError(f"checkpoint {folder}: {error}") from error


def check_weights(folder: Path, weights: Arrays, config: ModelConfig) -> None:
    """FaiscaError unless names, shapes and dtype are those of the model configuration."""
    try:
        check_parameters(dict(weights), config)
    except FaiscaError as error:
        raise FaiscaError(f"checkpoint {folder}: {error}") from error
    _check_float32(folder, weights)


def check_resumable(
    folder: Path, state: Mapping[str, Any], optimizer: Arrays, reference: Arrays | None, config: Config
) -> None:
    """FaiscaError unless a run with this configuration can go on from the checkpoint."""
    _check_types(folder, state, RESUMABLE)
    model = check_state(folder, state)
    if not state["finished"]:
        _check_moments(folder, optimizer, model)
        if state["stage"] == "grpo":
            check_weights(folder, reference or {}, model)
    saved = config_from_dict(state["config"])
    for section in FIXED:
        if getattr(config, section) != getattr(saved, section):
            raise FaiscaError(
                f"--{section} options do not go with --resume: {folder} has its {section}; start a new run with --out"
            )
    if config.run.seed != saved.run.seed:
        raise FaiscaError(f"--seed {config.run.seed} does not go with --resume: the run has seed {saved.run.seed}")
    if not state["finished"] and state["stage"] not in config.run.stages:
        raise FaiscaError(f"--stages leaves out {state['stage']}, in which the run stopped: name it as well")


def _check_types(folder: Path, state: Mapping[str, Any], wanted: Mapping[str, type]) -> None:
    for name, kind in wanted.items():
        if not isinstance(state.get(name), kind):
            raise FaiscaError(
                f"checkpoint {folder} has no usable {name} in its state.json: "
                "it was written by another program or version, take another checkpoint"
            )


def _check_moments(folder: Path, optimizer: Arrays, config: ModelConfig) -> None:
    names = {f"{moment}.{name}" for moment in ("first_moment", "second_moment") for name in parameter_shapes(config)}
    unlike = sorted(set(optimizer) ^ (names | {"step"}))
    if unlike:
        raise FaiscaError(f"checkpoint {folder}: its optimiser state does not fit its model ({unlike[0]})")
    moments = {name: optimizer[name] for name in names}
    for name, shape in parameter_shapes(config).items():
        for moment in ("first_moment", "second_moment"):
            if moments[f"{moment}.{name}"].shape != shape:
                raise FaiscaError(f"checkpoint {folder}: {moment}.{name} has not its weight's shape {list(shape)}")
    _check_float32(folder, moments)


def _check_float32(folder: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise FaiscaError(f"checkpoint {folder}: {name} is {array.dtype}, but a checkpoint holds float32")
