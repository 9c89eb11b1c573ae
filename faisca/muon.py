"""What both twins' Muon share: which weights it moves, in which pieces, and how far (Jordan et al. 2024).

The step of a matrix has the direction of U Vᵀ, where U Σ Vᵀ is Nesterov's momentum of its gradient: equally long along
every singular vector (kellerjordan.github.io/posts/muon). Its numbers have a root mean square of about 0.2, as AdamW's
steps, so that learning rate and decoupled decay can be AdamW's (Liu et al. 2025, arXiv 2502.16982). torch.optim.Muon
computes in bfloat16, mlx.optimizers.Muon in the gradient's dtype with coupled decay; the twins' own are alike.
"""

import math

from faisca.config import ModelConfig
from faisca.parameters import in_block, parameter_shapes
from faisca.system.tensors import Shape

POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Jordan's a σ + b σ³ + c σ⁵: steep at 0, and five rounds end between 0.68 and 1.21 rather than at 1"""
ROUNDS = 5
"""of the polynomial: singular values of 0.003 to 1 come into that band; smaller ones grow, at most 485-fold"""
TINY = 1e-7
"""added to a matrix's norm, so that a gradient of zeros makes no step"""


def is_muons(name: str, shape: Shape, optimizer: str) -> bool:
    """Whether an optimiser moves a parameter as Muon does: a block's matrix, or stack of its experts' matrices."""
    return optimizer == "muon" and in_block(name, shape)


def moments_of(name: str, shape: Shape, optimizer: str) -> tuple[str, ...]:
    """The moments that an optimiser keeps of a parameter: AdamW two, Muon one."""
    return ("first_moment",) if is_muons(name, shape, optimizer) else ("first_moment", "second_moment")


def matrix_stacks(config: ModelConfig) -> list[list[str]]:
    """Names of the blocks' matrices; those that all blocks have alike, together."""
    stacks: dict[str, list[str]] = {}
    for name, shape in parameter_shapes(config).items():
        if in_block(name, shape):
            stacks.setdefault(name.split(".", 2)[2], []).append(name)
    return list(stacks.values())


def row_cuts(name: str, config: ModelConfig) -> list[int]:
    """Where a matrix's rows are cut: the one of queries, keys and values is three, each with an orthogonal step."""
    heads = [config.num_heads, config.num_heads + config.kv_heads] if name.endswith("attention.in_proj.weight") else []
    return [count * config.head_width for count in heads]


def step_length(shape: Shape) -> float:
    """What an orthogonal matrix [..., rows, columns] is multiplied by; its root mean square is 1 / √max before."""
    return 0.2 * math.sqrt(max(shape[-2:]))
