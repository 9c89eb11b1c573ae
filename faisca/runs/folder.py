"""A run's folder while a run writes there: for one run at a time, and with one clear line when storage fails."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from faisca.errors import FaiscaError

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
        raise FaiscaError(f"{folder} is in use by another run: wait for it, or choose another --out") from error
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
    saved = os.path.isdir(folder / "checkpoints")
    remedy = f"mend that, then continue with --resume {folder}" if saved else "choose another --out"
    return FaiscaError(f"{error.filename or folder} cannot be written ({error.strerror}): {remedy}")
