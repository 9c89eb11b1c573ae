"""What runs' folders say: everything that a report is made from, read once."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from faisca.config import STAGES, Config
from faisca.config.files import layered_sections
from faisca.errors import FaiscaError
from faisca.runs.checkpoint import checkpoint_folders, read_state
from faisca.runs.log import METRICS, read_records
from faisca.runs.nearby import runs_nearby
from faisca.runs.pointers import LATEST, read_pointer
from faisca.runs.state import IMPORTED, State
from faisca.runs.summary import SUMMARY, read_summary

MACHINE = "machine.json"
Record = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """A run as its folder has it, finished or not."""

    folder: Path
    name: str
    """tells it from the others of the report"""
    records: list[Record]
    """of metrics.jsonl, oldest first"""
    entries: list[Record]
    """of summary.json, one a finished stage"""
    facts: Record
    """the rest of summary.json: backend, device, preset, seed, parameters, … ; empty where nothing is finished"""
    state: State | None
    """of the newest checkpoint; None where there is none"""
    config: Config | None
    """None where neither a checkpoint nor a config.toml has it"""
    machine: Record | None
    """where it was trained, for runs of `faisca run`"""

    @cached_property
    def stages(self) -> list[str]:
        """The stages that have begun, in their order."""
        begun = {record["stage"] for record in self.records} | {entry["stage"] for entry in self.entries}
        return [stage for stage in STAGES if stage in begun]

    def of_stage(self, stage: str) -> list[Record]:
        """The records of a stage."""
        return self._by_stage.get(stage, [])

    @cached_property
    def _by_stage(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record["stage"], []).append(record)
        return found

    def entry(self, stage: str) -> Record | None:
        """A finished stage's measures."""
        return next((entry for entry in self.entries if entry["stage"] == stage), None)

    @property
    def backend(self) -> str:
        """What computed it: torch or mlx; imported where nothing was trained."""
        return self.state.backend if self.state else str(self.facts.get("backend", "unknown"))

    @property
    def device(self) -> str:
        return self.state.device if self.state else str(self.facts.get("device", "unknown"))

    @property
    def preset(self) -> str:
        return self.config.preset if self.config else str(self.facts.get("preset", "unknown"))

    @property
    def unfinished(self) -> bool:
        """Whether stages are left to do; a model that was only imported has none to finish."""
        if self.state is None or self.state.backend == IMPORTED:
            return False
        return len(self.entries) < len(self.state.config.run.stages)

    @property
    def seconds(self) -> float:
        """What the run has taken so far."""
        known = [float(record["seconds"]) for record in self.records if is_number(record.get("seconds"))]
        return max([self.state.seconds if self.state else 0.0, *known])


def read_runs(folders: Sequence[Path]) -> list[Recorded]:
    """Each run's record, named apart; FaiscaError for a folder that is no run's, and for one given twice."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        if other := seen.get(folder.resolve()):
            raise FaiscaError(f"{folder} is {other} again: name each run once")
        seen[folder.resolve()] = folder
    return [read_run(folder, name) for folder, name in zip(folders, _names(list(seen)), strict=True)]


def read_run(folder: Path, name: str) -> Recorded:
    """The record of a run; FaiscaError where the folder has nothing of one, or something broken."""
    state = _newest_state(folder)
    records = read_records(folder) if os.path.isfile(folder / METRICS) else []
    summary = read_summary(folder) if os.path.isfile(folder / SUMMARY) else {}
    if state is None and not records and not summary:
        raise FaiscaError(
            f"{folder} is no run: it has neither a checkpoint nor anything in {METRICS}; name the folder of a run"
            f"{runs_nearby(folder)}"
        )
    return Recorded(
        folder=folder,
        name=name,
        records=[_checked(record, folder) for record in records],
        entries=summary.get("stages", []) or (state.stages if state else []),
        facts={key: value for key, value in summary.items() if key != "stages"},
        state=state,
        config=state.config if state else _own_config(folder),
        machine=_machine(folder),
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _names(folders: list[Path]) -> list[str]:
    """The folders' last parts, as many as tell them apart."""
    for parts in range(1, 1 + max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _newest_state(folder: Path) -> State | None:
    """What the latest checkpoint's state says, its arrays unread."""
    if not os.path.isdir(folder / "checkpoints"):
        return None
    latest, there = folder / read_pointer(folder / LATEST), checkpoint_folders(folder)
    if not there:
        return None
    return read_state(latest if latest in there else there[-1])


def _own_config(folder: Path) -> Config | None:
    path = folder / "config.toml"
    return Config(**layered_sections(None, path)) if os.path.isfile(path) else None


def _machine(folder: Path) -> Record | None:
    path = folder / MACHINE
    if not os.path.isfile(path):
        return None
    try:
        machine = json.loads(path.read_bytes())
    except ValueError as error:
        raise FaiscaError(f"{path} is not JSON ({error}): restore it, or move it away") from error
    if not isinstance(machine, dict):
        raise FaiscaError(f"{path} is not a JSON object: restore it, or move it away")
    return machine


def _checked(record: Record, folder: Path) -> Record:
    if record.get("stage") not in STAGES or not is_number(record.get("step")):
        raise FaiscaError(
            f"{folder / METRICS} has a record of stage {record.get('stage')!r}, step {record.get('step')!r}, "
            "and there is no such step: restore the file"
        )
    return record
