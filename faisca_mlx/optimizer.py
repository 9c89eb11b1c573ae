"""AdamW around a model, and one update: clip, step unless something is not finite."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from faisca.config import OptimizerConfig
from faisca.parameters import decays
from faisca_mlx.device import compile_step
from faisca_mlx.model import GPT
from faisca_mlx.muon import MOMENTS, move_matrices, split
from faisca_mlx.processes import Averaging, share_model
from faisca_mlx.sums import total

Metrics = dict[str, mx.array]


@dataclass
class Learner:
    """A model with its optimiser."""

    model: GPT
    optimizer: optim.Adam
    config: OptimizerConfig
    averaging: Averaging
    """over the processes that train it"""
    made: dict[Any, Callable[..., Any]] = field(default_factory=dict)
    """what `compiled` made"""
    cleared: int = 0
    """how often `tidy_memory` emptied the buffer cache"""

    def compiled(self, function: Callable[..., Any], *fixed: Any) -> Callable[..., Any]:
        """A step with its first arguments `fixed`, as one graph made the first time, if the runtime compiles.

        All the state that it reads or writes is declared: what is not would be a constant of the graph.
        """
        key = (function, *fixed)
        if key not in self.made:
            step = partial(function, self, *fixed)
            state = [self.model.state, self.optimizer.state, mx.random.state]
            self.made[key] = compile_step(step, state, self.model.runtime)
        return self.made[key]


def make_learner(*, model: GPT, config: OptimizerConfig) -> Learner:
    """AdamW (bias-corrected, decoupled decay) with its moments at zero, of what is trained and Muon does not move."""
    share_model(model)
    matrices, weights = split(model.trainable_parameters(), config.optimizer)
    optimizer = _Adam(config.learning_rate, betas=[config.beta1, config.beta2], eps=config.epsilon)
    optimizer.init(weights)
    optimizer.state["finite"] = mx.array(True)
    optimizer.state[MOMENTS] = {name: mx.zeros_like(weight) for name, weight in matrices.items()}
    return Learner(model, optimizer, config, Averaging(model))


def update(*, learner: Learner, numbers: Metrics, learning_rate: mx.array, gradients: Any) -> Metrics:
    """Clip the gradients, and take the optimiser's step unless something is not finite.

    Returns the step's `numbers`, `loss` among them, `grad_norm` (before clipping) and `skipped`, still lazy; of all
    processes where there are several.
    """
    model, optimizer, config = learner.model, learner.optimizer, learner.config
    gradients, numbers = learner.averaging.arrays(gradients), learner.averaging.numbers(numbers)
    # Clip: all gradients together have a norm of at most `clip_norm`.
    clipped, grad_norm = _clip(gradients, config.clip_norm)
    # Step, unless loss or gradient is not finite: then with gradient 0 and rate 0, without decay of weights or moments,
    # which changes nothing. The choice is made on the device, so nothing waits for the host.
    finite = mx.isfinite(numbers["loss"]) & mx.isfinite(grad_norm)
    usable = tree_map(lambda gradient: mx.where(finite, gradient, 0.0), clipped)
    rate, steps = mx.where(finite, learning_rate, 0.0), optimizer.step + finite
    optimizer.state.update(learning_rate=rate, finite=finite)
    if config.optimizer == "muon":
        matrices, usable = split(usable, config.optimizer)
        move_matrices(
            model=model, optimizer=optimizer, config=config, learning_rate=rate, finite=finite, gradients=matrices
        )
    model.update(optimizer.apply_gradients(usable, _decayed(model.trainable_parameters(), config, rate)))
    optimizer.state["step"] = steps
    return numbers | {"grad_norm": grad_norm, "skipped": 1 - finite.astype(mx.float32)}


def _clip(gradients: Any, largest: float) -> tuple[Any, mx.array]:
    """Gradients scaled to a norm of at most `largest` (0: as they are), and the norm that they had.

    MLX's `clip_grad_norm` adds up a table number by number in float32, which on the CPU makes the
    norm 0.4 % too small for a vocabulary of 50,257.
    """
    squares = [total(gradient.square()) for _, gradient in tree_flatten(gradients)]
    norm = mx.sqrt(total(mx.stack(squares)))
    if not largest:
        return gradients, norm
    return tree_map(lambda gradient: gradient * mx.minimum(largest / (norm + 1e-6), 1.0), gradients), norm


class _Adam(optim.Adam):
    """Adam with bias correction (Kingma & Ba 2015), which MLX's own leaves out unless it is asked.

    MLX's own also computes 1 - beta ** step in float32, 1e-5 off in the first steps, and training
    amplifies that a thousandfold.
    """

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        (beta1, beta2), step = self.betas, self.step
        finite = self.state["finite"]
        state["m"] = mx.where(finite, beta1, 1.0) * state["m"] + (1 - beta1) * gradient
        state["v"] = mx.where(finite, beta2, 1.0) * state["v"] + (1 - beta2) * mx.square(gradient)
        # Numbers first, arrays last: each operation on arrays reads and writes all of the model.
        correction = mx.sqrt(_correction(beta2, step))
        rate = self.learning_rate * correction / _correction(beta1, step)
        return parameter - rate * state["m"] / (mx.sqrt(state["v"]) + self.eps * correction)


def _correction(beta: float, step: mx.array) -> mx.array:
    """1 - beta ** step, to the last digits of a float32."""
    return -mx.expm1(step.astype(mx.float32) * (math.log(beta) if beta else -math.inf))


def _decayed(weights: Any, config: OptimizerConfig, learning_rate: mx.array) -> Any:
    """Weights after decoupled decay, which MLX's AdamW would apply to all of them."""

    def decay(name: str, weight: mx.array) -> mx.array:
        applies = config.weight_decay and decays(name, weight.shape, config.decay)
        return weight * (1 - learning_rate * config.weight_decay) if applies else weight

    return tree_map_with_path(decay, weights)
