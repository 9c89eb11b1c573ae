"""What a run says and what it measures: the console, `metrics.jsonl` and `completions.jsonl` in the run's folder.

Both have a JSON object a line. A checkpoint records how many bytes of them there were, and their SHA-256; a resumed
run cuts the files back to that, so no step is ever recorded twice.
"""

import hashlib
import json
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from faisca.errors import FaiscaError
from faisca.system.output import LastingOutput
from faisca.system.progress_bar import Tracker, track
from faisca.system.tables import PlainConsole
from faisca.text import explained, json_text
from faisca.trackers.following import Following

METRICS = "metrics.jsonl"
COMPLETIONS = "completions.jsonl"


class RunLog:
    """The console and the files of a run; a context manager that closes them.

    `metrics_bytes` of the file are kept (0 starts anew), and must match `metrics_sha256` where it is
    given; so for completions. `seconds_before` is the time that the run had taken when its checkpoint was
    written. A file that is shorter or differs is a FaiscaError; one that is missing is begun anew, and said to be.
    """

    def __init__(
        self,
        folder: Path,
        *,
        metrics_bytes: int = 0,
        metrics_sha256: str | None = None,
        completions_bytes: int = 0,
        completions_sha256: str | None = None,
        seconds_before: float = 0.0,
    ) -> None:
        self.output = LastingOutput()
        self.console = PlainConsole(file=self.output)
        self._folder = folder
        kept = {METRICS: (metrics_bytes, metrics_sha256), COMPLETIONS: (completions_bytes, completions_sha256)}
        for name, (size, _) in kept.items():
            if size and not (folder / name).exists():
                self.say(f"{folder / name} is missing: it begins anew, without what was recorded so far")
                kept[name] = (0, None)
        self._metrics = _Lines(folder / METRICS, *kept[METRICS])
        exists = (folder / COMPLETIONS).exists()  # it is only made where there are completions
        self._completions = _Lines(folder / COMPLETIONS, *kept[COMPLETIONS]) if exists else None
        self._began = time.monotonic() - seconds_before
        self.following: Following | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.following is not None:
            self.following.end(finished=kind is None)
        self.flush()
        for lines in filter(None, (self._metrics, self._completions)):
            lines.close()

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
        line = explained({"stage": stage, "step": step, "seconds": round(self.seconds, 3)} | measured)
        self._metrics.append([line])
        if self.following is not None:
            self.following.take(line)

    def record_completions(self, rows: list[dict[str, Any]]) -> None:
        """Append objects to `completions.jsonl`, numbers that are not finite as null."""
        if self._completions is None:
            self._completions = _Lines(self._folder / COMPLETIONS)
        self._completions.append(rows)

    def records(self) -> list[dict[str, Any]]:
        """Everything in `metrics.jsonl` so far, oldest first."""
        return read_records(self._folder)

    def flush(self) -> int:
        """Put everything recorded on disk; returns the size of `metrics.jsonl` in bytes."""
        if self._completions is not None:
            self._completions.flush()
        return self._metrics.flush()

    @property
    def metrics_sha256(self) -> str:
        """The checksum of everything recorded, in hexadecimal."""
        return self._metrics.sha256

    @property
    def completions_bytes(self) -> int:
        """The size of `completions.jsonl`; 0 where there is none."""
        return 0 if self._completions is None else self._completions.flush()

    @property
    def completions_sha256(self) -> str | None:
        """Its checksum."""
        return None if self._completions is None else self._completions.sha256

    def track(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Tracker]:
        """Show progress towards `total` on the console; `done` is where a resumed run begins."""
        return track(self.console, label, total, done)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records in a run's `metrics.jsonl`, oldest first; a last line still being written is left out."""
    path = folder / METRICS
    if not path.is_file():
        raise FaiscaError(f"{folder} has no {METRICS}: name a run directory")
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse_record(path, number, line) for number, line in enumerate(lines, start=1)]


class _Lines:
    """A file of JSON lines, cut to `size`, whose checksum is to be `wanted`; unbuffered: nothing fails at the end."""

    def __init__(self, path: Path, size: int = 0, wanted: str | None = None) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise FaiscaError(f"{path} cannot be written ({error.strerror}): choose another folder") from error
        self._file.seek(0)
        kept = self._file.readall()[:size]
        self._digest = hashlib.sha256(kept)
        damage = None
        if len(kept) < size:
            damage = f"has {len(kept)} bytes, but its checkpoint was written after {size}"
        elif size and wanted not in (None, self.sha256):
            damage = f"is not as it was when its checkpoint was written: its first {size} bytes have changed"
        if damage:
            self._file.close()
            raise FaiscaError(f"{path} {damage}: put the whole file back, or move it away to go on without it")
        self._file.truncate(size)
        self._file.seek(size)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def append(self, objects: list[dict[str, Any]]) -> None:
        """Add a line each."""
        content = "".join(f"{json_text(one)}\n" for one in objects).encode()
        self._digest.update(content)
        while content:  # a disk that is almost full takes a part, and the rest raises
            content = content[self._file.write(content) :]

    def flush(self) -> int:
        """Put everything on disk; returns the size in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _parse_record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise FaiscaError(f"{path} line {number} is not a JSON object: restore the file, or remove the line")
    return record
