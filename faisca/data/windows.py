"""Titles to token ids, and token ids to batches of windows.

All titles of a split stand one after another in a flat array, each followed by end-of-text; a
training window is any stretch of it. Which windows a step sees is a pure function of the step,
so a resumed run needs no state of a data loader. Tokenising is done once for the same titles
and tokenizer: the array is kept in a cache folder and mapped into memory, not read.
"""

import hashlib
import logging
import math
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import platformdirs
import pyarrow as pa

from faisca.data.headlines import text_buffers
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.streams import permutation

FORMAT = b"faisca tokens 1"
CHUNK = 4096  # titles between reports of progress

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def tokenise(
    titles: pa.Array, tokenizer: Tokenizer, *, progress: Progress | None = None, cache: Path | None = None
) -> np.ndarray:
    """Ids of all titles, end-of-text after each: uint16 where the vocabulary fits, else uint32; read-only.

    `progress(done, total)` counts titles; it is not called where the cache has the ids. `cache` is
    the folder to use instead of FAISCA_CACHE_DIR or the user's own; raises FaiscaError where it
    cannot be written.
    """
    folder = cache or Path(os.environ.get("FAISCA_CACHE_DIR") or platformdirs.user_cache_dir("faisca"))
    path = folder / f"{_key(titles, tokenizer)}.npy"
    if path.exists():
        try:
            return _read(path)
        except (OSError, ValueError) as error:
            log.warning("token cache %s is damaged (%s): tokenising again", path, error)
    tokens = _encode_all(titles, tokenizer, progress)
    try:
        _write(path, tokens)
        return _read(path)
    except OSError as error:
        raise FaiscaError(
            f"the token cache {folder} cannot be written ({error.strerror or error}): set FAISCA_CACHE_DIR "
            "to a folder that can"
        ) from error


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


def steps_per_epoch(windows: Windows, batch_size: int) -> int:
    """Full batches in one pass; the rest is dropped. Raises FaiscaError where there is none."""
    if batch_size > len(windows):
        raise FaiscaError(
            f"batch_size {batch_size} is more than the {len(windows)} training windows: use at most "
            f"{len(windows)}, a smaller --data.window or --data.stride, or more titles"
        )
    return len(windows) // batch_size


def training_batch(
    windows: Windows, *, batch_size: int, seed: int, stage: str, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a step (from 0): int32 [B, T]. Each epoch has an order of its own."""
    epoch, batch = divmod(step, steps_per_epoch(windows, batch_size))
    order = _window_order(seed, stage, len(windows), epoch)
    return windows.batch(order[batch * batch_size : (batch + 1) * batch_size])


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


def _key(titles: pa.Array, tokenizer: Tokenizer) -> str:
    """SHA-256 of what determines the ids; how Arrow slices or chunks the titles does not matter."""
    data, starts = text_buffers(titles)
    digest = hashlib.sha256(FORMAT + bytes.fromhex(tokenizer.fingerprint))
    digest.update(starts.data)
    digest.update(data.data)
    return digest.hexdigest()


def _encode_all(titles: pa.Array, tokenizer: Tokenizer, progress: Progress | None) -> np.ndarray:
    """Chunks of titles on all cores: the library lets go of Python's lock while it encodes."""
    begins = range(0, len(titles), CHUNK)
    dtype = np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.uint32
    parts = [np.empty(0, dtype)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        encoded = pool.map(lambda begin: tokenizer.encode_titles(titles.slice(begin, CHUNK).to_pylist()), begins)
        for begin, ids in zip(begins, encoded, strict=True):
            parts.append(ids.astype(dtype))
            if progress is not None:
                progress(min(begin + CHUNK, len(titles)), len(titles))
    return np.concatenate(parts)


def _write(path: Path, tokens: np.ndarray) -> None:
    """A .npy file with the SHA-256 of its ids behind them; it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            np.save(file, tokens)
            file.write(_checksum(tokens))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> np.ndarray:
    tokens = np.asarray(np.lib.format.open_memmap(path, mode="r"))
    checksum = _checksum(tokens)
    with path.open("rb") as file:
        file.seek(-len(checksum), os.SEEK_END)
        if file.read() != checksum:
            raise ValueError("its ids do not match its checksum")
    return tokens


def _checksum(tokens: np.ndarray) -> bytes:
    return hashlib.sha256(tokens.data).digest()
