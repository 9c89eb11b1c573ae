"""A run in few words: what it is, how far it came, and the three numbers that say what its stages did."""

from dataclasses import dataclass

from faisca.config import plain
from faisca.parameters import count_parameters
from faisca.report.numbers import duration, engineering
from faisca.report.recorded import Recorded
from faisca.report.samples import TITLES
from faisca.report.tables import outcome
from faisca.runs.state import IMPORTED
from faisca.text import titles_name

LABELS = {"football share": "completions about football", "validation loss (nats)": "validation loss, nats per token"}


@dataclass(frozen=True)
class Highlight:
    """What a stage is for, before and after it."""

    title: str
    label: str
    before: str
    after: str


def highlights(run: Recorded) -> list[Highlight]:
    """Of each finished stage the measure that it is for."""
    table = outcome([run])
    kind = titles_name(str(run.facts.get("sft_url_contains", ".pt/")))
    aims = {
        "pretrain": ("validation loss (nats)",),
        "sft": (f"{kind} validation loss",),
        "grpo": ("football share", "reward"),
    }
    found = []
    for place, (_, stage) in enumerate(table.columns):
        for name, cells in table.rows:
            before, arrow, after = cells[place].partition(" → ")
            if arrow and name.startswith(aims[stage]):
                found.append(Highlight(TITLES[stage], LABELS.get(name, name), before, after))
                break
    return found


def named(run: Recorded) -> list[str]:
    """What a run is, in facts that stand under its name."""
    imported = run.backend == IMPORTED
    parts = [f"preset {run.preset}"]
    parts.append("imported" if imported else f"{run.backend} on {run.device}")
    size = run.facts.get("parameters") or (count_parameters(plain(run.state.model)) if run.state else None)
    if size:
        parts.append(f"{engineering(size)} parameters")
    if run.config:
        parts.append(f"seed {run.config.run.seed}")
    if run.records:
        parts.append(f"{duration(run.seconds)} in all")
    return parts


def status(run: Recorded) -> str:
    """How far an unfinished run is; nothing of one that is finished."""
    if not run.unfinished or run.state is None:
        return "" if run.entries or not run.records else "It has no checkpoint: this is what it recorded."
    progress = run.state.progress
    steps = f"step {progress.step:,}" + (f" of {progress.total_steps:,}" if progress.total_steps else "")
    what = f"the end of {progress.stage}" if run.state.finished else f"{progress.stage}, {steps}"
    return f"Not finished: its newest checkpoint is at {what}."
