"""GRPO's first step and its last, completion by completion, from `completions.jsonl`: what was better than what."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faisca.errors import FaiscaError
from faisca.report.recorded import Record, Recorded, is_number
from faisca.runs.log import COMPLETIONS
from faisca.text import one_line

CHUNK = 2**19
"""bytes that are read of each end of the file, however large it is"""
MOST_ROWS = 12
"""completions of a step that are shown: the best and the worst of them where there are more"""


@dataclass(frozen=True)
class Row:
    """A completion, what it is worth, and whether it came to its end."""

    reward: str
    advantage: str
    parts: str
    """the reward of each function, where there are several"""
    prompt: str
    text: str
    ended: bool


@dataclass(frozen=True)
class Step:
    """The completions of a step, the best first."""

    step: int
    rows: list[Row]
    written: int
    """how many there were"""


def ends_of_grpo(run: Recorded) -> list[Step]:
    """The first step and the last, as far as they are on record."""
    path = run.folder / COMPLETIONS
    records = _ends(path) if os.path.isfile(path) else []
    steps = [record["step"] for record in records]
    return [_step(step, [r for r in records if r["step"] == step]) for step in dict.fromkeys((*steps[:1], *steps[-1:]))]


def _step(step: int, records: list[Record]) -> Step:
    ranked = sorted(records, key=lambda record: -_number(record.get("advantage")))
    half = MOST_ROWS // 2
    shown = ranked if len(ranked) <= MOST_ROWS else ranked[:half] + ranked[-half:]
    return Step(step, [_row(record) for record in shown], len(ranked))


def _row(record: Record) -> Row:
    advantage, parts = record.get("advantage"), record.get("rewards") or {}
    prompt = record.get("prompt")
    return Row(
        _words(record.get("reward")),
        f"{advantage:+.2f}".replace("-", "−") if is_number(advantage) else "–",
        ", ".join(f"{name} {_words(value)}" for name, value in parts.items()) if len(parts) > 1 else "",
        one_line(prompt if isinstance(prompt, str) else str((prompt or [{}])[-1].get("content", ""))),
        one_line(str(record.get("completion", ""))),
        bool(record.get("ended", True)),
    )


def _ends(path: Path) -> list[Record]:
    """The records at both ends of the file; lines that are cut there, or still being written, are left out."""
    with path.open("rb") as file:
        head, size = file.read(CHUNK), os.path.getsize(path)
        file.seek(max(CHUNK, size - CHUNK))
        tail = file.read()
    if size <= 2 * CHUNK:
        return _parsed(path, (head + tail).split(b"\n")[:-1])
    return _parsed(path, head.split(b"\n")[:-1]) + _parsed(path, tail.split(b"\n")[1:-1])


def _parsed(path: Path, lines: list[bytes]) -> list[Record]:
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise FaiscaError(f"{path} has a line that is not JSON ({error}): restore the file, or move it away") from error
    return [record for record in records if isinstance(record, dict) and is_number(record.get("step"))]


def _number(value: Any) -> float:
    return float(value) if is_number(value) else -float("inf")


def _words(value: Any) -> str:
    return f"{value:.3g}" if is_number(value) else "–"
