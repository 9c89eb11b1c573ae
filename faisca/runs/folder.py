"""A run's folder while a run writes there: for one run at a time, and with one clear line when storage fails."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from faisca.errors import FaiscaError
from faisca.runs.pointers import way_on

STORAGE_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "EEXIST", "ENOTDIR")
    if hasattr(errno, name)  # Windows has no EDQUOT
}
"""what a full, read-only or broken disk raises; any other OSError is a bug of ours"""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep `folder`, made if need be, for this run; FaiscaError where another has it or it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise FaiscaError(
            f"{folder} is in use by another run: wait for it, or begin a new run with another --out"
        ) from error
    except OSError as error:  # whatever the reason: a folder of /proc, a name too long, a disk that is full
        raise _cannot_be_written(folder, error) from error
    try:
        with held:
            yield
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        raise _cannot_be_written(folder, error) from error


def _cannot_be_written(folder: Path, error: OSError) -> FaiscaError:
    return FaiscaError(f"{error.filename or folder} cannot be written ({error.strerror}): {way_on(folder)}")
