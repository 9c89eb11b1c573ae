"""Weights and optimiser state as NumPy arrays under canonical names."""

from collections.abc import Mapping

import numpy as np
import torch

from faisca_torch.model import GPT
from faisca_torch.optimizer import Learner

MOMENTS = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}


def get_parameters(*, model: GPT) -> dict[str, np.ndarray]:
    """Weights by canonical name: float32 copies."""
    return {name: value.detach().float().cpu().numpy().copy() for name, value in model.state_dict().items()}


def get_optimizer_state(*, learner: Learner) -> dict[str, np.ndarray]:
    """`first_moment.NAME` and `second_moment.NAME` (float32 copies), and `step` (int64 scalar)."""
    state, step = {}, 0
    for name, parameter in learner.model.named_parameters():
        slot = learner.optimizer.state.get(parameter, {})
        for ours, torchs in MOMENTS.items():
            moment = slot.get(torchs, torch.zeros_like(parameter))
            state[f"{ours}.{name}"] = moment.detach().float().cpu().numpy().copy()
        step = int(slot.get("step", 0))
    return state | {"step": np.array(step, np.int64)}


def set_optimizer_state(*, learner: Learner, state: Mapping[str, np.ndarray]) -> None:
    """The inverse of `get_optimizer_state`."""
    device = learner.model.runtime.device
    for name, parameter in learner.model.named_parameters():
        slot = {torchs: torch.tensor(state[f"{ours}.{name}"], device=device) for ours, torchs in MOMENTS.items()}
        slot["step"] = torch.tensor(float(state["step"]), device=device)
        learner.optimizer.state[parameter] = slot
