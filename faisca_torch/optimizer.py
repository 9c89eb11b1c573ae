"""AdamW around a model, and one update: clip, step unless something is not finite, clear the gradients."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from faisca.config import OptimizerConfig
from faisca.parameters import decays
from faisca_torch.device import compile_step
from faisca_torch.model import GPT
from faisca_torch.muon import move_matrices, split
from faisca_torch.processes import Averaging, _part, _settle, share_model
from faisca_torch.sums import total

Metrics = dict[str, Tensor]


@dataclass
class Learner:
    """A model with its optimiser."""

    model: GPT
    optimizer: torch.optim.AdamW
    config: OptimizerConfig
    averaging: Averaging
    """over the processes that train it"""
    made: dict[Any, Callable[..., Any]] = field(default_factory=dict)
    """what `compiled` made"""

    def compiled(self, function: Callable[..., Any], *fixed: Any) -> Callable[..., Any]:
        """A forward pass with its first arguments `fixed`, compiled the first time where the runtime says so."""
        key = (function, *fixed)
        if key not in self.made:
            forward = partial(function, *fixed) if fixed else function
            self.made[key] = compile_step(forward, [], self.model.runtime)
        return self.made[key]


def make_learner(*, model: GPT, config: OptimizerConfig) -> Learner:
    """AdamW (bias-corrected, decoupled decay) with its moments at zero, of what is trained and Muon does not move."""
    share_model(model)
    parameters = _settle(model).named_parameters()
    trained: dict[str, Tensor] = {name: weight for name, weight in parameters if weight.requires_grad}
    _, weights = split(trained, config.optimizer)
    # Weight decay is for some weights only (`config.decay`), so there are two groups.
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in weights.items():
        groups[decays(name, tuple(parameter.shape), config.decay)].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    return Learner(model, optimizer, config, Averaging(model))


def update(*, learner: Learner, numbers: Metrics, learning_rate: float) -> Metrics:
    """Clip the gradients, take the optimiser's step unless something is not finite, and clear the gradients.

    Returns the step's `numbers`, `loss` among them, `grad_norm` (before clipping) and `skipped`, still on the device;
    of all processes where there are several.
    """
    learner.averaging.arrays()
    numbers = learner.averaging.numbers(numbers)
    # Clip: all gradients together have a norm of at most `clip_norm`.
    parameters = list(learner.model.parameters())
    squares = _squares([_part(p.grad) for p in parameters if p.grad is not None])
    grad_norm = learner.averaging.squares(squares).sqrt()
    if learner.config.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, learner.config.clip_norm, grad_norm)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate
    # Step, unless loss or gradient is not finite: the fused kernel skips on the device, so nothing waits for it.
    finite = numbers["loss"].isfinite() & grad_norm.isfinite()
    skipped = (~finite).float()
    learner.optimizer.found_inf = skipped  # type: ignore[attr-defined]
    learner.optimizer.step()
    if learner.config.optimizer == "muon":
        move_matrices(
            model=learner.model,
            optimizer=learner.optimizer,
            config=learner.config,
            learning_rate=learning_rate,
            finite=finite,
        )
    # Gradients add up where they are not cleared.
    learner.model.zero_grad()
    return numbers | {"grad_norm": grad_norm, "skipped": skipped}


def _squares(gradients: list[Tensor]) -> Tensor:
    """The sum of all gradients' squares, of their rows first.

    On the CPU, torch's norm of a whole table adds one after the other in few lanes: 5e-4 off for 13 million random
    numbers, 1e-2 for equal ones. Rows are short, and `sum` adds in a cascade.
    """
    rows = [torch.linalg.vector_norm(gradient, dim=-1).flatten() for gradient in gradients]
    return total(torch.cat(rows).square())
