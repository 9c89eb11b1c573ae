"""Files that are whole or absent, whatever crashes in between."""

import os
from collections.abc import Iterable
from pathlib import Path

from faisca.errors import FaiscaError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or none of it: readers see the old content until the new is on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_flushed(temporary, [content])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_flushed(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file, piece by piece, and wait until it is on disk."""
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_named(option: str, path: Path, content: bytes) -> None:
    """Write a file that an option names; FaiscaError where that cannot be."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise FaiscaError(f"{option} {path} cannot be written ({error.strerror}): name another file") from error
