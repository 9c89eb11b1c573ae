"""The processes of `faisca bench`: one for each backend and baseline, told what to time through a pipe.

In a process of its own, a library's threads, allocator and environment disturb nobody else's. The
worker waits while others are timed, so rounds can be interleaved. Memory and the first step are
measured in yet another process, which does nothing else.
"""

import importlib.util
import math
import multiprocessing
import re
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

import faisca
from faisca.backends import BACKENDS
from faisca.bench.twin import CaseFunction, TwinSubject, timed
from faisca.bench.work import Work
from faisca.config import RunConfig
from faisca.errors import FaiscaError
from faisca.system.memory import peak_resident_bytes

BASELINES = Path(faisca.__file__).parent.parent / "benchmarks" / "baselines"
SHORTEST_ROUND = 0.2
"""seconds: shorter cases are repeated within a round"""
GRACE = 3.0
"""seconds that a process has to end by itself"""
LONG = 30.0
"""seconds: a case that takes longer is warm after once"""


class Subject(Protocol):
    """What is timed: a twin, or a baseline, which may lack cases."""

    def describe(self) -> dict[str, Any]:
        """Versions and the like."""

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """Mean cross-entropy (nats) of [B, T] ids without dropout."""

    def cases(self) -> dict[str, CaseFunction]:
        """Functions that do a case's work once, to the end, and return the seconds."""

    def training(self) -> CaseFunction:
        """The training step alone, where `pretrain` is among the cases."""

    def device_memory(self) -> int | None:
        """Peak bytes on the device, where it has a counter."""


@dataclass(frozen=True)
class SubjectSpec:
    """Which subject to open, in another process."""

    name: str
    work: Work
    options: RunConfig
    baselines: Path = field(default_factory=lambda: BASELINES)

    def open(self) -> Subject:
        """Import its framework and make it."""
        if self.name in BACKENDS:
            return TwinSubject(self.name, self.work, replace(self.options, backend=self.name))
        subject: Subject = load_baseline(self.name, self.baselines)(self.work, self.options.device)
        return subject


def find_baseline(name: str, folder: Path) -> Path:
    """The file that has the baseline's function `open_NAME(work, device)`; FaiscaError where none has."""
    functions = {
        path: re.findall(r"^def open_(\w+)\(", path.read_text(encoding="utf-8"), re.M) for path in folder.glob("*.py")
    }
    known = {function: path for path, found in functions.items() for function in found}
    if name not in known:
        listing = ", ".join(sorted(known)) or "none: they are in a checkout of the repository, not in the package"
        raise FaiscaError(f"peer {name!r} is unknown: choose among {listing}")
    return known[name]


def load_baseline(name: str, folder: Path) -> Callable[[Work, str], Subject]:
    """The function that opens a baseline."""
    path = find_baseline(name, folder)
    spec = importlib.util.spec_from_file_location(f"faisca_baseline_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(Callable[[Work, str], Subject], getattr(module, f"open_{name}"))


class Worker:
    """A subject in a process of its own."""

    def __init__(self, spec: SubjectSpec) -> None:
        self.name = spec.name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(spec, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, question: str, *arguments: Any) -> Any:
        """Call `_Server.QUESTION` over there; its error is raised here."""
        try:
            self._pipe.send((question, arguments))
            kind, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise FaiscaError(f"{self.name}: its process died in {question}: is there enough memory?") from None
        if kind == "user":
            raise FaiscaError(f"{self.name}: {answer}")
        if kind == "bug":
            raise RuntimeError(f"{self.name} failed in {question}:\n{answer}")
        return answer

    def close(self) -> None:
        """End the process, by itself where it waits and by force where it computes: it has nothing to save."""
        self._pipe.close()
        self._process.join(GRACE)
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server:
    """The other end of a Worker's pipe."""

    def __init__(self, spec: SubjectSpec) -> None:
        self.subject = spec.open()
        self._cases: dict[str, CaseFunction] = {}
        self._repeats: dict[str, int] = {}

    def describe(self) -> dict[str, Any]:
        return self.subject.describe()

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        return self.subject.loss(inputs, targets)

    def cases(self) -> list[str]:
        self._cases = self.subject.cases()
        return list(self._cases)

    def warm_up(self, case: str) -> float:
        """Do a case twice, as compiled steps trace twice, and choose how often makes a round: seconds a round."""
        seconds = self._cases[case]()
        if seconds < LONG:
            seconds = self._cases[case]()
        self._repeats[case] = max(1, math.ceil(SHORTEST_ROUND / seconds))
        return self._repeats[case] * seconds

    def measure(self, case: str) -> float:
        """Mean seconds of a case in one round."""
        return sum(self._cases[case]() for _ in range(self._repeats[case])) / self._repeats[case]

    def fresh(self) -> dict[str, Any]:
        """The first training step of this process, and its peak memory after another."""
        first = timed(lambda: self._training())  # making the optimiser included
        self._training()
        memory = {"peak_resident": peak_resident_bytes(), "peak_device": self.subject.device_memory()}
        return {"first_step": first, **memory}

    def training_seconds(self) -> float:
        """Seconds of another training step, after `fresh`."""
        return self._training()

    def train_for(self, seconds: float) -> tuple[int, float]:
        """Training steps until so many seconds are over: how many, and the seconds that they took."""
        steps, spent = 0, 0.0
        while spent < seconds:
            spent += self._training()
            steps += 1
        return steps, spent

    @cached_property
    def _training(self) -> CaseFunction:
        return self.subject.training()


def _serve(spec: SubjectSpec, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the asking process's, which then ends this one
    server: _Server | None = None
    while True:
        try:
            question, arguments = pipe.recv()
        except EOFError:
            return
        try:
            server = server or _Server(spec)
            pipe.send(("answer", getattr(server, question)(*arguments)))
        except FaiscaError as error:
            pipe.send(("user", str(error)))
        except Exception:  # raised again where the question came from
            pipe.send(("bug", traceback.format_exc()))
