"""TensorBoard: event files in the run's own folder, `tensorboard --logdir runs` shows all runs beside one another."""

import time
from collections.abc import Mapping
from pathlib import Path

from matplotlib.image import imread
from tensorboardX import SummaryWriter

from faisca.text import json_text
from faisca.trackers.tracker import Opening

FOLDER = "tensorboard"


def open_record(opening: Opening) -> "EventFiles":
    """A new event file in RUN/tensorboard; TensorBoard reads all that are there as one."""
    writer = SummaryWriter(logdir=str(opening.folder / FOLDER), filename_suffix=f".{time.time_ns()}")
    writer.add_text("config", f"```json\n{json_text(dict(opening.config), indent=2)}\n```")
    return EventFiles(writer)


class EventFiles:
    """The files, as a `Tracker`."""

    id = FOLDER

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def numbers(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def texts(self, stage: str, step: int, texts: list[str]) -> None:
        """One text, a paragraph a sample."""
        self._writer.add_text(f"{stage}/samples", "\n\n".join(texts), step)

    def picture(self, name: str, file: Path) -> None:
        """An image."""
        self._writer.add_image(name, imread(file)[..., :3], dataformats="HWC")

    def close(self, *, finished: bool) -> None:
        """Event files know no end."""
        self._writer.close()
