"""Which device, dtype and compilation, chosen once, with the reason; arrays there and back; how fast it multiplies."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from faisca.backend import BFLOAT16, Runtime
from faisca.config import RunConfig
from faisca.errors import FaiscaError
from faisca.muon import moments_of
from faisca_torch.model import GPT
from faisca_torch.processes import _like, _settle, _whole

if TYPE_CHECKING:
    from faisca_torch.optimizer import Learner

MOMENTS = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}
"""of AdamW, and what the framework calls them"""
LOSS_CHUNK = 512
"""rows of logits in the loss: larger is no faster, and takes more memory"""


def open_runtime(*, config: RunConfig) -> Runtime:
    """Choose device, dtype and compilation; FaiscaError where what was asked for cannot be had."""
    device, device_reason = _choose_device(config.device)
    dtype, dtype_reason = _choose_dtype(config.dtype, device)
    compiled, compile_reason = _choose_compile(config.compile, device, config.shard)
    if compiled and device == "cpu":
        torch.use_deterministic_algorithms(True)  # else threads race to add to the embeddings' gradients
    if dtype == "bfloat16":  # else cuBLAS may add up the parts of one product in bfloat16
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return Runtime(
        backend="torch",
        device=device,
        dtype=dtype,
        compile=compiled,
        loss_chunk=config.loss_chunk or LOSS_CHUNK,
        weights=config.weights,
        attention=config.attention,
        gradient_checkpointing=config.gradient_checkpointing,
        reasons=(device_reason, dtype_reason, compile_reason),
        details=_details(device),
    )


def memory(*, runtime: Runtime, reset_peak: bool) -> dict[str, int]:
    """Bytes that CUDA holds: `peak`, `active`, `cache`; `limit` is all it has. Empty on CPU and MPS, without a peak."""
    if runtime.device != "cuda":
        return {}
    numbers = {
        "peak": torch.cuda.max_memory_allocated(),
        "active": torch.cuda.memory_allocated(),
        "cache": torch.cuda.memory_reserved() - torch.cuda.memory_allocated(),
        "limit": torch.cuda.get_device_properties().total_memory,
    }
    if reset_peak:
        torch.cuda.reset_peak_memory_stats()
    return numbers


@contextmanager
def training_memory(*, runtime: Runtime) -> Iterator[None]:
    """Nothing to do: torch has no such setting."""
    yield


def tidy_memory(*, learner: "Learner") -> list[str]:
    """Nothing to give back: torch reuses its free blocks, and bounds the graphs that its compiler keeps."""
    return []


def compile_step(step: Callable[..., Any], state: list[Any], runtime: Runtime) -> Callable[..., Any]:
    """The step as graphs where the runtime compiles; torch finds the `state` of a module by itself."""
    return torch.compile(step) if runtime.compile else step


def to_device(model: GPT, tokens: np.ndarray) -> Tensor:
    """Token ids as an int64 tensor on the model's device."""
    return torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).to(model.runtime.device, non_blocking=True)


def matmul_seconds(*, runtime: Runtime, products: Iterable[tuple[int, int, int, int]]) -> float:
    """Seconds that these matrix products take one after another: (batch, m, k, n), in the runtime's dtype.

    Factors of a shape are made once and their results thrown away: no optimiser, no elementwise work.
    """
    products, dtype = list(products), getattr(torch, runtime.dtype)
    factors = {
        (b, m, k, n): (
            torch.ones(b, m, k, dtype=dtype, device=runtime.device),
            torch.ones(b, k, n, dtype=dtype, device=runtime.device),
            torch.empty(b, m, n, dtype=dtype, device=runtime.device),
        )
        for b, m, k, n in products
    }
    _wait(runtime)
    began = time.perf_counter()
    for shape in products:
        left, right, out = factors[shape]
        torch.bmm(left, right, out=out) if shape[0] > 1 else torch.mm(left[0], right[0], out=out[0])
    _wait(runtime)
    return time.perf_counter() - began


def get_parameters(*, model: GPT) -> dict[str, np.ndarray]:
    """Weights that are trained, by canonical name: float32 copies."""
    return {name: _copy(weight) for name, weight in _trained(model).items()}


def get_optimizer_state(*, learner: "Learner") -> dict[str, np.ndarray]:
    """`first_moment.NAME` and, of what AdamW moves, `second_moment.NAME` (float32 copies); `step` (int64 scalar)."""
    state, step = {}, 0
    for name, parameter in _trained(learner.model).items():
        slot = learner.optimizer.state.get(parameter, {})
        for ours in moments_of(name, tuple(parameter.shape), learner.config.optimizer):
            moment = slot.get(MOMENTS[ours], torch.zeros_like(parameter))
            state[f"{ours}.{name}"] = _copy(moment)
        step = int(slot.get("step", step))
    return state | {"step": np.array(step, np.int64)}


def set_optimizer_state(*, learner: "Learner", state: Mapping[str, np.ndarray]) -> None:
    """The inverse of `get_optimizer_state`."""
    device = learner.model.runtime.device
    for name, parameter in _trained(learner.model).items():
        moments = moments_of(name, tuple(parameter.shape), learner.config.optimizer)
        slot = {
            MOMENTS[ours]: _like(torch.tensor(state[f"{ours}.{name}"], device=device), parameter) for ours in moments
        }
        if len(moments) == len(MOMENTS):  # AdamW's
            slot["step"] = torch.tensor(float(state["step"]), device=device)
        learner.optimizer.state[parameter] = slot


def _trained(model: GPT) -> dict[str, Tensor]:
    return {name: weight for name, weight in _settle(model).named_parameters() if weight.requires_grad}


def _copy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = _whole(tensor.detach()).float().cpu().numpy().copy()
    return array


def _choose_device(wanted: str) -> tuple[str, str]:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    gpus = [name for name in ("cuda", "mps") if available[name]]
    if wanted == "auto":
        device = (gpus or ["cpu"])[0]
        return device, f"device {device}: " + ("the fastest here" if gpus else "no CUDA or MPS device here")
    if wanted == "gpu":
        wanted = (gpus or ["gpu"])[0]
    if not available.get(wanted, False):
        found = ", ".join(name for name, here in available.items() if here)
        raise FaiscaError(f"device {wanted} is not available to torch here: choose among {found}, or auto")
    return wanted, f"device {wanted}: asked for"


def _choose_dtype(wanted: str, device: str) -> tuple[str, str]:
    policy = BFLOAT16 + ("" if device == "cuda" else f", and on {device} the product that makes logits")
    if wanted != "auto":
        return wanted, f"dtype {wanted}: asked for" + (f"; {policy}" if wanted == "bfloat16" else "")
    if device == "cuda" and torch.cuda.is_bf16_supported():
        return "bfloat16", f"dtype bfloat16: tensor cores are there; {policy}"
    return "float32", f"dtype float32: bfloat16 is slower, or not safe, on {device}"


def _choose_compile(wanted: str, device: str, shard: bool) -> tuple[bool, str]:
    if shard:
        if wanted == "on":
            raise FaiscaError("run.compile on does not go with run.shard: leave it at auto")
        return False, "compile off: run.shard gathers weights between the blocks"
    if wanted != "auto":
        return wanted == "on", f"compile {wanted}: asked for"
    if device == "cuda":
        return True, "compile on: launch overhead rivals the work of a small model on CUDA"
    return False, f"compile off: it does not pay on {device}"


def _details(device: str) -> dict[str, str]:
    details = {"torch": torch.__version__, "float32_matmul": torch.get_float32_matmul_precision()}
    if device == "cuda":
        return details | {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda), "tf32": _tf32()}
    if device == "cpu":
        blas = "MKL" if torch.backends.mkl.is_available() else "OpenBLAS or Eigen"
        return details | {"threads": str(torch.get_num_threads()), "blas": blas}
    return details


def _tf32() -> str:
    """Whether float32 products may have 11 bits: by torch, unless the variable of NVIDIA forbids it."""
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return "off"
    return "off" if torch.get_float32_matmul_precision() == "highest" else "allowed"


def _wait(runtime: Runtime) -> None:
    if runtime.device != "cpu":
        getattr(torch, runtime.device).synchronize()
