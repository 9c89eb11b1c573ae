"""What processes that train one model say to one another between the steps.

The gradients are averaged in the twins. All else goes through here, as bytes: a flag, a number, completions, losses.
Every process makes the same calls in the same order, and gets the same answer, to the bit.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import numpy as np

T = TypeVar("T")
PIECE = 2**26
"""bytes that are sent at a time"""


class Engine(Protocol):
    """How bytes travel: a twin's."""

    def gather(self, data: np.ndarray) -> np.ndarray:
        """uint8 [k] of each process, equally long -> uint8 [size, k]."""

    def first(self, data: np.ndarray) -> np.ndarray:
        """uint8 [k] of process 0; of the others only the length counts."""

    def sum(self, values: np.ndarray) -> np.ndarray:
        """float32 [k] of each process -> their sum."""

    def leave(self) -> None:
        """The end of all exchanges."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run; alone, nothing is sent."""

    rank: int = 0
    size: int = 1
    engine: Engine | None = None
    mixed: bool = False
    """whether backends differ, so that gradients travel as arrays"""
    reduce_dtype: str = "float32"
    """what gradients travel in"""
    shard: bool = False
    """whether each keeps a part of weights, gradients and moments alone"""

    @property
    def writes(self) -> bool:
        """Whether this process writes what a run leaves."""
        return self.rank == 0

    @property
    def apart(self) -> "Processes":
        """Who computes a part of what needs no gradient: where weights are shared, each computes all of it."""
        return ALONE if self.shard else self

    def part(self, rows: int) -> slice:
        """Which of so many rows are this process's: neighbours, as many for each as can be."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def purpose(self, name: str) -> str:
        """That of a random stream of this process's own; process 0's is that of a process alone."""
        return f"{name}, process {self.rank}" if self.rank else name

    def gather(self, thing: T) -> list[T]:
        """What each process has, in the order of the processes."""
        if self.engine is None:
            return [thing]
        data = np.frombuffer(pickle.dumps(thing), np.uint8)
        sizes = self.numbers([data.size])[:, 0]
        padded = np.zeros(sizes.max(), np.uint8)
        padded[: data.size] = data
        found = self.engine.gather(padded)
        return [cast(T, pickle.loads(row[:size].tobytes())) for row, size in zip(found, sizes, strict=True)]

    def in_turn(self, things: list[T]) -> list[T]:
        """What processes made in turn, in that order: the first of each, then the second."""
        lists = self.gather(things)
        return [many[i] for i in range(max(map(len, lists))) for many in lists if i < len(many)]

    def numbers(self, values: Sequence[int]) -> np.ndarray:
        """A few whole numbers of each process: int64 [size, k]."""
        mine = np.array(values, np.int64)
        return mine[None] if self.engine is None else self.engine.gather(mine.view(np.uint8)).view(np.int64)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.numbers([flag]).any())

    def mean(self, number: int) -> float:
        """Of the number that each process has."""
        return number if self.engine is None else float(self.numbers([number]).mean())

    def first(self, make: Callable[[], T]) -> T:
        """What process 0 makes; the others wait for it."""
        if self.engine is None:
            return make()
        data = np.frombuffer(pickle.dumps(make()), np.uint8) if self.rank == 0 else np.zeros(0, np.uint8)
        size = int(self.numbers([data.size])[0, 0])
        pieces = [(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]
        found = b"".join(self.engine.first(_piece(data, *piece)).tobytes() for piece in pieces)
        return cast(T, pickle.loads(found))

    def average(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Means over the processes of float32 arrays with the same names and shapes everywhere."""
        assert self.engine is not None, "several processes have an engine"
        names = sorted(arrays)
        flat = self.engine.sum(np.concatenate([arrays[name].ravel() for name in names])) / np.float32(self.size)
        ends = np.cumsum([arrays[name].size for name in names])[:-1]
        return {name: part.reshape(arrays[name].shape) for name, part in zip(names, np.split(flat, ends), strict=True)}


ALONE = Processes()


def _piece(data: np.ndarray, start: int, end: int) -> np.ndarray:
    """Bytes from start to end; zeros where there are none, for what the others send does not count."""
    return data[start:end].copy() if data.size else np.zeros(end - start, np.uint8)
