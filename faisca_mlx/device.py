"""Which device, dtype and compilation, chosen once, with the reason; arrays there and back; how fast it multiplies."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from faisca.backend import BFLOAT16, Runtime
from faisca.config import RunConfig
from faisca.errors import FaiscaError
from faisca.muon import moments_of
from faisca.system.fast_blas import load_fast_blas
from faisca.text import format_bytes
from faisca_mlx.model import GPT
from faisca_mlx.muon import MOMENTS as MATRICES

if TYPE_CHECKING:
    from faisca_mlx.optimizer import Learner

MOMENTS = {"first_moment": "m", "second_moment": "v"}
"""of AdamW, and what the framework calls them"""
LOSS_CHUNK = 128
"""rows of logits in the loss: larger is no faster, and takes more memory"""
CACHE_SHARE = 0.25
"""of the memory that the GPU may use: more free buffers than that are given back between steps"""
MOST_TRACES = 64
"""shapes for which a compiled step keeps a graph; MLX itself would keep one for each for ever (mlx#4464)"""


def open_runtime(*, config: RunConfig) -> Runtime:
    """Choose device, dtype and compilation; FaiscaError where what was asked for cannot be had."""
    device, device_reason = _choose_device(config.device)
    dtype, dtype_reason = _choose_dtype(config.dtype, device)
    compiled, compile_reason = _choose_compile(config.compile, device)
    mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
    if config.cache_limit_gb:
        mx.set_cache_limit(int(config.cache_limit_gb * 2**30))
    fused_loss, loss_words = _choose_loss(device)
    warning = load_fast_blas().warning
    return Runtime(
        backend="mlx",
        device=device,
        dtype=dtype,
        compile=compiled,
        loss_chunk=config.loss_chunk or LOSS_CHUNK,
        fused_loss=fused_loss,
        cache_threshold=_cache_threshold(config.cache_limit_gb, device),
        weights=config.weights,
        attention=config.attention,
        gradient_checkpointing=config.gradient_checkpointing,
        reasons=(device_reason, dtype_reason, compile_reason) + ((warning,) if warning else ()),
        details=_details(device) | {"loss": loss_words},
    )


def memory(*, runtime: Runtime, reset_peak: bool) -> dict[str, int]:
    """Bytes that MLX holds: `peak`, `active`, `cache`; its peak leaves the cache out. `limit` is what a GPU may use."""
    numbers = {"peak": mx.get_peak_memory(), "active": mx.get_active_memory(), "cache": mx.get_cache_memory()}
    if reset_peak:
        mx.reset_peak_memory()
    limit = _gpu_memory(runtime.device)
    return numbers | ({"limit": limit} if limit else {})


@contextmanager
def training_memory(*, runtime: Runtime) -> Iterator[None]:
    """Metal keeps what is trained resident, up to the working set that macOS recommends; as before, afterwards."""
    if runtime.device != "gpu" or not mx.metal.is_available():
        yield
        return
    before = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    try:
        yield
    finally:
        mx.synchronize()  # what still computes would lose its memory
        mx.set_wired_limit(before)


def tidy_memory(*, learner: "Learner") -> list[str]:
    """Empty the buffer cache where it exceeds the runtime's threshold; say so the 1st, 10th, 100th … time."""
    graphs = [made for made in learner.made.values() if isinstance(made, _CompiledStep)]
    lines = [graph.notes.pop() for graph in graphs if graph.notes]
    threshold, held = learner.model.runtime.cache_threshold, mx.get_cache_memory()
    if threshold and held > threshold:
        mx.clear_cache()
        learner.cleared += 1
        if str(learner.cleared).rstrip("0") == "1":
            most = format_bytes(threshold)
            lines.append(f"MLX held {format_bytes(held)} of free buffers, over {most}: emptied, {learner.cleared} ×")
    return lines


def compile_step(step: Callable[..., Any], state: list[Any], runtime: Runtime) -> Callable[..., Any]:
    """The step as one graph where the runtime compiles; `state` is all that it reads and writes besides arguments."""
    return _CompiledStep(step, state) if runtime.compile else step


def to_device(model: GPT, tokens: np.ndarray) -> mx.array:
    """Token ids as an int32 array; MLX's memory is the device's."""
    return mx.array(np.asarray(tokens, dtype=np.int32))


def matmul_seconds(*, runtime: Runtime, products: Iterable[tuple[int, int, int, int]]) -> float:
    """Seconds that these matrix products take one after another: (batch, m, k, n), in the runtime's dtype.

    Factors of a shape are made once and their results thrown away: no optimiser, no elementwise work.
    """
    products, dtype = list(products), getattr(mx, runtime.dtype)
    factors = {(b, m, k, n): (mx.ones((b, m, k), dtype), mx.ones((b, k, n), dtype)) for b, m, k, n in products}
    mx.eval(factors.values())
    began = time.perf_counter()
    for shape in products:
        left, right = factors[shape]
        mx.async_eval(left @ right if shape[0] > 1 else left[0] @ right[0])
    mx.synchronize()
    return time.perf_counter() - began


def get_parameters(*, model: GPT) -> dict[str, np.ndarray]:
    """Weights that are trained, by canonical name: float32 copies."""
    return {name: np.array(value.astype(mx.float32)) for name, value in tree_flatten(model.trainable_parameters())}


def get_optimizer_state(*, learner: "Learner") -> dict[str, np.ndarray]:
    """`first_moment.NAME` and, of what AdamW moves, `second_moment.NAME` (float32 copies); `step` (int64 scalar)."""
    slots = dict(tree_flatten(learner.optimizer.state))
    state = {name: np.array(slots[slot].astype(mx.float32)) for name, slot in _slots(learner).items()}
    return state | {"step": np.array(learner.optimizer.step.item(), np.int64)}


def set_optimizer_state(*, learner: "Learner", state: Mapping[str, np.ndarray]) -> None:
    """The inverse of `get_optimizer_state`."""
    slots = {slot: mx.array(state[name]) for name, slot in _slots(learner).items()}
    slots["step"] = mx.array(int(state["step"]), learner.optimizer.step.dtype)
    # value by value: the tree also has the places of modules without weights, which the optimiser looks for
    new_state = tree_map_with_path(lambda path, old: slots.get(path, old), learner.optimizer.state)
    learner.optimizer.state.update(new_state)
    mx.eval(learner.optimizer.state)


def _slots(learner: "Learner") -> dict[str, str]:
    """Where each moment stands in the optimiser's state: NAME.m and NAME.v of AdamW, matrices.NAME of Muon."""
    slots = {}
    for name, weight in tree_flatten(learner.model.trainable_parameters()):
        moments = moments_of(name, weight.shape, learner.config.optimizer)
        for moment in moments:
            adams = len(moments) == len(MOMENTS)
            slots[f"{moment}.{name}"] = f"{name}.{MOMENTS[moment]}" if adams else f"{MATRICES}.{name}"
    return slots


class _CompiledStep:
    """A step as one graph for each shape of its arguments; beyond MOST_TRACES all are dropped, and begun anew."""

    def __init__(self, step: Callable[..., Any], state: list[Any]) -> None:
        self.step, self.state, self.shapes = step, state, set[Any]()
        self.notes: list[str] | None = None
        self._begin()

    def __call__(self, *arguments: Any) -> Any:
        """What the step returns; its shapes decide which graph computes it."""
        shapes = tuple((array.shape, array.dtype) for _, array in tree_flatten(arguments))
        if shapes not in self.shapes and len(self.shapes) >= MOST_TRACES:
            self._begin()
            if self.notes is None:  # the first time
                self.notes = [
                    f"compile: this step came in more than {MOST_TRACES} shapes, and MLX keeps a graph of each: they "
                    "were dropped, and will be whenever there are as many; --run.compile off does without graphs"
                ]
        self.shapes.add(shapes)
        return self.compiled(*arguments)

    def _begin(self) -> None:
        self.shapes.clear()
        # MLX frees the graphs of a compiled function together with it, and in no other way.
        self.compiled = mx.compile(self.step, inputs=self.state, outputs=self.state)


def _choose_device(wanted: str) -> tuple[str, str]:
    available = {"mps": mx.metal.is_available(), "cuda": mx.cuda.is_available()}
    gpu = any(available.values())
    if wanted == "auto":
        device = "gpu" if gpu else "cpu"
        return device, f"device {device}: " + ("the fastest here" if gpu else "no Metal or CUDA device here")
    if wanted != "cpu" and not available.get(wanted, gpu):
        found = ", ".join([*(name for name, here in available.items() if here), "cpu"])
        raise FaiscaError(f"device {wanted} is not available to mlx here: choose among {found}, or auto")
    return ("cpu" if wanted == "cpu" else "gpu"), f"device {wanted}: asked for"


def _choose_dtype(wanted: str, device: str) -> tuple[str, str]:
    if wanted == "bfloat16":
        return wanted, f"dtype bfloat16: asked for; {BFLOAT16}, and the product that makes logits"
    if wanted != "auto":
        return wanted, f"dtype {wanted}: asked for"
    if device == "cpu":
        return "float32", "dtype float32: bfloat16 products do not use the BLAS on the CPU"
    return "float32", "dtype float32: equal to the torch twin's; --run.dtype bfloat16 nearly halves the activations"


def _choose_compile(wanted: str, device: str) -> tuple[bool, str]:
    if wanted == "on" and device == "cpu" and shutil.which("g++") is None:
        raise FaiscaError("run.compile on needs g++ where MLX computes on the CPU: install it, or leave it at auto")
    if wanted != "auto":
        return wanted == "on", f"compile {wanted}: asked for"
    if device == "cpu":
        return False, "compile off: on the CPU it saves little and the first step waits for g++"
    return True, "compile on: one graph a step, its elementwise operations fused"


def _choose_loss(device: str) -> tuple[bool, str]:
    """Metal and CUDA have a fused cross-entropy; what stands for it on the CPU keeps another copy of the logits."""
    if device == "cpu":
        return False, "explicit: no fused cross-entropy on the CPU"
    return True, "fused cross-entropy in each chunk"


def _cache_threshold(limit_gb: float, device: str) -> int:
    """Clearing costs time at every step of the same shapes, so it waits; a cap of the user's own is MLX's to keep."""
    return 0 if limit_gb else int(CACHE_SHARE * _gpu_memory(device))


def _gpu_memory(device: str) -> int:
    """Bytes that the GPU may use: Metal's recommended working set, or all that a CUDA device has; 0 on the CPU."""
    info = mx.device_info() if device == "gpu" else {}
    return int(info.get("max_recommended_working_set_size") or info.get("total_memory") or 0)


def _details(device: str) -> dict[str, str]:
    details = {"mlx": version("mlx")}
    if device == "cpu":
        return details | {"blas": load_fast_blas().name}
    info = mx.device_info()
    tf32 = "off" if os.environ.get("MLX_ENABLE_TF32") == "0" else "allowed (MLX_ENABLE_TF32=0 turns it off)"
    return details | {"gpu": str(info.get("device_name", "unknown")), "tf32": tf32}
