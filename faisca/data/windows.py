"""Token ids to batches of windows.

A training window is any stretch of the flat array of all titles' tokens. Which windows a step
sees is a pure function of the step, so a resumed run needs no state of a data loader.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from faisca.errors import FaiscaError
from faisca.streams import permutation


@dataclass(frozen=True)
class Windows:
    """Training windows: stretches of `window` tokens every `stride` tokens, and one that ends at the end."""

    tokens: np.ndarray
    window: int
    stride: int

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.window:
            raise FaiscaError(
                f"data.window {self.window} needs {self.window + 1:,} tokens, but the training titles have "
                f"{len(self.tokens):,}: use a smaller --data.window or more titles"
            )

    def __len__(self) -> int:
        return math.ceil(self._last_start / self.stride) + 1

    @property
    def _last_start(self) -> int:
        return len(self.tokens) - self.window - 1

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of these windows: int32 [B, T] each, targets one token later."""
        starts = np.minimum(np.asarray(indices) * self.stride, self._last_start)
        places = starts[:, None] + np.arange(self.window)  # [B, T]
        return self.tokens[places].astype(np.int32), self.tokens[places + 1].astype(np.int32)


class Rows(Protocol):
    """What a step takes its rows from: windows of titles, or conversations."""

    @property
    def tokens(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


def steps_per_epoch(windows: Rows, batch_size: int) -> int:
    """Full batches in one pass; the rest is dropped. Raises FaiscaError where there is none."""
    if batch_size > len(windows):
        raise FaiscaError(
            f"batch_size {batch_size} is more than the {len(windows)} training windows: use at most "
            f"{len(windows)}, a smaller --data.window or --data.stride, or more data"
        )
    return len(windows) // batch_size


def training_batch(
    windows: Rows, *, batch_size: int, seed: int, stage: str, step: int, rows: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a step (from 0), or of these `rows` of it: int32 [B, T]. Each epoch has its own order."""
    epoch, batch = divmod(step, steps_per_epoch(windows, batch_size))
    order = _window_order(seed, stage, len(windows), epoch)
    return windows.batch(order[batch * batch_size : (batch + 1) * batch_size][rows])


def evaluation_batches(
    tokens: np.ndarray, *, window: int, batch_size: int, most: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows side by side, in the order of the titles: int32 [B, T] inputs and targets.

    Every token but the first is a target exactly once. All batches have the same shape; what the
    last has too much has inputs 0 and targets -1. `most` stops after so many batches.
    """
    size = batch_size * window
    starts = range(0, len(tokens) - 1, size)
    for start in starts[:most]:
        stretch = tokens[start : start + size + 1]
        inputs, targets = np.zeros(size, np.int32), np.full(size, -1, np.int32)
        inputs[: len(stretch) - 1], targets[: len(stretch) - 1] = stretch[:-1], stretch[1:]
        yield inputs.reshape(batch_size, window), targets.reshape(batch_size, window)


def target_bytes(targets: np.ndarray, bytes_per_token: np.ndarray) -> int:
    """Bytes of text that the targets stand for; negative targets are left out."""
    return int(bytes_per_token[targets[targets >= 0]].sum())


@lru_cache(maxsize=2)
def _window_order(seed: int, stage: str, count: int, epoch: int) -> np.ndarray:
    order = permutation(seed, f"order of {stage} windows", count, epoch)
    order.flags.writeable = False
    return order
