"""The options of a configuration, which the commands share that train, plan and tune.

An option's help is the docstring below its field. A configuration has three layers: the preset, --config FILE, the
options.
"""

import os
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
from faisca.config.files import Sections, layered_sections, preset_names, preset_summary
from faisca.errors import FaiscaError

SHORT = ("backend", "device", "seed", "checkpoint_every", "keep")
"""options of `run` that can be given without its name"""


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


Chosen = TypeVar("Chosen", bound=ConfigOptions)


def read_config(kind: type[Chosen], argv: list[str], *, command: str, help: str | None) -> tuple[Chosen, Config]:
    """The options of a command that trains nothing, and the configuration that they make, as `faisca run` makes it."""
    layers = parse_known(LayerOptions, argv, command=command)
    default = default_options(kind, layers, layered(layers))
    options = parse(kind, argv, command=command, help=with_presets(help), default=default)
    return options, chosen_config(options, default)


def layered(layers: LayerOptions) -> Sections:
    """The preset and --config, over what --from brings along."""
    if layers.start_from:
        return _inherited_sections(layers.start_from, layers)
    return layered_sections(layers.preset, layers.config)


def _inherited_sections(checkpoint: Path, start: LayerOptions) -> Sections:
    """What --from brings along: where no preset is named what the run was configured with, but for how it ran.

    Model and tokenizer always come along; so does the seed, unless a preset is named.
    """
    from faisca.training.stages import saved_state
    from faisca.training.start import inherit, own_sections

    state = saved_state(checkpoint)
    return layered_sections(start.preset, start.config, own_sections(state), partial(inherit, state=state))


def default_options(kind: type[Chosen], start: LayerOptions, sections: Sections) -> Chosen:
    """What the options are where none is given: the layers below them."""
    run: RunConfig = sections["run"]
    given = {option.name: getattr(start, option.name) for option in fields(start)}
    short = {name: getattr(run, name) for name in SHORT}
    source, stages = sections["data"].source, ",".join(run.stages)
    return kind(**{**given, **sections, **short, "source": source, "stages": stages})


def chosen_config(options: ConfigOptions, default: ConfigOptions) -> Config:
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


def with_presets(help: str | None) -> str:
    """The text of a command's help, and the presets below it."""
    rows = "\n".join(f"  {name:7} {preset_summary(name)}" for name in preset_names())
    return f"{cleandoc(help or '')}\n\npresets:\n{rows}"
