"""Titles to token ids, once: the ids are kept in a cache folder and mapped into memory, not read.

All titles of a split stand one after another in a flat array, each followed by end-of-text. The
name of a cache file is a hash of all that determines its ids, so nothing in it can be out of date.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import platformdirs
import pyarrow as pa

from faisca.data.headlines import text_buffers
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError

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


def _key(titles: pa.Array, tokenizer: Tokenizer) -> str:
    """SHA-256 of what determines the ids; how Arrow slices or chunks the titles does not matter."""
    data, starts = text_buffers(titles)
    digest = hashlib.sha256(FORMAT + bytes.fromhex(tokenizer.fingerprint) + tokenizer.end_of_text.to_bytes(4))
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
