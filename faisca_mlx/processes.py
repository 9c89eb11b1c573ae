"""Processes that train one model together, by mx.distributed: gradients are averaged in the step's own graph.

The backend is mlx.launch's choice: ring over Ethernet or Thunderbolt, jaccl over Thunderbolt 5, NCCL, MPI.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from faisca.errors import FaiscaError
from faisca_mlx.model import GPT


class Engine:
    """Bytes and sums of all processes; see `faisca.group.Engine`."""

    def gather(self, data: np.ndarray) -> np.ndarray:
        return np.array(mx.distributed.all_gather(mx.array(data)[None]))

    def first(self, data: np.ndarray) -> np.ndarray:
        mine = mx.array(data)
        return np.array(mx.distributed.all_sum(mine if mx.distributed.init().rank() == 0 else mx.zeros_like(mine)))

    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.array(mx.distributed.all_sum(mx.array(values)))

    def leave(self) -> None:
        """Nothing to do: MLX's group has no end of its own."""


def join(*, rank: int, size: int) -> Engine:
    """Meet the other processes; FaiscaError where that cannot be."""
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise FaiscaError(f"process {rank} cannot join the others ({reason}): start all of them anew") from error
    if (group.rank(), group.size()) != (rank, size):
        raise FaiscaError(f"MLX says process {group.rank()} of {group.size()}, its launcher {rank} of {size}")
    return Engine()


def share_model(model: GPT) -> None:
    """Refuse what MLX's engines cannot do: its `fully_shard` needs `sum_scatter`, which ring does not have (0.32)."""
    if model.runtime.processes.shard:
        raise FaiscaError("run.shard needs torch: MLX's ring cannot scatter sums; leave it out, or use --backend torch")


class Averaging:
    """Averages over processes: of gradients, and of a step's numbers."""

    def __init__(self, model: GPT) -> None:
        self.model, self.processes = model, model.runtime.processes

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A forward pass: nothing needs to be told of it."""
        return function(*arguments)

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward: gradients add up as values, and are averaged when all have."""
        return nullcontext()

    def arrays(self, gradients: Any) -> Any:
        """The mean of the gradients, which is the same number in every process."""
        if self.processes.size == 1:
            return gradients
        if self.processes.mixed:
            arrays = {name: np.array(gradient) for name, gradient in tree_flatten(gradients)}
            return tree_unflatten([(name, mx.array(mean)) for name, mean in self.processes.average(arrays).items()])
        narrow = getattr(mx, self.processes.reduce_dtype)
        means = nn.average_gradients(tree_map(lambda gradient: gradient.astype(narrow), gradients))
        return tree_map(lambda mean: mean.astype(mx.float32), means)

    def squares(self, squares: mx.array) -> mx.array:
        """The sum over all weights of what each process has of its own: all have all."""
        return squares

    def numbers(self, numbers: dict[str, mx.array]) -> dict[str, mx.array]:
        """A step's numbers, of all processes: the mean, or of a ratio's `_max` the largest."""
        if self.processes.size == 1:
            return numbers
        names = sorted(numbers)
        mine = mx.stack([numbers[name].astype(mx.float32) for name in names])
        if self.processes.mixed:
            all_NK = mx.array(np.stack(self.processes.gather(np.array(mine))))
        else:
            all_NK = mx.distributed.all_gather(mine[None])
        means, largest = all_NK.mean(axis=0), all_NK.max(axis=0)
        return {n: largest[k] if n.endswith("ratio_max") else means[k] for k, n in enumerate(names)}
