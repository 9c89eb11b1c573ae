"""Weights and optimiser state as NumPy arrays under canonical names."""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from faisca_mlx.model import GPT
from faisca_mlx.optimizer import Learner

MOMENTS = {"first_moment": "m", "second_moment": "v"}


def get_parameters(*, model: GPT) -> dict[str, np.ndarray]:
    """Weights by canonical name: float32 copies."""
    return {name: np.array(value.astype(mx.float32)) for name, value in tree_flatten(model.parameters())}


def get_optimizer_state(*, learner: Learner) -> dict[str, np.ndarray]:
    """`first_moment.NAME` and `second_moment.NAME` (float32 copies), and `step` (int64 scalar)."""
    slots = dict(tree_flatten(learner.optimizer.state))  # NAME.m, NAME.v, step, learning_rate
    state = {
        f"{ours}.{name}": np.array(slots[f"{name}.{mlxs}"].astype(mx.float32))
        for ours, mlxs in MOMENTS.items()
        for name, _ in tree_flatten(learner.model.parameters())
    }
    return state | {"step": np.array(learner.optimizer.step.item(), np.int64)}


def set_optimizer_state(*, learner: Learner, state: Mapping[str, np.ndarray]) -> None:
    """The inverse of `get_optimizer_state`."""
    slots = {
        f"{name}.{mlxs}": mx.array(state[f"{ours}.{name}"])
        for ours, mlxs in MOMENTS.items()
        for name, _ in tree_flatten(learner.model.parameters())
    }
    slots["step"] = mx.array(int(state["step"]), learner.optimizer.step.dtype)
    # value by value: the tree also has the places of modules without weights, which the optimiser looks for
    new_state = tree_map_with_path(lambda path, old: slots.get(path, old), learner.optimizer.state)
    learner.optimizer.state.update(new_state)
    mx.eval(learner.optimizer.state)
