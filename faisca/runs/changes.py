"""What a resumed run changes: refused where nothing would follow or the weights would not fit, and else said."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from faisca.config import STAGES, Config
from faisca.config.files import sections_of
from faisca.errors import FaiscaError
from faisca.runs.state import State

MOMENTS = ("optimizer", "lora_rank", "lora_alpha", "lora_targets", "lora_dora")
"""options of a stage that decide what its optimiser remembers, and of what"""
FIXED = ("model", "tokenizer")
"""sections of the configuration that a resumed run cannot change"""
SAID_ELSEWHERE = ("run.backend", "run.device", "run.dtype", "run.stages")
MEASURED = ("url_contains", "max_validation_titles")
"""options of a stage that choose what later stages are measured on, too"""


def with_finished_stages(config: Config, state: State) -> Config:
    """`config`, whose stages are also those that the run has done already."""
    done = {entry["stage"] for entry in state.stages}
    stages = tuple(stage for stage in STAGES if stage in done or stage in config.run.stages)
    return replace(config, run=replace(config.run, stages=stages))


def stages_to_do(config: Config, state: State) -> list[str]:
    """The stages that a run in this state still has before it, the one under way included."""
    return [stage for stage in config.run.stages if not _is_over(stage, state)]


def check_changes(config: Config, state: State, folder: object) -> None:
    """FaiscaError where a run in this state cannot go on with this configuration, or would not heed it."""
    if not state.finished and state.stage not in config.run.stages:
        raise FaiscaError(f"--stages leaves out {state.stage}, in which the run stopped: name it as well")
    for name, before, now in _changes(state.config, config):
        section, _, option = name.partition(".")
        given = f"--{'seed' if name == 'run.seed' else name.replace('_', '-')} {now}"
        if section in FIXED or name == "run.seed":
            raise FaiscaError(f"{given} does not go with --resume: {folder} has {before}; start a new run with --out")
        if option in MOMENTS and section == state.stage and not state.finished:
            other = f"and {before} remembers other moments" if option == "optimizer" else f"with {before}"
            raise FaiscaError(
                f"{given} does not go with --resume: {section} is under way, {other}; "
                f"start a new run with --out, or train on with --from {folder} --out RUN"
            )
        over = _is_over(section, state) and option not in MEASURED
        if section != "run" and (over or not stages_to_do(config, state)):
            what = f"{section} is finished" if section in STAGES else "the run is finished"
            raise FaiscaError(
                f"{given} does not go with --resume: {what}, with {before}; leave it out, "
                f"or train on in a new run with --from {folder} --out RUN"
            )


def change_words(config: Config, state: State) -> list[str]:
    """A line for each value that a resumed run changes: before, now, and since when."""
    return [
        f"changed: {name} {before!r} -> {now!r}, {_since(name.partition('.')[0], state)}"
        for name, before, now in _changes(state.config, config)
    ]


def _changes(before: Config, now: Config) -> Iterator[tuple[str, Any, Any]]:
    """The name, the old and the new value of every option that differs."""
    for section, values in sections_of(now).items():
        for name, value in vars(values).items() if section != "preset" else ():
            old = getattr(getattr(before, section), name)
            if value != old and f"{section}.{name}" not in SAID_ELSEWHERE:
                yield f"{section}.{name}", old, value


def _is_over(stage: str, state: State) -> bool:
    return stage in STAGES and STAGES.index(stage) < STAGES.index(state.stage) + state.finished


def _since(section: str, state: State) -> str:
    if section == state.stage and not state.finished:
        return f"from step {state.step + 1} on"
    if section in STAGES and not _is_over(section, state):
        return f"before {section} begins"
    return f"after {state.stage} step {state.step}"
