"""The command line: finds the command, parses its options, and turns errors into one line.

Commands stand in one table and are imported only when called, so that `faisca --help` starts at
once. `tyro` makes the options out of dataclasses; `parse` puts its errors into one line.
"""

import contextlib
import importlib
import inspect
import io
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from faisca.errors import FaiscaError, VerificationError
from faisca.text import fit

Options = TypeVar("Options")

COMMANDS = {
    "run": ("faisca.commands.train:run", "pre-train, fine-tune and reinforce: all stages, or those you name"),
    "pretrain": ("faisca.commands.train:pretrain", "only the first stage: a language model of headlines"),
    "sft": ("faisca.commands.train:sft", "only fine-tuning, from a checkpoint: headlines of one kind"),
    "grpo": ("faisca.commands.train:grpo", "only reinforcement learning, from a checkpoint: football"),
    "generate": ("faisca.commands.model:generate", "write headlines with a checkpoint"),
    "evaluate": ("faisca.commands.model:evaluate", "measure a checkpoint on headlines"),
    "parity": ("faisca.parity.command:parity", "prove that both backends compute the same on this machine"),
    "port": ("faisca.porting.command:port", "bring a model to another format, or in from one: compared at once"),
    "bench": ("faisca.bench.command:bench", "measure speed and memory of both backends on this machine"),
    "runs": ("faisca.commands.runs:runs", "list the runs of a folder"),
    "inspect": ("faisca.commands.runs:inspect", "show what is inside a checkpoint, and verify it"),
}
"""Each command's function, as MODULE:NAME (argv -> exit status), and its line in the help."""

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
    return exit_status(lambda: _dispatch(sys.argv[1:] if argv is None else argv))


def exit_status(program: Callable[[], int]) -> int:
    """What a program returns, its errors as one line on standard error.

    0 done, 1 a verification failed, 2 bad input, 130 interrupted, 141 nobody reads the output.
    """
    try:
        status = program()
        sys.stdout.flush()  # here, where a closed pipe can still be met quietly
        return status
    except FaiscaError as error:
        return _fail(str(error), 1 if isinstance(error, VerificationError) else 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # What is still buffered goes nowhere, or the interpreter would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def parse(
    options: type[Options], argv: list[str], *, command: str, help: str | None, default: Options | None = None
) -> Options:
    """The dataclass `options` filled from `argv`; `default` has the values of what is left out.

    `help`, a docstring, is what `faisca COMMAND --help` says above the options. Raises FaiscaError
    for an unknown option or an impossible value, SystemExit(0) after printing the help.
    """
    for text in argv:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise FaiscaError(f"argument {text!r} is not valid UTF-8: write it in UTF-8")
    if help and not {"-h", "--help"}.isdisjoint(argv):
        print(fit(inspect.cleandoc(help), _width()), end="\n\n")  # here, as tyro would join the lines of paragraphs
    fallback = {} if default is None else {"default": default}
    try:
        parsed, unknown = _run_tyro(options, argv, command, **fallback)
    except FaiscaError:
        # A misspelt option puts what follows it in the wrong place: then it is the mistake to name.
        _refuse_unknown_options(argv, _option_names(options, command, **fallback), command)
        raise
    if unknown:
        _refuse_unknown_options(unknown, _option_names(options, command, **fallback), command)
        raise FaiscaError(f"argument {unknown[0]!r} is one too many: faisca {command} --help shows what goes where")
    return parsed


def parse_known(options: type[Options], argv: list[str], *, command: str) -> Options:
    """Like `parse`, but looks only for the options of this dataclass and passes over all others."""
    return _run_tyro(options, argv, command, add_help=False)[0]


def print_json(value: Any) -> None:
    """What a command says with --json: strict JSON, so what is not finite is null."""
    from faisca.text import json_text

    print(json_text(value, indent=2))


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "--help"]
    if argv and argv[0] in ("-V", "--version"):
        print(_version())
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items()]
        print(fit(HELP.format(commands="\n".join(lines)), _width()), end="")
        return 0
    if argv[0] not in COMMANDS:
        raise FaiscaError(_unknown_command(argv[0]))
    try:
        return command_function(argv[0])(argv[1:])
    except SystemExit as stop:  # tyro's, after it printed a help text
        return int(stop.code or 0)


def command_function(name: str) -> Callable[[list[str]], int]:
    """Import the function of a command."""
    module, function = COMMANDS[name][0].split(":")
    command: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return command


def _width() -> int:
    return shutil.get_terminal_size().columns


def _fail(message: str, status: int) -> int:
    print("faisca:", " ".join(message.splitlines()), file=sys.stderr)
    return status


def _version() -> str:
    """Our version, and those of what computes, for a report of a fault."""
    from importlib import metadata

    words = [f"Python {platform.python_version()}"]
    for package in ("torch", "mlx"):
        try:
            words.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            words.append(f"no {package}")
    return f"faisca {metadata.version('faisca-mlx')} ({', '.join(words)})"


def _unknown_command(name: str) -> str:
    from faisca.commands.suggestions import suggest_command

    if name.startswith("-"):
        return f"{name} stands where a command belongs: write the command first, as in faisca run {name}"
    return f"command {name!r} is unknown: {suggest_command(name, COMMANDS)} (faisca --help explains them)"


def _run_tyro(options: type[Options], argv: list[str], command: str, **more: Any) -> tuple[Options, list[str]]:
    """The parsed options, and the arguments that tyro does not know; its errors as FaiscaError."""
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed, unknown = tyro.cli(
                options,
                args=argv,
                prog=f"faisca {command}",
                description="",
                config=(tyro.conf.DisallowNone,),
                return_unknown_args=True,
                **more,
            )
    except SystemExit as stop:
        if stop.code:
            raise FaiscaError(_one_line(errors.getvalue(), command)) from None
        raise
    return parsed, unknown


def _option_names(options: type[Any], command: str, **more: Any) -> list[str]:
    """Every option of a command, read from its help: tyro alone knows aliases and negations."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        _run_tyro(options, ["--help"], command, **more)
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", text.getvalue())))


def _refuse_unknown_options(arguments: list[str], names: list[str], command: str) -> None:
    """Raise FaiscaError, with a suggestion, for the first argument that looks like an option and is none."""
    from faisca.commands.suggestions import suggest_option

    for text in arguments:
        option = text.partition("=")[0].replace("_", "-")
        if re.match(r"--?[^\W\d]", option) and option not in names:
            remedy = suggest_option(option, names, command) or f"faisca {command} --help lists what there is"
            raise FaiscaError(f"option {option} is unknown: {remedy}")


REWORDED = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 \2 is not a whole number"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 \2 is not a number"),
    (r"invalid choice (.*) for argument '(\S+)'. Expected one of \((.*)\)\.", r"\2 \1 is unknown: choose \3"),
    (r"Missing value for argument '(\S+)'.*", r"\1 needs a value"),
    (r"Missing from faisca \w+: (\S+).*", r"\1 is missing"),
)
"""tyro's words, and ours; what is not here stays in tyro's words."""


def _one_line(box: str, command: str) -> str:
    """The first paragraph in one of tyro's framed error messages."""
    rows = re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()
    rows = rows[1 if rows[0].startswith("╭") else 2 :]  # the title; without UTF-8 a rule follows it
    rows = [row.strip("│╰╯─ ") for row in rows]
    end = next((i for i, row in enumerate(rows) if not row.strip("-")), len(rows))
    line = " ".join(rows[:end])
    for pattern, ours in REWORDED:
        line = re.sub(pattern, ours, line)
    return f"{line} (faisca {command} --help explains it)"
