"""Processes that train one model together, by torch.distributed: DDP averages their gradients while it computes them.

Where each is to keep a part of the model alone, FSDP2 brings a block's weights together when it is computed. Bytes of
the host travel over gloo, gradients on a GPU over NCCL.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from faisca.errors import FaiscaError
from faisca_torch.model import GPT

FOREVER = timedelta(days=30)
"""an exchange waits as long as its partner lives: `faisca.processes.watch` sees whether it does"""


class Engine:
    """Bytes and sums of all processes; see `faisca.group.Engine`."""

    def gather(self, data: np.ndarray) -> np.ndarray:
        return _gather(torch.tensor(data)).numpy()

    def first(self, data: np.ndarray) -> np.ndarray:
        tensor = torch.tensor(data)
        dist.broadcast(tensor, src=0)
        return tensor.numpy()

    def sum(self, values: np.ndarray) -> np.ndarray:
        tensor = torch.tensor(values)
        dist.all_reduce(tensor)
        return tensor.numpy()

    def leave(self) -> None:
        """The end of all exchanges."""
        dist.destroy_process_group()


def join(*, rank: int, size: int) -> Engine:
    """Meet the other processes; FaiscaError where that cannot be."""
    kinds = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
        kinds += ",cuda:nccl"
    try:
        dist.init_process_group(kinds, rank=rank, world_size=size, timeout=FOREVER)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FaiscaError(f"process {rank} cannot join the others ({reason}): start all of them anew") from error
    return Engine()


def _gather(mine_K: Tensor) -> Tensor:
    """The numbers [K] of all processes: [size, K]."""
    flat = mine_K.new_empty(dist.get_world_size() * len(mine_K))
    dist.all_gather_single(flat, mine_K)
    return flat.view(-1, len(mine_K))


class _Through(nn.Module):
    """Any function of a model, as the forward pass that DDP wants."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def _in_bfloat16(size: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """The mean of a bucket of gradients, which travels in bfloat16: torch's own hook for that is NCCL's alone."""
    future = dist.all_reduce(bucket.buffer().bfloat16().div_(size), async_op=True).get_future()
    return future.then(lambda done: bucket.buffer().copy_(done.value()[0]))


def share_model(model: GPT) -> None:
    """Keep a part of each weight alone where processes share them; blocks are gathered one by one."""
    processes = model.runtime.processes
    if not processes.shard or hasattr(model, "reshard"):
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method  # half a second

    precision = MixedPrecisionPolicy(reduce_dtype=getattr(torch, processes.reduce_dtype))
    for block in model.transformer_blocks:
        fully_shard(block, mp_policy=precision)
    fully_shard(model, mp_policy=precision, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden_and_routed")


def _settle(model: GPT) -> GPT:
    """The model with its own parts as its parameters: a forward pass leaves the embeddings gathered, for the head."""
    if hasattr(model, "reshard"):  # FSDP's
        cast(Any, model).reshard()
    return model


def _whole(values: Any) -> Tensor:
    """All of a tensor of which processes keep parts."""
    return cast(Tensor, values.full_tensor() if hasattr(values, "full_tensor") else values)


def _part(values: Any) -> Tensor:
    """What this process keeps of a tensor, where processes keep parts: the same memory."""
    return cast(Tensor, values.to_local() if hasattr(values, "to_local") else values)


def _like(values: Tensor, weight: Any) -> Tensor:
    """A whole tensor, kept as a weight is."""
    if not hasattr(weight, "device_mesh"):
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, weight.device_mesh, weight.placements)


class Averaging:
    """Averages over processes: of gradients, and of a step's numbers."""

    def __init__(self, model: GPT) -> None:
        self.model, self.processes = model, model.runtime.processes
        self.replica: DistributedDataParallel | None = None
        processes = self.processes
        if processes.size > 1 and not processes.mixed and not processes.shard:
            self.replica = DistributedDataParallel(_Through(model), gradient_as_bucket_view=True)
            if processes.reduce_dtype == "bfloat16":
                self.replica.register_comm_hook(processes.size, _in_bfloat16)

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A forward pass; where DDP is, it is told, so that it averages in the backward pass."""
        return function(*arguments) if self.replica is None else self.replica(function, *arguments)

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward: gradients add up here, and are averaged with the last micro-batch."""
        return nullcontext() if last or self.replica is None else self.replica.no_sync()

    def arrays(self) -> None:
        """Average the gradients as arrays of the host, for processes whose frameworks differ."""
        if not self.processes.mixed:
            return
        grads = {name: weight.grad for name, weight in self.model.named_parameters() if weight.grad is not None}
        means = self.processes.average({name: grad.cpu().numpy() for name, grad in grads.items()})
        for name, grad in grads.items():
            grad.copy_(torch.from_numpy(means[name]))

    def squares(self, squares: Tensor) -> Tensor:
        """The sum over all weights of what each process has of its own; where all have all, as it is."""
        return _gather(squares.view(1)).sum() if self.processes.shard else squares

    def numbers(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """A step's numbers, of all processes: the mean, or of a ratio's `_max` the largest."""
        if self.processes.size == 1:
            return numbers
        names = sorted(numbers)
        mine = torch.stack([numbers[name].float() for name in names])
        if self.processes.mixed:
            all_NK = torch.from_numpy(np.stack(self.processes.gather(mine.cpu().numpy()))).to(mine.device)
        else:
            all_NK = _gather(mine)
        means, largest = all_NK.mean(0), all_NK.amax(0)
        return {n: largest[k] if n.endswith("ratio_max") else means[k] for k, n in enumerate(names)}
