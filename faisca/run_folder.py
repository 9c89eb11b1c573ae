"""A run's folder: written by one run at a time, with one clear line when storage fails; and which folders there are."""

import errno
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

SHOWN = 5
"""runs that an error lists"""


def known_runs(path: Path) -> str:
    """For an error about a run that does not exist: the runs beside it, or in `runs`, newest first; else nothing."""
    beside = [] if path.exists() else [*path.parent.glob("*/checkpoints"), *Path("runs").glob("*/checkpoints")]
    runs = sorted({folder.parent for folder in beside}, key=lambda run: run.stat().st_mtime, reverse=True)
    return f"; there are {', '.join(map(str, runs[:SHOWN]))}" if runs else ""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep `folder`, made if need be, for this run; FaiscaError where another has it or it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise FaiscaError(f"{folder} is in use by another run: wait for it, or choose another --out") from error
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        saved = (folder / "checkpoints").is_dir()
        remedy = f"mend that, then continue with --resume {folder}" if saved else "choose another --out"
        raise FaiscaError(f"{error.filename or folder} cannot be written ({error.strerror}): {remedy}") from error
