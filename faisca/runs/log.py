"""What a run says and what it measures: the console, and `metrics.jsonl` in the run's folder.

Metrics are one JSON object a line. A checkpoint records how many bytes of them there were, and
their SHA-256; a resumed run cuts the file back to that, so no step is ever recorded twice.
"""

import hashlib
import json
import os
import time
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from faisca.errors import FaiscaError
from faisca.system.output import LastingOutput
from faisca.system.progress_bar import Tracker, track
from faisca.system.tables import PlainConsole
from faisca.text import explained, json_text

METRICS = "metrics.jsonl"


class RunLog:
    """The console and `metrics.jsonl` of a run; a context manager that closes the file.

    `metrics_bytes` of the file are kept (0 starts anew), and must match `metrics_sha256` where it is
    given; `seconds_before` is the time that the run had taken when its checkpoint was written. A
    file that is shorter or differs is a FaiscaError; one that is missing is begun anew, and said to be.
    """

    def __init__(
        self,
        folder: Path,
        *,
        metrics_bytes: int = 0,
        metrics_sha256: str | None = None,
        seconds_before: float = 0.0,
    ) -> None:
        self.output = LastingOutput()
        self.console = PlainConsole(file=self.output)
        path = folder / METRICS
        if metrics_bytes and not path.exists():
            self.say(f"{path} is missing: it begins anew, without what was measured so far")
            metrics_bytes = 0
        self._metrics, self._digest = _open_metrics(path, metrics_bytes, metrics_sha256)
        self._began = time.monotonic() - seconds_before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self._metrics.close()

    @property
    def seconds(self) -> float:
        """Time that the run has taken, that before its checkpoint included."""
        return time.monotonic() - self._began

    def say(self, text: str, *, whole: bool = False) -> None:
        """Print a line, above the live bar if there is one.

        A terminal gets it broken at words, unless it is to stay `whole`, as a command to copy is.
        """
        self.console.print(text, soft_wrap=whole or not self.console.is_terminal)

    def record(self, *, stage: str, step: int, **measured: Any) -> None:
        """Append one object to `metrics.jsonl`; numbers that are not finite become null, see `explained`."""
        line = {"stage": stage, "step": step, "seconds": round(self.seconds, 3)} | measured
        self._write(json_text(explained(line)).encode() + b"\n")

    def flush(self) -> int:
        """Put everything recorded on disk; returns the size of `metrics.jsonl` in bytes."""
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    @property
    def metrics_sha256(self) -> str:
        """The checksum of everything recorded, in hexadecimal."""
        return self._digest.hexdigest()

    def track(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Tracker]:
        """Show progress towards `total` on the console; `done` is where a resumed run begins."""
        return track(self.console, label, total, done)

    def _write(self, content: bytes) -> None:
        self._digest.update(content)
        while content:  # a disk that is almost full takes a part, and the rest raises
            content = content[self._metrics.write(content) :]


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records in a run's `metrics.jsonl`, oldest first; a last line still being written is left out."""
    path = folder / METRICS
    if not path.is_file():
        raise FaiscaError(f"{folder} has no {METRICS}: name a run directory")
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse_record(path, number, line) for number, line in enumerate(lines, start=1)]


def _open_metrics(path: Path, size: int, wanted: str | None) -> tuple[FileIO, "hashlib._Hash"]:
    """The file, cut to `size`, and the checksum of what is kept; unbuffered: nothing is left to fail at the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise FaiscaError(f"{path} cannot be written ({error.strerror}): choose another folder") from error
    file.seek(0)
    kept = file.readall()[:size]
    digest = hashlib.sha256(kept)
    damage = None
    if len(kept) < size:
        damage = f"has {len(kept)} bytes, but its checkpoint was written after {size}"
    elif size and wanted not in (None, digest.hexdigest()):
        damage = f"is not as it was when its checkpoint was written: its first {size} bytes have changed"
    if damage:
        file.close()
        raise FaiscaError(f"{path} {damage}: put the whole file back, or move it away to go on without it")
    file.truncate(size)
    file.seek(size)
    return file, digest


def _parse_record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise FaiscaError(f"{path} line {number} is not a JSON object: restore the file, or remove the line")
    return record
