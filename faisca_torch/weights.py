"""Weights and optimiser state as NumPy arrays under canonical names."""

from collections.abc import Mapping

import numpy as np
import torch

from faisca.muon import moments_of
from faisca_torch.model import GPT
from faisca_torch.optimizer import Learner

MOMENTS = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}


def get_parameters(*, model: GPT) -> dict[str, np.ndarray]:
    """Weights by canonical name: float32 copies."""
    return {name: value.detach().float().cpu().numpy().copy() for name, value in model.state_dict().items()}


def get_optimizer_state(*, learner: Learner) -> dict[str, np.ndarray]:
    """`first_moment.NAME` and, of what AdamW moves, `second_moment.NAME` (float32 copies); `step` (int64 scalar)."""
    state, step = {}, 0
    for name, parameter in learner.model.named_parameters():
        slot = learner.optimizer.state.get(parameter, {})
        for ours in moments_of(name, tuple(parameter.shape), learner.config.optimizer):
            moment = slot.get(MOMENTS[ours], torch.zeros_like(parameter))
            state[f"{ours}.{name}"] = moment.detach().float().cpu().numpy().copy()
        step = int(slot.get("step", step))
    return state | {"step": np.array(step, np.int64)}


def set_optimizer_state(*, learner: Learner, state: Mapping[str, np.ndarray]) -> None:
    """The inverse of `get_optimizer_state`."""
    device = learner.model.runtime.device
    for name, parameter in learner.model.named_parameters():
        moments = moments_of(name, tuple(parameter.shape), learner.config.optimizer)
        slot = {MOMENTS[ours]: torch.tensor(state[f"{ours}.{name}"], device=device) for ours in moments}
        if len(moments) == len(MOMENTS):  # AdamW's
            slot["step"] = torch.tensor(float(state["step"]), device=device)
        learner.optimizer.state[parameter] = slot
