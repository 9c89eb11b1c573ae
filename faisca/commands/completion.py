"""`faisca completion`: a script for a shell, made by tyro out of the same dataclasses that commands read."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from faisca.commands.parse import parse

OPTIONS = {
    "run": "faisca.commands.train:TrainOptions",
    "pretrain": "faisca.commands.train:TrainOptions",
    "sft": "faisca.commands.train:TrainOptions",
    "grpo": "faisca.commands.train:TrainOptions",
    "generate": "faisca.commands.model:GenerateOptions",
    "evaluate": "faisca.commands.model:EvaluateOptions",
    "plan": "faisca.tuning.plan_command:PlanOptions",
    "tune": "faisca.tuning.command:TuneOptions",
    "parity": "faisca.parity.command:ParityOptions",
    "launch": "faisca.commands.launch:LaunchOptions",
    "merge": "faisca.commands.merge:MergeOptions",
    "port": "faisca.porting.command:PortOptions",
    "bench": "faisca.bench.command:BenchOptions",
    "runs": "faisca.commands.runs:RunsOptions",
    "inspect": "faisca.commands.runs:InspectOptions",
    "report": "faisca.commands.report:ReportOptions",
    "play": "faisca.commands.play:PlayOptions",
    "groups": "faisca.commands.groups:GroupsOptions",
    "completion": "faisca.commands.completion:CompletionOptions",
}
"""the options of each command"""


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Options of `faisca completion`."""

    shell: Annotated[Positional[Literal["bash", "zsh", "fish"]], arg(metavar="bash|zsh|fish")]
    """the shell that is to read it"""


def completion(argv: list[str]) -> int:
    """Print a script with which a shell completes commands, options and their choices.

    examples:
      faisca completion bash > ~/.local/share/bash-completion/completions/faisca
      faisca completion zsh > "${fpath[1]}/_faisca"
      faisca completion fish > ~/.config/fish/completions/faisca.fish
    """
    options = parse(CompletionOptions, argv, command="completion", help=completion.__doc__)
    commands: dict[str, Callable[..., Any]] = {name: _dataclass(place) for name, place in OPTIONS.items()}
    words = ["--tyro-write-completion", options.shell, "-"]
    tyro.extras.subcommand_cli_from_dict(commands, prog="faisca", args=words)  # prints it, and exits
    return 0


def _dataclass(place: str) -> type[Any]:
    module, name = place.split(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found
