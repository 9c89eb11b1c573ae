"""A device that computes wrong: a twin of which some operations are not what they should be.

They are wrong while the device under test computes, and right while the CPU does, to which it is compared.
Each fault has the number of a public thread that reports it; limits of size are scaled to these tests' shapes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from faisca.backend import Backend, Runtime
from faisca.certificate.certify import REFERENCE, Certificate, Reference
from faisca.certificate.work import Work, uneven
from faisca.config import GRPOConfig, ModelConfig, RunConfig
from faisca.parameters import initial_parameters

MODEL = ModelConfig(context=32, dim=16, num_layers=2, num_heads=2, hidden_dim=32, vocabulary_size=300)
ROWS, LENGTH = 32, 32
GRPO = GRPOConfig(group_size=24, minibatch_size=8, max_new_tokens=24)


@dataclass(frozen=True)
class Fault:
    """One historical fault, and where the certificate must see it."""

    thread: str
    """as in pytorch#153957"""
    what: str
    plant: Callable[[], AbstractContextManager[Any]]
    kind: str
    """of the arrays that must be named, with part of their name"""
    array: str
    stage: str = "pretrain"
    run: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    grpo: dict[str, Any] = field(default_factory=dict)
    zero: bool = False
    """whether it must be named as zero"""
    precision: str = ""
    """as what it passes, where it is no fault but a precision"""

    def __str__(self) -> str:
        return f"{self.thread} {self.what}"

    @property
    def config(self) -> RunConfig:
        """What the device is opened with."""
        return RunConfig(**({"device": "cpu"} | self.run))

    @property
    def work(self) -> Work:
        """What it computes."""
        model = replace(MODEL, **self.model)
        parameters = uneven(initial_parameters(model, 0), 0)
        if self.stage == "grpo":
            grpo = replace(GRPO, **self.grpo)
            return Work("grpo", model, parameters, grpo.minibatch_size, LENGTH - 4, 0, grpo, prompt=4)
        return Work(self.stage, model, parameters, ROWS, LENGTH, 0)


class Faulty:
    """A twin with a fault, as a backend of its own."""

    def __init__(self, backend: Backend, plant: Callable[[], AbstractContextManager[Any]]) -> None:
        self._backend, self._fault = backend, plant()
        self._under_test, self.enabled = False, True
        self.learners = 0
        self.trained_with: list[Runtime] = []
        """the runtimes of the learners that were made to train, and not to read gradients out of"""

    def open_runtime(self, *, config: RunConfig) -> Runtime:
        self._under_test = config != REFERENCE
        return self._backend.open_runtime(config=config)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._backend, name)

        def call(**given: Any) -> Any:
            if name == "make_learner":
                self.learners += 1
                self.trained_with += [given["model"].runtime] if given["config"].beta1 else []
            with self._fault if self._under_test and self.enabled else nullcontext():
                out = function(**given)
                return list(out) if name == "generate" else out

        return call


class Patches:
    """A context, entered many times, in which attributes are others."""

    def __init__(self, *places: tuple[Any, str, Callable[[Any], Any]]) -> None:
        self.places = [(owner, name, make(getattr(owner, name))) for owner, name, make in places]
        self.olds: list[Any] = []

    def __enter__(self) -> None:
        self.olds = [getattr(owner, name) for owner, name, _ in self.places]
        for owner, name, new in self.places:
            setattr(owner, name, new)

    def __exit__(self, *error: object) -> None:
        for (owner, name, _), old in zip(self.places, self.olds, strict=True):
            setattr(owner, name, old)


def certificate_of(backend: Backend, fault: Fault, planted: bool) -> Certificate:
    """What is found with the fault, or of the same work without it (and without a compiler, which takes long)."""
    device = Faulty(backend, fault.plant if planted else nullcontext)
    config = fault.config if planted else replace(fault.config, compile="off")
    return Reference(device, fault.work).certify(config)  # type: ignore[arg-type]


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """Undo what opening a compiled runtime sets for the whole process."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
