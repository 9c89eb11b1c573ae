"""Whether a checkpoint makes sense: its state, its arrays, and what a run needs to go on.

Checksums say that a checkpoint is as it was written, not that it was written by us or that it
fits: a stranger's file, or one of another version, must end in one clear line and never in a
wrong computation.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from faisca.config import ModelConfig, adapter_of
from faisca.errors import FaiscaError
from faisca.muon import moments_of
from faisca.parameters import check_shapes, parameter_shapes, trained
from faisca.runs.state import State
from faisca.system.tensors import Tensors

Arrays = Mapping[str, np.ndarray]


def check_weights(folder: Path, weights: Arrays, config: ModelConfig) -> None:
    """FaiscaError unless names, shapes and dtype are those of the model configuration."""
    try:
        check_shapes(Tensors.of(weights).shapes, config)
    except FaiscaError as error:
        raise FaiscaError(f"checkpoint {folder}: {error}") from error
    _check_float32(folder, weights)


def check_resumable(folder: Path, state: State, optimizer: Arrays, reference: Arrays | None) -> None:
    """FaiscaError unless the checkpoint has all that a stage under way needs."""
    if not state.finished:
        _check_moments(folder, optimizer, state)
        if state.stage == "grpo" and not adapter_of(state.model):  # else the base is the reference
            check_weights(folder, reference or {}, state.model)


def _check_moments(folder: Path, optimizer: Arrays, state: State) -> None:
    kind = getattr(state.config, state.stage).optimizer
    shapes = {
        f"{moment}.{name}": shape
        for name, shape in parameter_shapes(state.model).items()
        if trained(name, state.model)
        for moment in moments_of(name, shape, kind)
    }
    unlike = sorted(set(optimizer) ^ {*shapes, "step"})
    if unlike:
        raise FaiscaError(f"checkpoint {folder}: its optimiser state does not fit its model ({unlike[0]})")
    moments = {name: optimizer[name] for name in shapes}
    for name, shape in shapes.items():
        if moments[name].shape != shape:
            raise FaiscaError(f"checkpoint {folder}: {name} has not its weight's shape {list(shape)}")
    _check_float32(folder, moments)


def _check_float32(folder: Path, arrays: Arrays) -> None:
    for name, dtype in Tensors.of(arrays).dtypes.items():
        if dtype != "float32":
            raise FaiscaError(f"checkpoint {folder}: {name} is {dtype}, but a checkpoint holds float32")
