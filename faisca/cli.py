"""The command line: the table of commands, and the exit status of what they do.

A command is imported only when it is called, so that `faisca --help` starts at once.
"""

import contextlib
import importlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable

from faisca.errors import FaiscaError, VerificationError
from faisca.text import fit, printable

COMMANDS = {
    "run": ("faisca.commands.train:run", "pre-train, fine-tune and reinforce: all stages, or those you name"),
    "pretrain": ("faisca.commands.train:pretrain", "only the first stage: a language model of headlines"),
    "sft": ("faisca.commands.train:sft", "only fine-tuning, from a checkpoint: headlines of one kind"),
    "grpo": ("faisca.commands.train:grpo", "only reinforcement learning, from a checkpoint: football"),
    "generate": ("faisca.commands.model:generate", "write headlines with a checkpoint"),
    "evaluate": ("faisca.commands.model:evaluate", "measure a checkpoint on headlines"),
    "plan": ("faisca.tuning.plan_command:plan", "what a run will take: memory by formula, and time"),
    "tune": ("faisca.tuning.command:tune", "measure which settings are fastest here, and write them to a file"),
    "parity": ("faisca.parity.command:parity", "prove that both backends compute the same on this machine"),
    "launch": ("faisca.commands.launch:launch", "train in several processes, which come to the same model"),
    "merge": ("faisca.commands.merge:merge", "add a run's adapter to the weights that it belongs to"),
    "port": ("faisca.porting.command:port", "bring a model to another format, or in from one: compared at once"),
    "bench": ("faisca.bench.command:bench", "measure speed and memory of both backends on this machine"),
    "runs": ("faisca.commands.runs:runs", "list the runs of a folder"),
    "groups": ("faisca.commands.groups:groups", "show GRPO's groups of a step: completions, rewards, advantages"),
    "completion": ("faisca.commands.completion:completion", "print what lets a shell complete commands and options"),
    "report": ("faisca.commands.report:report", "runs as one page for a browser, drawn over each other"),
    "play": ("faisca.commands.play:play", "play with a run on a page: stages side by side, token by token"),
    "inspect": ("faisca.commands.runs:inspect", "show what is inside a checkpoint, and verify it"),
}
"""Each command's function, as MODULE:NAME (argv -> exit status), and its line in the help."""

PATIENCE = 3.0
"""seconds in which a launcher ends the other processes where the first one fails: an error of all is said once"""

HELP = """usage: faisca COMMAND [OPTIONS]

Train a small language model on Portuguese headlines in three stages
(pre-training, supervised fine-tuning, reinforcement learning), with PyTorch
or with MLX.

commands:
{commands}

a first session:
  faisca run --preset spark      # minutes; everything goes to runs/spark
  faisca generate runs/spark --prompt Presidente -n 3
  faisca evaluate runs/spark --data sample

`faisca COMMAND --help` explains a command and lists its options;
`faisca --version` says what is installed.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command in `argv` (default: that of the process); returns the exit status."""
    status = exit_status(lambda: _dispatch(sys.argv[1:] if argv is None else argv))
    _leave(status)
    return status


def exit_status(program: Callable[[], int]) -> int:
    """What a program returns, its errors as one line on standard error.

    0 done, 1 a verification failed, 2 bad input, 130 interrupted, 141 nobody reads the output.
    """
    from faisca.system.output import discard_output, is_of_output, prepare_output

    prepare_output()
    try:
        status = program()
        sys.stdout.flush()  # here, where a closed pipe can still be met quietly
        return status
    except FaiscaError as error:
        return _fail(str(error), 1 if isinstance(error, VerificationError) else 2)
    except KeyboardInterrupt as stop:
        return _fail(": ".join(filter(None, ("interrupted", str(stop)))), 130)
    except OSError as error:
        if not is_of_output(error):
            raise
        discard_output()
        if isinstance(error, BrokenPipeError):
            return 141
        return _fail(f"the output cannot be written ({error.strerror}): make room, or send it elsewhere", 2)


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "--help"]
    if argv and argv[0] in ("-V", "--version"):
        print(_version())
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items()]
        print(fit(HELP.format(commands="\n".join(lines)), shutil.get_terminal_size().columns), end="")
        return 0
    if argv[0] not in COMMANDS:
        raise FaiscaError(_unknown_command(argv[0]))
    _refuse_launcher(argv[0])
    try:
        return command_function(argv[0])(argv[1:])
    except SystemExit as stop:  # tyro's, after it printed a help text
        return int(stop.code or 0)


def command_function(name: str) -> Callable[[list[str]], int]:
    """Import the function of a command."""
    module, function = COMMANDS[name][0].split(":")
    command: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return command


def _fail(message: str, status: int) -> int:
    from faisca.processes.launched import first_process

    if not first_process():
        time.sleep(PATIENCE)
    with contextlib.suppress(OSError):  # a terminal that was closed: the status still says it
        print("faisca:", printable(" ".join(message.splitlines())), file=sys.stderr)
    return status


def _version() -> str:
    """Our version, and those of what computes, for a report of a fault."""
    from faisca.system.packages import version_of

    versions = {package: version_of(package) for package in ("torch", "mlx")}
    words = [f"{package} {version}" if version else f"no {package}" for package, version in versions.items()]
    return f"faisca {version_of('faisca-mlx')} (Python {platform.python_version()}, {', '.join(words)})"


def _leave(status: int) -> None:
    """Tell `faisca launch` how this process ended, for not every launcher does."""
    if "FAISCA_STATUSES" in os.environ:
        from faisca.processes.launched import leave_status

        leave_status(status)


def _refuse_launcher(name: str) -> None:
    """FaiscaError where several processes were started for what one does."""
    from faisca.processes.launched import TOGETHER, launched

    if (found := launched()) and name not in TOGETHER:
        commands = ", ".join(TOGETHER)
        raise FaiscaError(
            f"faisca {name} is done by one process: start it without {found.launcher} (it is for {commands})"
        )


def _unknown_command(name: str) -> str:
    from faisca.commands.suggestions import suggest_command

    if name.startswith("-"):
        return f"{name} stands where a command belongs: write the command first, as in faisca run {name}"
    return f"command {name!r} is unknown: {suggest_command(name, COMMANDS)} (faisca --help explains them)"
