"""Weights and optimiser state as NumPy arrays under canonical names."""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from faisca.muon import moments_of
from faisca_mlx import muon
from faisca_mlx.model import GPT
from faisca_mlx.optimizer import Learner

MOMENTS = {"first_moment": "m", "second_moment": "v"}


def get_parameters(*, model: GPT) -> dict[str, np.ndarray]:
    """Weights by canonical name: float32 copies."""
    return {name: np.array(value.astype(mx.float32)) for name, value in tree_flatten(model.parameters())}


def get_optimizer_state(*, learner: Learner) -> dict[str, np.ndarray]:
    """`first_moment.NAME` and, of what AdamW moves, `second_moment.NAME` (float32 copies); `step` (int64 scalar)."""
    slots = dict(tree_flatten(learner.optimizer.state))
    state = {name: np.array(slots[slot].astype(mx.float32)) for name, slot in _slots(learner).items()}
    return state | {"step": np.array(learner.optimizer.step.item(), np.int64)}


def set_optimizer_state(*, learner: Learner, state: Mapping[str, np.ndarray]) -> None:
    """The inverse of `get_optimizer_state`."""
    slots = {slot: mx.array(state[name]) for name, slot in _slots(learner).items()}
    slots["step"] = mx.array(int(state["step"]), learner.optimizer.step.dtype)
    # value by value: the tree also has the places of modules without weights, which the optimiser looks for
    new_state = tree_map_with_path(lambda path, old: slots.get(path, old), learner.optimizer.state)
    learner.optimizer.state.update(new_state)
    mx.eval(learner.optimizer.state)


def _slots(learner: Learner) -> dict[str, str]:
    """Where each moment stands in the optimiser's state: NAME.m and NAME.v of AdamW, matrices.NAME of Muon."""
    slots = {}
    for name, weight in tree_flatten(learner.model.parameters()):
        moments = moments_of(name, weight.shape, learner.config.optimizer)
        for moment in moments:
            adams = len(moments) == len(MOMENTS)
            slots[f"{moment}.{name}"] = f"{name}.{MOMENTS[moment]}" if adams else f"{muon.MOMENTS}.{name}"
    return slots
