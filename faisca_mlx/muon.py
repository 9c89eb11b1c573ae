"""Muon (Jordan et al. 2024): the step of a block's matrix is its momentum's nearest orthogonal matrix, nearly.

Shapes: L layers, [..., R, C] matrices of R rows and C columns, with an axis of experts before where there are some.
"""

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from faisca.config import OptimizerConfig
from faisca.muon import POLYNOMIAL, ROUNDS, TINY, is_muons, matrix_stacks, row_cuts, step_length
from faisca_mlx.model import GPT
from faisca_mlx.sums import row_sums

MOMENTS = "matrices"
"""where the moments stand in the optimiser's state, by name: it is what a compiled step reads and writes"""


def split(weights: Any, optimizer: str) -> tuple[dict[str, mx.array], Any]:
    """The weights that Muon moves, by name, if it is the optimiser; and the tree of all others."""
    if optimizer != "muon":
        return {}, weights
    rest = dict(tree_flatten(weights))
    matrices = {name: rest.pop(name) for name in list(rest) if is_muons(name, rest[name].shape, optimizer)}
    return matrices, tree_unflatten(list(rest.items()))


def move_matrices(
    *,
    model: GPT,
    optimizer: optim.Adam,
    config: OptimizerConfig,
    learning_rate: mx.array,
    finite: mx.array,
    gradients: dict[str, mx.array],
) -> None:
    """Step along orthogonal matrices, with decoupled decay; where not `finite`, weights and moments stay.

    `learning_rate` is AdamW's of this step, then 0; the moments stand among AdamW's.
    """
    weights, moments, moved = dict(tree_flatten(model.trainable_parameters())), optimizer.state[MOMENTS], {}
    rate = learning_rate * config.muon_rate_ratio
    for names in matrix_stacks(model.config):
        # A matrix of all layers at once: few large products in place of many small ones.
        stack_LRC = mx.stack([_direction(name, gradients[name], moments, config, finite) for name in names])
        parts = mx.split(stack_LRC, row_cuts(names[0], model.config), axis=-2)
        steps_LRC = mx.concatenate([step_length(part.shape) * orthogonal(part) for part in parts], axis=-2)
        for name, step_RC in zip(names, steps_LRC, strict=True):
            moved[name] = weights[name] - rate * (step_RC + config.weight_decay * weights[name])
    model.update(tree_unflatten(list(moved.items())))


def orthogonal(matrices: mx.array) -> mx.array:
    """U Vᵀ of matrices U Σ Vᵀ [..., R, C], nearly: by Newton–Schulz, which needs products alone."""
    a, b, c = POLYNOMIAL
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.swapaxes(-1, -2) if tall else matrices  # the smaller of X Xᵀ and Xᵀ X
    norms = mx.sqrt(row_sums(row_sums(x.square())))[..., None, None]
    x = x / (norms + TINY)  # no singular value above 1
    for _ in range(ROUNDS):
        square = x @ x.swapaxes(-1, -2)
        cubic = mx.addmm(square, square, square, alpha=c, beta=b)  # b X Xᵀ + c (X Xᵀ)²
        x = mx.addmm(x, cubic, x, beta=a)
    return x.swapaxes(-1, -2) if tall else x


def _direction(
    name: str, gradient: mx.array, moments: dict[str, mx.array], config: OptimizerConfig, finite: mx.array
) -> mx.array:
    """Nesterov's momentum: the gradient and its running mean, once more mixed."""
    new, moment = 1 - config.muon_momentum, moments[name]
    gradient = mx.where(finite, gradient, moment)  # a mean of equals does not change
    moments[name] = moment + new * (gradient - moment)
    return moments[name] + new * (gradient - moments[name])
