"""trackio: SQLite on this machine, `trackio show` for a page; nothing leaves it unless its own variables say so."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio

from faisca.trackers.tracker import PROJECT, Opening


def open_record(opening: Opening) -> "Local":
    """A run of its, or the same again, known by its name: so each run has one of its own."""
    id = opening.id or f"{opening.name}-{uuid.uuid4().hex[:8]}"
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    beside = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
    run = trackio.init(project=project, name=id, config={**opening.config}, resume="allow", **beside)
    return Local(run, id)


class Local:
    """Its run, as a `Tracker`."""

    def __init__(self, run: Any, id: str) -> None:
        self._run, self.id = run, id

    def numbers(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def texts(self, stage: str, step: int, texts: list[str]) -> None:
        """One text, a paragraph a sample."""
        self._run.log({f"{stage}/samples": trackio.Markdown("\n\n".join(texts))}, step=step)

    def picture(self, name: str, file: Path) -> None:
        """An image."""
        self._run.log({name: trackio.Image(str(file))})

    def close(self, *, finished: bool) -> None:
        """Waits until everything is written."""
        self._run.finish()
