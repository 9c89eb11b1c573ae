"""What a run wrote, over time: headlines before, along and after each stage, and GRPO's best and worst completions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from faisca.report.recorded import Record, Recorded, is_number
from faisca.text import one_line

MOST_MOMENTS = {"pretrain": 5, "sft": 5, "grpo": 3}
"""moments along a stage that are shown, spread over all there are"""
MOST_TEXTS = 6
"""headlines of a moment that are shown"""
TITLES = {"pretrain": "Pre-training", "sft": "Fine-tuning", "grpo": "GRPO"}


@dataclass(frozen=True)
class Moment:
    """What the model wrote at a step."""

    when: str
    texts: list[tuple[str, str]]
    """a note, such as the reward, and the headline"""


@dataclass(frozen=True)
class Column:
    """A stage's moments, oldest first."""

    stage: str
    title: str
    moments: list[Moment]
    left_out: int
    """moments along the way that are not shown"""


def columns(run: Recorded) -> list[Column]:
    """The stages of a run side by side; those that wrote nothing are left out."""
    found = []
    shown: list[str] = []
    for stage in run.stages:
        before, after = _ends(run, stage)
        along = _along(run.of_stage(stage))
        kept = [along[i] for i in _spread(len(along), MOST_MOMENTS[stage])]
        moments = [_moment("before", before)] if before and before != shown else []
        moments += kept + ([_moment("after", after)] if after else [])
        if moments:
            found.append(Column(stage, TITLES[stage], moments, len(along) - len(kept)))
        shown = after
    return found


def _ends(run: Recorded, stage: str) -> tuple[list[str], list[str]]:
    """Headlines before and after a stage; one under way has only those before."""
    if entry := run.entry(stage):
        return entry.get("samples_before") or [], entry.get("samples_after") or []
    progress = run.state.progress if run.state else None
    under_way = progress is not None and progress.stage == stage and progress.before is not None
    return (list(progress.before.samples) if under_way and progress and progress.before else []), []


def _moment(when: str, texts: list[str]) -> Moment:
    shown = [("", one_line(text)) for text in texts[:MOST_TEXTS]]
    return Moment(when if len(texts) <= MOST_TEXTS else f"{when}, {MOST_TEXTS} of {len(texts)}", shown)


def _along(records: list[Record]) -> list[Moment]:
    moments = []
    for record in records:
        when = f"step {record['step']}"
        if texts := record.get("samples"):
            moments.append(_moment(when, texts))
        elif extremes := [_extreme(name, record[name]) for name in ("best", "worst") if name in record]:
            same = len({text for _, text in extremes}) == 1
            moments.append(Moment(when, extremes[:1] if same else extremes))
        elif text := record.get("sample"):  # an older version's, the best alone
            moments.append(Moment(when, [(f"best, mean reward {_short(record.get('reward_mean'))}", one_line(text))]))
    return moments


def _extreme(name: str, extreme: dict[str, Any]) -> tuple[str, str]:
    return f"{name}, reward {_short(extreme.get('reward'))}", one_line(str(extreme.get("text", "")))


def _short(reward: Any) -> str:
    return f"{reward:.3g}" if is_number(reward) else "unknown"


def _spread(count: int, most: int) -> list[int]:
    """Which of so many are shown: the first, the last, and others evenly between."""
    return sorted({round(float(i)) for i in np.linspace(0, count - 1, min(count, most))}) if count else []
