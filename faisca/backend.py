"""The boundary between the core and the twins, and the one place that loads a twin.

The core owns the loop: order, schedule, when to evaluate, log, save and resume. A twin owns
the step. NumPy arrays, numbers, texts and config dataclasses cross the boundary; a model, a
learner (a model with its optimiser) and the metrics of a step are opaque to the core, and
reading metrics waits for the device, so the core does it every few steps only.
"""

import importlib
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NewType, Protocol, TypeVar, cast

import numpy as np

from faisca.backends import BACKENDS
from faisca.config import COLDEST, GRPOConfig, ModelConfig, OptimizerConfig, RunConfig
from faisca.errors import FaiscaError
from faisca.group import ALONE, Engine, Processes

ROWS_AT_A_TIME = 64
"""completions sampled together, where nobody says otherwise: bounds the key-value cache"""
PLACES_MULTIPLE = 64
"""the counts of positions whose log-probabilities are computed are multiples of this"""
BFLOAT16 = "factors of products in bfloat16; weights, norms, the residual stream, softmax and all sums in float32"
"""what a runtime's dtype bfloat16 means, in either twin"""
UNIT = 2**38
"""samplers add probabilities up as multiples of 1 / UNIT, in int64; times the 24 bits of a uniform number they fit"""
KEPT_EXPONENTIALS = 2**26
"""exponentials that a twin may keep for the backward pass of log-probabilities: 0.27 GB in float32"""

Array = TypeVar("Array")
Model = NewType("Model", object)
"""a twin's model"""
Metrics = NewType("Metrics", object)
"""the numbers of a step, still on the device"""


class Learner(Protocol):
    """A twin's model with its optimiser."""

    model: Model


@dataclass(frozen=True)
class Runtime:
    """What a twin chose to compute with, and why; `details` goes into logs and benchmarks."""

    backend: str
    """torch or mlx"""
    device: str
    """the framework's name for the device: cpu, cuda, mps, gpu"""
    dtype: str
    """of products, float32 or bfloat16 (see BFLOAT16); the optimiser's state is float32 in both"""
    compile: bool
    """whether the training step is compiled"""
    loss_chunk: int = 512
    """rows of logits alive at a time in the loss"""
    weights: str = "float32"
    """float32, or bfloat16: what the blocks' matrices are kept in; a model that is trained needs float32"""
    attention: str = "fused"
    """fused, or explicit: scores, softmax and product one after the other"""
    gradient_checkpointing: bool = False
    """recompute blocks in the backward pass"""
    fused_loss: bool = False
    """whether cross-entropy is the framework's fused kernel inside each chunk"""
    cache_threshold: int = 0
    """bytes of free buffers above which `tidy_memory` gives them back; 0: never"""
    processes: Processes = ALONE
    """those that train one model together"""
    reasons: tuple[str, ...] = ()
    """one line for each choice that the user left open"""
    details: Mapping[str, str] = field(default_factory=dict)
    """versions, BLAS, TF32 and the like"""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise FaiscaError(f"temperature {self.temperature} is out of range: use a finite number, at least 0")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time, without a draw."""
        return self.temperature < COLDEST


@dataclass(frozen=True)
class Rollouts(Generic[Array]):
    """Completions to learn from, right-padded: B rows of T tokens, prompt first.

    Position t of the [B, T-1] arrays is about predicting token t + 1 of the row. NumPy arrays cross the
    boundary; inside a twin the fields are its own.
    """

    tokens: Array
    """[B, T] int32"""
    mask: Array
    """[B, T-1] float32: 1 where the predicted token belongs to the completion, its end-of-text included"""
    advantages: Array
    """[B] float32; [B, T-1] where a correction weighs each token"""
    old_log_probs: Array
    """[B, T-1] float32, of the policy that sampled, at the sampling temperature"""
    reference_log_probs: Array
    """[B, T-1] float32, of the frozen reference, at the sampling temperature"""
    step_tokens: Any
    """completion tokens of the whole optimiser step, for the dapo average and what is watched"""
    step_rows: int = 0
    """completions of the whole optimiser step; 0: these are all"""

    @property
    def places(self: "Rollouts[np.ndarray]") -> np.ndarray:
        """The positions whose log-probabilities count, as int32 [N] into the flattened [B, T-1]."""
        return cast(np.ndarray, self.micro_batches(0)[1][0])

    def micro_batches(self: "Rollouts[np.ndarray]", rows: int) -> tuple[list["Rollouts[np.ndarray]"], np.ndarray]:
        """Parts of so many rows (0: one part), and the positions of each whose log-probabilities count, int32 [M, N].

        The head costs more than all blocks, and most positions of a batch of headlines are padding.
        Other positions fill N up to a multiple of PLACES_MULTIPLE: few shapes, so few compiled traces.
        """
        B, arrays = len(self.mask), {name: a for name, a in vars(self).items() if not name.startswith("step_")}
        slices = [slice(start, start + (rows or B)) for start in range(0, B, rows or B)]
        parts = [replace(self, **{name: a[part] for name, a in arrays.items()}, step_rows=B) for part in slices]
        most = max(np.count_nonzero(part.mask) for part in parts)
        multiple = max(math.ceil(most / PLACES_MULTIPLE), 1) * PLACES_MULTIPLE
        counted_first = [np.argsort(part.mask.ravel() == 0, kind="stable").astype(np.int32) for part in parts]
        return parts, np.stack([order[:multiple] for order in counted_first])


class Backend(Protocol):
    """What a twin's package offers as functions of its top level."""

    def open_runtime(self, *, config: RunConfig) -> Runtime:
        """Choose device, dtype and compilation; raises FaiscaError where they cannot be had."""

    def make_model(self, *, config: ModelConfig, parameters: Mapping[str, np.ndarray], runtime: Runtime) -> Model:
        """A model with these weights, in evaluation mode."""

    def base_of(self, *, model: Model) -> Model:
        """The model without its adapter, in evaluation mode: it shares the arrays of the weights."""

    def get_parameters(self, *, model: Model) -> dict[str, np.ndarray]:
        """Weights that are trained, by canonical name: float32 copies. Of a model with an adapter, the adapter's."""

    def join(self, *, rank: int, size: int) -> Engine:
        """Meet the other processes of a launch, this being number `rank`; FaiscaError where that cannot be."""

    def make_learner(self, *, model: Model, config: OptimizerConfig) -> Learner:
        """An optimiser for this model, its moments zero, with a compiled step where the runtime says so.

        Of several processes (`Runtime.processes`) each learns from its own rows, and takes the step of all.
        """

    def get_optimizer_state(self, *, learner: Learner) -> dict[str, np.ndarray]:
        """`first_moment.NAME`, `second_moment.NAME` (float32; `faisca.muon` says which), and `step` (int64 scalar)."""

    def set_optimizer_state(self, *, learner: Learner, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `get_optimizer_state`."""

    def train_step(
        self,
        *,
        learner: Learner,
        inputs: np.ndarray,
        targets: np.ndarray,
        learning_rate: float,
        micro_batch_size: int,
        dropout_seed: int,
    ) -> Metrics:
        """One optimiser step on [B, T] token ids: `loss` (nats), `grad_norm` (before clipping) and `skipped`.

        The loss is the mean over all targets of the batch that are not negative, whatever the micro-batches, and
        whichever processes have its rows.

        `skipped` is 1 where loss or norm was not finite, and weights and moments stayed as they were.
        """

    def grpo_step(
        self,
        *,
        learner: Learner,
        rollouts: Rollouts[np.ndarray],
        config: GRPOConfig,
        learning_rate: float,
        dropout_seed: int,
    ) -> Metrics:
        """One optimiser step on a minibatch, `config.micro_batch_size` rows at a time; metrics as in `policy_loss`.

        The seed is of what an adapter drops; nothing else does.
        """

    def read_metrics(self, *, metrics: list[Metrics]) -> list[dict[str, float]]:
        """Numbers of past steps; waits for the device."""

    def evaluate(self, *, model: Model, inputs: np.ndarray, targets: np.ndarray) -> float:
        """Summed negative log-likelihood (nats) of [B, T] targets; negative targets are left out."""

    def logits(self, *, model: Model, tokens: np.ndarray) -> np.ndarray:
        """[B, T] token ids -> float32 [B, T, V]."""

    def token_log_probs(
        self, *, model: Model, tokens: np.ndarray, temperature: float, places: np.ndarray | None
    ) -> np.ndarray:
        """[B, T] token ids -> float32 [B, T-1]: log-probability of each token after the first.

        With `places` (`Rollouts.places`), of those alone; the others are 0. FaiscaError for a
        temperature below COLDEST.
        """

    def generate(
        self,
        *,
        model: Model,
        prompts: list[list[int]],
        uniforms: np.ndarray,
        sampling: Sampling,
        end_of_text: tuple[int, ...],
        log_probs: np.ndarray | None,
    ) -> Iterator[np.ndarray]:
        """Sample completions: yields int [B] arrays, a column of new tokens at a time.

        `uniforms` is float32 [B, max_new_tokens]; the n-th new token of a row uses the n-th of its
        numbers. A row that has no token in a column (still in its prompt, or finished) holds -1. A
        row ends after the first of the `end_of_text` ids, after `max_new_tokens`, or when the context is full.
        `log_probs`, float32 [B, max_new_tokens] takes the log-probability of each new token among all, at the sampling
        temperature; None: nobody asks.
        """

    def memory(self, *, runtime: Runtime, reset_peak: bool) -> dict[str, int]:
        """Bytes on the device: `peak`, `active`, `cache`, and `limit`, what may be used; those that it counts."""

    def training_memory(self, *, runtime: Runtime) -> AbstractContextManager[None]:
        """What the device's memory needs while something is trained; as it was before, afterwards."""

    def tidy_memory(self, *, learner: Learner) -> list[str]:
        """Give back what grew over the steps, above a threshold only; what there is to say of it, a line each."""


def check_temperature(temperature: float) -> None:
    """Raise a FaiscaError for a temperature at which there are no log-probabilities."""
    if not COLDEST <= temperature < math.inf:
        raise FaiscaError(f"temperature {temperature} has no log-probabilities: use a finite one, at least {COLDEST:g}")


def load_backend(name: str) -> Backend:
    """Import the twin of a backend; raises FaiscaError where its framework is not installed."""
    if name not in BACKENDS:
        raise FaiscaError(f"backend {name!r} is unknown: choose auto, {', '.join(BACKENDS)}")
    if not BACKENDS[name].installed:
        raise FaiscaError(f"backend {name} needs a package that is not installed here: {BACKENDS[name].remedy}")
    return cast(Backend, importlib.import_module(f"faisca_{name}"))
