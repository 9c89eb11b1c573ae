"""Weights & Biases; without a network `WANDB_MODE=offline`, and `wandb sync` later."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from faisca.trackers.tracker import PROJECT, Opening


def open_record(opening: Opening) -> "Online":
    """A run of its, or the same again; its files are in RUN/wandb."""
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=opening.name,
        id=opening.id or None,
        resume="allow",
        dir=str(opening.folder),
        config={**opening.config},
        allow_val_change=True,
        settings=wandb.Settings(console="off"),  # the terminal stays the run's own
    )
    return Online(run)


class Online:
    """Its run, as a `Tracker`."""

    def __init__(self, run: Any) -> None:
        self._run, self.id = run, str(run.id)
        self._stages: set[str] = set()

    def numbers(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One row; each stage counts its own steps."""
        self._log(stage, step, values)

    def texts(self, stage: str, step: int, texts: list[str]) -> None:
        """A table."""
        rows = [[step, text] for text in texts]
        self._log(stage, step, {"samples": wandb.Table(columns=["step", "sample"], data=rows)})

    def picture(self, name: str, file: Path) -> None:
        """An image."""
        self._run.log({name: wandb.Image(str(file))})

    def close(self, *, finished: bool) -> None:
        """Waits until everything is on its way."""
        self._run.finish(exit_code=0 if finished else 1)

    def _log(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/step": step} | {f"{stage}/{name}": value for name, value in values.items()})
