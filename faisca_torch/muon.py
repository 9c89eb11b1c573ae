"""Muon (Jordan et al. 2024): the step of a block's matrix is its momentum's nearest orthogonal matrix, nearly.

Shapes: L layers, [..., R, C] matrices of R rows and C columns, with an axis of experts before where there are some.
"""

import torch
from torch import Tensor

from faisca.config import OptimizerConfig
from faisca.muon import POLYNOMIAL, ROUNDS, TINY, is_muons, matrix_stacks, row_cuts, step_length
from faisca_torch.model import GPT
from faisca_torch.sums import row_sums


def split(weights: dict[str, Tensor], optimizer: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights that Muon moves, by name, if it is the optimiser; and all others."""
    rest = dict(weights)
    return {n: rest.pop(n) for n, w in weights.items() if is_muons(n, tuple(w.shape), optimizer)}, rest


@torch.no_grad()
def move_matrices(
    *, model: GPT, optimizer: torch.optim.AdamW, config: OptimizerConfig, learning_rate: float, finite: Tensor
) -> None:
    """Step along orthogonal matrices, with decoupled decay; where not `finite`, weights and moments stay.

    `learning_rate` is AdamW's of this step; the moments stand among AdamW's.
    """
    weights = dict(model.named_parameters())
    rate = finite * learning_rate * config.muon_rate_ratio
    for names in matrix_stacks(model.config):
        # A matrix of all layers at once: few large products in place of many small ones.
        stack_LRC = torch.stack([_direction(weights[name], optimizer, config, finite) for name in names])
        parts = stack_LRC.tensor_split(row_cuts(names[0], model.config), dim=-2)
        steps_LRC = torch.cat([step_length(part.shape) * orthogonal(part) for part in parts], dim=-2)
        for name, step_RC in zip(names, steps_LRC, strict=True):
            weights[name].sub_(rate * (step_RC + config.weight_decay * weights[name]))


def orthogonal(matrices: Tensor) -> Tensor:
    """U Vᵀ of matrices U Σ Vᵀ [..., R, C], nearly: by Newton–Schulz, which needs products alone."""
    a, b, c = POLYNOMIAL
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the smaller of X Xᵀ and Xᵀ X
    norms = row_sums(row_sums(x.square())).sqrt()[..., None, None]
    x = x / (norms + TINY)  # no singular value above 1
    for _ in range(ROUNDS):
        square = x @ x.mT
        cubic = b * square + c * square @ square
        x = (cubic @ x).add_(x, alpha=a)
    return x.mT if tall else x


def _direction(weight: Tensor, optimizer: torch.optim.AdamW, config: OptimizerConfig, finite: Tensor) -> Tensor:
    """Nesterov's momentum: the gradient and its running mean, once more mixed."""
    moment = optimizer.state[weight].setdefault("exp_avg", torch.zeros_like(weight))
    assert weight.grad is not None, "a step follows a backward pass"
    gradient = torch.where(finite, weight.grad, moment)  # a mean of equals does not change
    moment.lerp_(gradient, 1 - config.muon_momentum)
    return gradient.lerp(moment, config.muon_momentum)
