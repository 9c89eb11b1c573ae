"""What a run records, told to a tracker as well; its id stays in the run's folder, for a resumed run to go on there."""

import json
import math
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from faisca.system.files import write_atomically
from faisca.text import in_one_line, json_text
from faisca.trackers.tracker import Opening, Tracker, open_tracker, plain_name

FILE = "tracker.json"
"""in the run's folder: the tracker and the id of its record"""


def follow(
    name: str, folder: Path, config: Mapping[str, Any], resumed: bool, say: Callable[[str], None]
) -> "Following | None":
    """What follows a run for `run.tracker`; `say` tells of it, and of its failure."""
    return None if name == "none" else Following(name, folder, config, resumed=resumed, say=say)


class Following:
    """A tracker that follows a run: opened with the first number, and left alone once it has failed."""

    def __init__(
        self, name: str, folder: Path, config: Mapping[str, Any], *, resumed: bool, say: Callable[[str], None]
    ) -> None:
        self._name, self._folder, self._config, self._resumed, self._say = name, folder, config, resumed, say
        self._tracker: Tracker | None = None
        self._failed = False

    def take(self, record: Mapping[str, Any]) -> None:
        """A record of `metrics.jsonl`: its numbers, and its samples."""
        stage, step = str(record["stage"]), int(record["step"])
        values = {plain_name(name): value for name, value in _numbers(record)}
        if values:
            self._tell(lambda tracker: tracker.numbers(stage, step, values))
        if texts := _texts(record):
            self._tell(lambda tracker: tracker.texts(stage, step, texts))

    def end(self, *, finished: bool) -> None:
        """The run has ended: its charts, and the end of the record."""
        if self._tracker is None:
            return
        for chart in sorted(self._folder.glob("charts/*.png")):
            self._tell(lambda tracker, chart=chart: tracker.picture(f"charts/{chart.stem}", chart))  # type: ignore[misc]
        self._tell(lambda tracker: tracker.close(finished=finished))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        if self._failed:
            return
        try:
            if self._tracker is None:
                self._tracker = self._open()
            what(self._tracker)
        except Exception as error:  # networks, accounts, disks: each tracker fails in ways of its own
            self._failed = True
            words = in_one_line(error)
            self._say(
                f"tracker {self._name} failed ({words}): the run goes on without it, metrics.jsonl has everything"
            )

    def _open(self) -> Tracker:
        file, id = self._folder / FILE, ""
        if self._resumed and file.exists():
            known = json.loads(file.read_text(encoding="utf-8"))
            id = known["id"] if known["tracker"] == self._name else ""
        tracker = open_tracker(self._name, Opening(self._folder, _flat(self._config), id))
        write_atomically(file, json_text({"tracker": self._name, "id": tracker.id}).encode())
        how = "goes on with" if id else "is"
        self._say(f"tracker {self._name}: the record {how} {tracker.id}")
        return tracker


def _numbers(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What was measured, where it is finite: NAME_is in `metrics.jsonl` says what the others were."""
    known = ((name, value) for name, value in record.items() if name not in ("stage", "step"))
    return [(name, float(value)) for name, value in known if isinstance(value, Real) and math.isfinite(value)]


def _texts(record: Mapping[str, Any]) -> list[str]:
    """Samples of a stage, or GRPO's best and worst completion."""
    named = [
        f"{name} ({record[name]['reward']}): {record[name]['text']}" for name in ("best", "worst") if name in record
    ]
    return [*map(str, record.get("samples", ())), *named]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    sections = {name: values if isinstance(values, dict) else {"": values} for name, values in config.items()}
    return {f"{name}.{key}".rstrip("."): value for name, values in sections.items() for key, value in values.items()}
