"""The commands that train: their options, and what they call.

An option's help is the docstring below its field; the docstring of a command's function is the
text above the options. A configuration has three layers: the preset, --config FILE, the options.
"""

import os
import shlex
from dataclasses import dataclass, fields, replace
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, TypeVar

from tyro.conf import arg

from faisca.commands.options import BackendName, DeviceName, Source
from faisca.commands.parse import parse, parse_known
from faisca.config import (
    Config,
    DataConfig,
    GRPOConfig,
    ModelConfig,
    RunConfig,
    SampleConfig,
    SFTConfig,
    TokenizerConfig,
    TrainConfig,
)
from faisca.config.files import Sections, layered_sections, preset_names, preset_summary, sections_of
from faisca.errors import FaiscaError
from faisca.runs.nearby import runs_nearby

SHORT = ("backend", "device", "seed", "checkpoint_every", "keep")
"""options of `run` that can be given without its name"""
LOCK = {".lock"}
BEGINNING = LOCK | {"config.toml", "tokenizer.json", "metrics.jsonl"}
"""what lies in the folder of a run that was refused before its first checkpoint"""


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Where a configuration begins."""

    preset: Annotated[str | None, arg(metavar="NAME")] = None
    """the numbers to start from; the list is above"""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """a TOML file laid over the preset, such as the config.toml of a run"""
    start_from: Annotated[Path | None, arg(name="from", metavar="CHECKPOINT", help_behavior_hint="")] = None
    """begin with the weights of a checkpoint or run folder, its model and its tokenizer; without --preset the
    rest of its configuration comes along"""


@dataclass(frozen=True, kw_only=True)
class StartOptions(LayerOptions):
    """Where a configuration and a run begin."""

    out: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="(default: runs/PRESET)")] = None
    """the run's folder, which must be new or empty"""
    resume: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """continue an interrupted run in its folder, with its own configuration"""


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(LayerOptions):
    """Every option of a configuration; those before the sections are short for one in them."""

    backend: BackendName
    device: DeviceName
    source: Source
    seed: Annotated[int, arg(metavar="N")]
    """every random number of the run derives from it"""
    stages: Annotated[str, arg(metavar="STAGE,...")]
    """which stages to run, in this order"""
    checkpoint_every: Annotated[int, arg(metavar="STEPS")]
    """steps between checkpoints; 0 saves at both ends of each stage"""
    keep: Annotated[int, arg(metavar="N")]
    """checkpoints kept along the way, newest first; the ends of stages and the best always stay"""
    model: ModelConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    pretrain: TrainConfig
    sft: SFTConfig
    grpo: GRPOConfig
    sample: SampleConfig
    run: RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ConfigOptions, StartOptions):
    """Every option of the training commands."""


Chosen = TypeVar("Chosen", bound=ConfigOptions)


def run(argv: list[str]) -> int:
    """Train a model in three stages: pretrain learns to write headlines, sft goes on
    with those from Portugal, grpo rewards headlines about football. The run's
    folder (--out) gets checkpoints, charts, a summary and its config.toml, with
    which --config repeats the run.

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


def _train(command: str, argv: list[str], help: str | None) -> int:
    start = parse_known(StartOptions, argv, command=command)
    default = _default_options(TrainOptions, start, _starting_sections(start, command))
    options = parse(TrainOptions, argv, command=command, help=_with_presets(help), default=default)
    config = _chosen_config(options, default)
    if command != "run" and config.run.stages != (command,):
        raise FaiscaError(f"faisca {command} cannot run stages {','.join(config.run.stages)}: use faisca run")
    if options.resume:
        from faisca.training.stages import resume

        resume(options.resume, config)
        return 0
    folder = _new_folder(options.out, config.preset)
    from faisca.training.stages import run

    run(config, folder, options.start_from)
    return 0


def read_config(kind: type[Chosen], argv: list[str], *, command: str, help: str | None) -> tuple[Chosen, Config]:
    """The options of a command that trains nothing, and the configuration that they make, as `faisca run` makes it."""
    layers = parse_known(LayerOptions, argv, command=command)
    default = _default_options(kind, layers, _layered(layers))
    options = parse(kind, argv, command=command, help=_with_presets(help), default=default)
    return options, _chosen_config(options, default)


def _starting_sections(start: StartOptions, command: str) -> Sections:
    """The layers below the options: the preset and --config, or the configuration of --resume."""
    if start.resume:
        return _resumed_sections(start.resume, start)
    sections = _layered(start)
    if command != "run":
        sections["run"] = replace(sections["run"], stages=(command,))
    return sections


def _layered(layers: LayerOptions) -> Sections:
    """The preset and --config, over what --from brings along."""
    if layers.start_from:
        return _inherited_sections(layers.start_from, layers)
    return layered_sections(layers.preset, layers.config)


def _inherited_sections(checkpoint: Path, start: LayerOptions) -> Sections:
    """What --from brings along: where no preset is named what the run was configured with, but for how it ran.

    Model and tokenizer always come along; so does the seed, unless a preset is named.
    """
    from faisca.training.stages import saved_state
    from faisca.training.start import inherit

    state = saved_state(checkpoint)
    own = sections_of(state.config) | {"run": RunConfig(seed=state.config.run.seed)}
    return layered_sections(start.preset, start.config, own, partial(inherit, state=state))


def _resumed_sections(run: Path, start: StartOptions) -> Sections:
    others = {"preset": start.preset, "config": start.config, "out": start.out, "from": start.start_from}
    for flag, value in others.items():
        if value is not None:
            raise FaiscaError(f"--{flag} does not go with --resume, which has its own: leave --{flag} out")
    if not os.path.isdir(run / "checkpoints"):  # False, not an error, where it may not be read
        raise FaiscaError(f"--resume {run} is no run folder: it has no checkpoints, so start it anew{runs_nearby(run)}")
    from faisca.training.stages import saved_state

    return sections_of(saved_state(run).config)


def _default_options(kind: type[Chosen], start: LayerOptions, sections: Sections) -> Chosen:
    """What the options are where none is given: the layers below them."""
    run: RunConfig = sections["run"]
    given = {option.name: getattr(start, option.name) for option in fields(start)}
    short = {name: getattr(run, name) for name in SHORT}
    source, stages = sections["data"].source, ",".join(run.stages)
    return kind(**{**given, **sections, **short, "source": source, "stages": stages})


def _chosen_config(options: ConfigOptions, default: ConfigOptions) -> Config:
    """The configuration that the options make; a short option that was given wins over the long one."""
    sections = {section.name: getattr(options, section.name) for section in fields(Config)}
    changes = {name: getattr(options, name) for name in (*SHORT, "source", "stages")}
    changes = {name: value for name, value in changes.items() if value != getattr(default, name)}
    if "source" in changes:
        sections["data"] = replace(options.data, source=changes.pop("source"))
    if "stages" in changes:
        changes["stages"] = tuple(stage.strip() for stage in changes["stages"].split(","))
    sections["grpo"] = replace(options.grpo, prompts=_read_prompts(options.grpo.prompts))
    return Config(**{**sections, "run": replace(options.run, **changes)})


def _read_prompts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """The prompts, with the lines of a file in place of its name; a run's configuration holds the lines."""
    read: list[str] = []
    for prompt in prompts:
        path = os.path.expanduser(prompt)
        if prompt and os.path.isfile(path):
            try:
                lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise FaiscaError(f"grpo.prompts {prompt!r} cannot be read ({error}): save it as UTF-8 text") from error
            read += [line for line in lines if line.strip()]
        elif prompt.endswith(".txt"):
            raise FaiscaError(f"grpo.prompts {prompt!r} is no file here: name a text file, a prompt a line")
        else:
            read.append(prompt)
    return tuple(read)


def _with_presets(help: str | None) -> str:
    """The text of a command's help, and the presets below it."""
    rows = "\n".join(f"  {name:7} {preset_summary(name)}" for name in preset_names())
    return f"{cleandoc(help or '')}\n\npresets:\n{rows}"


def _new_folder(out: Path | None, preset: str) -> Path:
    folder = out or Path("runs") / preset
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
