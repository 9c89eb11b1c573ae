"""The commands that train: their options, and what they call.

The docstring of a command's function is the text above its options; those of a configuration are
in `configuration.py`.
"""

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from faisca.backends import choose_backend
from faisca.commands.configuration import (
    ConfigOptions,
    LayerOptions,
    chosen_config,
    default_options,
    layered,
    with_presets,
)
from faisca.commands.parse import parse, parse_known
from faisca.config import Config
from faisca.config.files import Sections, sections_of
from faisca.errors import FaiscaError
from faisca.processes.launched import first_process
from faisca.runs.nearby import runs_nearby

LOCK = {".lock"}
TRACKED = {"tracker.json", "tensorboard", "wandb"}
BEGINNING = LOCK | TRACKED | {"config.toml", "tokenizer.json", "metrics.jsonl"}
"""what lies in the folder of a run that was refused before its first checkpoint"""


@dataclass(frozen=True, kw_only=True)
class StartOptions(LayerOptions):
    """Where a configuration and a run begin."""

    out: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="(default: runs/PRESET)")] = None
    """the run's folder, which must be new or empty"""
    resume: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """continue an interrupted run in its folder, with its own configuration"""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ConfigOptions, StartOptions):
    """Every option of the training commands."""


def run(argv: list[str]) -> int:
    """Train a model in three stages: pretrain learns to write headlines, sft goes on
    with those from Portugal, grpo rewards headlines about football. The run's
    folder (--out) gets checkpoints, a report for a browser (report.html), charts, a
    summary and its config.toml, with which --config repeats the run.

    examples:
      faisca run                        # small, on the embedded headlines
      faisca run --preset faisca --data headlines.parquet --out runs/real
      faisca run --stages pretrain --pretrain.epochs 1 --model.num-layers 2
      faisca run --resume runs/spark    # go on where it stopped
    """
    return _train("run", argv, run.__doc__)


def pretrain(argv: list[str]) -> int:
    """Train a model to predict the next token of headlines: the first stage alone.
    It begins with random weights, or with those of --from CHECKPOINT.

    examples:
      faisca pretrain --out runs/base
      faisca pretrain --out runs/long --pretrain.epochs 10
      faisca pretrain --preset faisca --data headlines.parquet --device cuda
    """
    return _train("pretrain", argv, pretrain.__doc__)


def sft(argv: list[str]) -> int:
    """Supervised fine-tuning: train a checkpoint on with headlines of one kind, by
    default those whose address contains .pt/, and with a fresh optimiser. With
    --sft.conversations it learns the answers in conversations instead, as the
    model's chat template writes them.

    examples:
      faisca sft --from runs/base --out runs/portugal
      faisca sft --from runs/base --out runs/brazil --sft.url-contains .com.br/
      faisca sft --from runs/instruct --out runs/tuned --sft.conversations chats.jsonl
    """
    return _train("sft", argv, sft.__doc__)


def grpo(argv: list[str]) -> int:
    """Reinforcement learning by group relative policy optimisation: the model writes
    groups of headlines, a reward judges each, and those that do better than
    their group become likelier.

    examples:
      faisca grpo --from runs/portugal --out runs/football
      faisca grpo --from runs/portugal --out runs/wind --grpo.reward keywords:vento
      faisca grpo --from runs/portugal --out runs/two --grpo.prompts Alerta O
      faisca grpo --from runs/portugal --out runs/many --grpo.prompts prompts.txt
      faisca grpo --from runs/instruct --out runs/sums --grpo.prompts-file sums.jsonl --grpo.reward exact:answer
    """
    return _train("grpo", argv, grpo.__doc__)


def prepared(command: str, argv: list[str]) -> tuple[Config, str]:
    """The configuration that a command would train with, and its backend; FaiscaError for what it would refuse."""
    options, config = _configured(command, argv, None)
    if not options.resume:
        _new_folder(options.out, config.preset)
    return config, choose_backend(config.run.backend)[0]


def _configured(command: str, argv: list[str], help: str | None) -> tuple[TrainOptions, Config]:
    start = parse_known(StartOptions, argv, command=command)
    default = default_options(TrainOptions, start, _starting_sections(start, command))
    options = parse(TrainOptions, argv, command=command, help=with_presets(help), default=default)
    config = chosen_config(options, default)
    if command != "run" and config.run.stages != (command,):
        raise FaiscaError(f"faisca {command} cannot run stages {','.join(config.run.stages)}: use faisca run")
    return options, config


def _train(command: str, argv: list[str], help: str | None) -> int:
    options, config = _configured(command, argv, help)
    from faisca.report.write import report_after_run

    if options.resume:
        from faisca.training.stages import resume

        resume(options.resume, config)
        if first_process():
            report_after_run(options.resume)
        return 0
    folder = _new_folder(options.out, config.preset)
    from faisca.training.stages import run

    run(config, folder, options.start_from)
    if first_process():
        report_after_run(folder)
    return 0


def _starting_sections(start: StartOptions, command: str) -> Sections:
    """The layers below the options: the preset and --config, or the configuration of --resume."""
    if start.resume:
        return _resumed_sections(start.resume, start)
    sections = layered(start)
    if command != "run":
        sections["run"] = replace(sections["run"], stages=(command,))
    return sections


def _resumed_sections(run: Path, start: StartOptions) -> Sections:
    others = {"preset": start.preset, "config": start.config, "out": start.out, "from": start.start_from}
    for flag, value in others.items():
        if value is not None:
            raise FaiscaError(f"--{flag} does not go with --resume, which has its own: leave --{flag} out")
    if not os.path.isdir(run / "checkpoints"):  # False, not an error, where it may not be read
        raise FaiscaError(f"--resume {run} is no run folder: it has no checkpoints, so start it anew{runs_nearby(run)}")
    from faisca.training.stages import saved_state

    return sections_of(saved_state(run).config)


def _new_folder(out: Path | None, preset: str) -> Path:
    folder = out or Path("runs") / preset
    if not first_process():  # writes elsewhere
        return folder
    if os.path.isfile(folder):  # os.path: False, not an error, where a name is impossible
        raise FaiscaError(f"--out {folder} is a file: name a new folder")
    try:
        content = os.listdir(folder) if os.path.isdir(folder) else []
    except OSError as error:
        raise FaiscaError(f"--out {folder} cannot be read ({error.strerror}): name another folder") from error
    from faisca.data.json_encoding import COMPANIONS

    if content and not LOCK <= set(content) <= BEGINNING | set(COMPANIONS):
        begun = any(folder.glob("checkpoints/*-*"))
        remedy = f"continue its run with --resume {shlex.quote(str(folder))}" if begun else "empty it"
        raise FaiscaError(f"{folder} is not empty: name another folder with --out, or {remedy}")
    return folder
