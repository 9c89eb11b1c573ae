"""One recipe with one seed, in a process of its own that trains when it has its turn: see `recipes.py`.

Its clock runs while it takes optimiser steps, batches included, and stands while it waits, evaluates or prepares.
How many steps there will be is planned anew before each step, from the speed so far, so that a schedule ends where the
budget ends; for a budget of tokens or FLOPs the number is known.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from recipes_trainees import Recipe, Trainee, open_trainee

from faisca.errors import FaiscaError

FIRST_MARK = 1 / 60
"""the share of the budget after which all of the validation split is first measured; the last is all of it"""
GRACE = 3.0
"""seconds that a process has to end by itself"""
UNKNOWN = 10**6
"""steps planned while the speed is not known: the first ones, which are slower, do not count"""
SLOW_STEPS = 2


@dataclass(frozen=True)
class Budget:
    """How much a recipe may use."""

    kind: str
    """seconds, tokens or flops"""
    amount: float

    def __post_init__(self) -> None:
        if not 0 < self.amount < float("inf"):
            raise FaiscaError(f"--{self.kind} {self.amount} is out of range: use a number above 0")


@dataclass(frozen=True)
class Spec:
    """What a process trains."""

    recipe: Recipe
    seed: int
    data: str
    budget: Budget
    evaluations: int
    """evenly spaced in the logarithm of the budget, the last at its end"""
    log: Path
    """takes what the product prints"""


class Training:
    """A recipe under way, and what it has used so far."""

    def __init__(self, trainee: Trainee, budget: Budget, evaluations: int) -> None:
        self.trainee, self.budget = trainee, budget
        self.marks = np.geomspace(FIRST_MARK, 1, evaluations)[:-1] if evaluations > 1 else []
        self.used = {"seconds": 0.0, "tokens": 0, "flops": 0.0}
        self.steps = 0
        self.planned = UNKNOWN
        self.curve: list[dict[str, float]] = []
        self._slow, self._passed = 0.0, 0
        self._losses: list[float] = []

    @property
    def share(self) -> float:
        """Of the budget that is used."""
        return self.used[self.budget.kind] / self.budget.amount

    @property
    def finished(self) -> bool:
        """Whether another step would exceed the budget."""
        return self.planned <= self.steps

    def train(self, until: float) -> None:
        """Take steps until so large a share of the budget is used; measure where a mark is passed, and at the end."""
        while self.share < until and not self.finished:
            self._step()
            passed = sum(mark <= self.share for mark in self.marks)
            if self.finished or passed > self._passed:
                self._passed = passed
                self._measure()

    def _step(self) -> None:
        began = time.perf_counter()
        loss, tokens = self.trainee.step(self.steps, self.planned)
        self.used["seconds"] += time.perf_counter() - began
        self.used["tokens"] += tokens
        self.used["flops"] += tokens * self.trainee.facts["flops_per_token"]
        self.steps += 1
        self._losses.append(loss)
        if self.steps == SLOW_STEPS:
            self._slow = self.used["seconds"]
        self.planned = self._plan()

    def _plan(self) -> int:
        """Steps in all, of which the last ends within the budget."""
        used, left = self.used[self.budget.kind], self.budget.amount - self.used[self.budget.kind]
        if self.budget.kind != "seconds":
            return self.steps + round(left / (used / self.steps))
        if self.steps <= SLOW_STEPS:
            return UNKNOWN if left > 0 else self.steps
        return self.steps + int(left / ((used - self._slow) / (self.steps - SLOW_STEPS)))

    def _measure(self) -> None:
        bits, loss = self.trainee.bits_per_byte(), float(np.mean(self._losses))
        self.curve.append({**self.used, "steps": self.steps, "training_loss": loss, "bits_per_byte": bits})
        self._losses.clear()

    def result(self) -> dict[str, Any]:
        """What is written of a finished run."""
        return {"facts": self.trainee.facts, "curve": self.curve}


class Worker:
    """The process of a spec, told to train through a pipe."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.turns, self.share = spec, 0, 0.0
        self.bits: float | None = None
        self.result: dict[str, Any] | None = None
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(spec, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()  # it is ready: preparation takes no turn of another's

    def turn(self, until: float) -> None:
        """Let it train until this share of its budget is used; `result` is there once it has finished."""
        self._pipe.send(until)
        self.share, self.bits, self.result = self._answer()
        self.turns += 1

    @property
    def progress(self) -> str:
        """How far it is, in words."""
        bits = "" if self.bits is None else f", {self.bits:.3f} bits per byte"
        return f"{self.spec.recipe.name}, seed {self.spec.seed}: {min(1, self.share):.0%}{bits}"

    def close(self) -> None:
        """End the process: one that waits for its turn ends by itself, one that trains does not listen."""
        self._pipe.close()
        self._process.join(GRACE)
        self._process.kill()
        self._process.join()

    def _answer(self) -> Any:
        name = f"{self.spec.recipe.name}, seed {self.spec.seed}"
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise FaiscaError(f"{name}: its process died: is there enough memory? (see {self.spec.log})") from None
        if kind == "user":
            raise FaiscaError(f"{name}: {answer}")
        if kind == "bug":
            raise RuntimeError(f"{name} failed:\n{answer}")
        return answer


def _serve(spec: Spec, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    with spec.log.open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has ended
        try:
            with open_trainee(spec.recipe, spec.data, spec.seed) as trainee:
                training = Training(trainee, spec.budget, spec.evaluations)
                pipe.send(("ready", None))
                while True:
                    training.train(pipe.recv())
                    bits = training.curve[-1]["bits_per_byte"] if training.curve else None
                    pipe.send(("done", (training.share, bits, training.result() if training.finished else None)))
        except (EOFError, BrokenPipeError):
            raise
        except FaiscaError as error:
            pipe.send(("user", str(error)))
        except Exception:
            pipe.send(("bug", traceback.format_exc()))
