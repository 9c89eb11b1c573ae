"""What a tracker is to a run: five things that it can be told. Which there are, and what they need."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from faisca.errors import FaiscaError
from faisca.system.packages import importable

PROJECT = "faisca"
"""under which trackers list runs, unless their own variable says otherwise"""


class Tracker(Protocol):
    """A record that is open. Steps count within a stage; a resumed run tells some again, with the same numbers."""

    id: str
    """what opens the same record again"""

    def numbers(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """What was measured, by names that all trackers take."""

    def texts(self, stage: str, step: int, texts: list[str]) -> None:
        """Samples."""

    def picture(self, name: str, file: Path) -> None:
        """A chart, a PNG file."""

    def close(self, *, finished: bool) -> None:
        """The run has ended, as it should or not; everything told is in the record at return."""


@dataclass(frozen=True)
class Opening:
    """What a record begins with, or goes on with."""

    folder: Path
    """the run's"""
    config: Mapping[str, Any]
    """every option, by SECTION.OPTION"""
    id: str = ""
    """of the record to go on with; empty begins one"""

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.folder.resolve().name


@dataclass(frozen=True)
class Row:
    """What is known of a tracker before it is imported."""

    module: str
    """that it needs"""
    package: str
    """that has it"""


TRACKERS = {
    "trackio": Row("trackio", "trackio"),
    "wandb": Row("wandb", "wandb"),
    "tensorboard": Row("tensorboardX", "tensorboardX tensorboard"),
    "mlflow": Row("mlflow", "mlflow-skinny"),
}


def check_tracker(name: str) -> None:
    """FaiscaError where the library of `run.tracker` is not installed."""
    row = TRACKERS.get(name)
    if row and not importable(row.module):
        raise FaiscaError(
            f"run.tracker {name} needs {row.module}, which is not installed: pip install {row.package}, "
            "or --run.tracker none"
        )


def open_tracker(name: str, opening: Opening) -> Tracker:
    """Begin a record, or go on with one."""
    opened: Callable[[Opening], Tracker] = import_module(f"faisca.trackers.{name}").open_record
    return opened(opening)


def plain_name(name: str) -> str:
    """A measure's name as all trackers take it: a reward's may hold anything, a path for one."""
    parts = (re.sub(r"[^\w.-]", "_", part) for part in name.split("/") if part.strip("."))
    return "/".join(parts)
