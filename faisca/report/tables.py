"""The tables of a report: what stages came to, where time and memory went, certificates, machines, and options."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from faisca.config import Config
from faisca.config.files import load_preset, sections_of
from faisca.errors import FaiscaError
from faisca.report.numbers import duration, scientific
from faisca.report.recorded import Record, Recorded, is_number
from faisca.report.samples import TITLES
from faisca.runs.summary import summary_rows
from faisca.text import format_bytes

PARTS = {"seconds_rollout": "rollout", "seconds_scoring": "scoring", "seconds_update": "update"}


@dataclass(frozen=True)
class Outcome:
    """The table of measures: a row a measure, columns by stage and run."""

    stages: list[str]
    columns: list[tuple[int, str]]
    """run and stage of each column"""
    rows: list[tuple[str, list[str]]]


def outcome(runs: list[Recorded]) -> Outcome:
    """The measures of all finished stages; runs of a stage stand side by side."""
    tables = [_summary(run) for run in runs]
    stages = [stage for stage in TITLES if any(run.entry(stage) for run in runs)]
    columns = [(i, stage) for stage in stages for i, run in enumerate(runs) if run.entry(stage)]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [tables[i].get(name, {}).get(stage, "–") for i, stage in columns]) for name in names]
    return Outcome(stages, columns, rows)


def _summary(run: Recorded) -> dict[str, dict[str, str]]:
    """A run's measures as texts, by name and stage."""
    header, *rows = summary_rows({**run.facts, "stages": run.entries})
    return {name: dict(zip(header[1:], cells, strict=True)) for name, *cells in rows} if run.entries else {}


# --- time and memory ----------------------------------------------------------------------------


@dataclass(frozen=True)
class StageCost:
    """What a stage took."""

    title: str
    seconds: float
    """all of it, from the end of what was before"""
    parts: list[tuple[str, float]]
    """what is known of the seconds, the rest last"""
    tokens_per_second: float | None
    peak_bytes: int | None
    peak_kind: str
    skipped: int

    @property
    def bar(self) -> list[tuple[str, float, str]]:
        """Each part's class, size and words; the rest is the last."""
        last = len(self.parts) - 1
        words = [(name, size, f"{name} {duration(size)}") for name, size in self.parts]
        return [("rest" if i == last else f"part{i}", size, text) for i, (_, size, text) in enumerate(words)]


def costs(run: Recorded) -> list[StageCost]:
    """Each stage's, in turn."""
    found, before = [], 0.0
    for stage in run.stages:
        seconds = [record["seconds"] for record in run.of_stage(stage) if is_number(record.get("seconds"))]
        ended = max([before, *seconds])
        found.append(_cost(run, stage, ended - before))
        before = ended
    return found


def _cost(run: Recorded, stage: str, seconds: float) -> StageCost:
    entry = run.entry(stage) or _under_way(run, stage)
    records = run.of_stage(stage)
    steps = float(entry.get("seconds") or 0.0)
    parts = [(words, sum(r[key] for r in records if is_number(r.get(key)))) for key, words in PARTS.items()]
    known = parts if any(size for _, size in parts) else [("steps", steps)]
    rest = max(0.0, seconds - sum(size for _, size in known))
    return StageCost(
        TITLES[stage],
        seconds,
        [*known, ("measuring, saving and the rest", rest)],
        entry.get("tokens_per_second"),
        entry.get("peak_memory_bytes"),
        entry.get("peak_memory_kind") or "",
        int(entry.get("skipped_steps", entry.get("skipped", 0)) or 0),
    )


def _under_way(run: Recorded, stage: str) -> dict[str, Any]:
    """What the newest checkpoint knows of a stage that is not finished."""
    progress = run.state.progress if run.state else None
    if progress is None or progress.stage != stage:
        return {}
    known = vars(progress) | {"peak_memory_bytes": progress.peak_memory_bytes or None}
    return known | {"tokens_per_second": progress.tokens / progress.seconds if progress.seconds else None}


def folder_bytes(run: Recorded) -> int:
    """What the run takes on disk."""
    return sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())


# --- certificates and machines ------------------------------------------------------------------


def certificates(run: Recorded) -> list[tuple[str, Record]]:
    """The verdict before each stage that had one: of the summary, or of the log where the stage is not finished."""
    found = {entry["stage"]: entry["certificate"] for entry in run.entries if "certificate" in entry}
    logged = {record["stage"]: record["certificate"] for record in run.records if "certificate" in record}
    return [(TITLES[stage], verdict) for stage, verdict in {**logged, **found}.items()]


def machine_rows(run: Recorded) -> list[tuple[str, str]]:
    """What computed a run: the machine where it is known, then what the checkpoint says."""
    rows = [("backend", run.backend), ("device", run.device)]
    if run.state:
        rows.append(("dtype", run.state.dtype))
        rows += [("imported from", run.state.ported_from)] if run.state.ported_from else []
    for key, value in (run.machine or {}).items():
        if key == "memory_bytes":
            rows.append(("memory", format_bytes(value)))
        elif isinstance(value, (str, int, float)) and key != "python":
            rows.append((key.replace("_", " "), str(value)))
    return rows + [(name, version) for name, version in (run.state.versions if run.state else {}).items()]


# --- configuration ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """An option in all runs."""

    name: str
    values: list[str]
    presets: list[str]
    """what each run's preset has"""

    @property
    def changed(self) -> list[bool]:
        """Whether each run's value is another than its preset's."""
        return [value != preset for value, preset in zip(self.values, self.presets, strict=True)]

    @property
    def differs(self) -> bool:
        """Whether the option is worth a look: not all as in the preset, or not the same in all runs."""
        return any(self.changed) or len(set(self.values)) > 1


def options(runs: list[Recorded]) -> dict[str, list[Option]]:
    """Every option by section, of the runs whose configuration is known."""
    configs = [run.config for run in runs if run.config]
    presets = [preset_of(config) for config in configs]
    sections: dict[str, list[Option]] = {}
    for section, name in _names(configs[0]) if configs else ():
        values = [_words(getattr(getattr(config, section), name)) for config in configs]
        wanted = [
            _words(getattr(getattr(preset, section), name)) if preset else value
            for preset, value in zip(presets, values, strict=True)
        ]
        sections.setdefault(section, []).append(Option(name, values, wanted))
    return sections


def preset_of(config: Config) -> Config | None:
    """The preset that a configuration started from; None where this version has none of the name."""
    try:
        return load_preset(config.preset)
    except FaiscaError:
        return None


def _names(config: Config) -> Iterator[tuple[str, str]]:
    for section, values in sections_of(config).items():
        if section != "preset":
            yield from ((section, name) for name in vars(values))


def _words(value: Any) -> str:
    """A value as it is typed; what is empty is seen."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        scientific(value)
        if isinstance(value, float) and 0 < abs(value) < 1e-3
        else f"{value:g}"
        if isinstance(value, float)
        else str(value) or '""'
    )
