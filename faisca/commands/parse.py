"""Options out of dataclasses, and one line out of every error: `tyro` parses, its words become ours here."""

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from faisca.commands.suggestions import suggest_option
from faisca.errors import FaiscaError
from faisca.text import explained, fit, json_text, printable

Options = TypeVar("Options")


def parse(
    options: type[Options],
    argv: list[str],
    *,
    command: str,
    help: str | None,
    default: Options | None = None,
) -> Options:
    """The dataclass `options` filled from `argv`; `default` has the values of what is left out.

    `command` is one of ours, or all that is typed for another program; `help`, a docstring, is what
    its `--help` says above the options. Raises FaiscaError for an unknown option or an impossible
    value, SystemExit(0) after printing the help.
    """
    for text in argv:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise FaiscaError(f"argument {text!r} is not valid UTF-8: write it in UTF-8")
    if help and not {"-h", "--help"}.isdisjoint(argv):
        # Here, as tyro would join the lines of paragraphs.
        print(fit(inspect.cleandoc(help), shutil.get_terminal_size().columns), end="\n\n")
    fallback = {} if default is None else {"default": default}
    try:
        parsed, unknown = _run_tyro(options, argv, command, **fallback)
    except FaiscaError:
        # A misspelt option puts what follows it in the wrong place: then it is the mistake to name.
        _refuse_unknown_options(argv, list(_option_names(options)), command)
        raise
    if unknown:
        _refuse_unknown_options(unknown, list(_option_names(options)), command)
        raise FaiscaError(f"argument {unknown[0]!r} is one too many: {_called(command)} --help shows what goes where")
    return parsed


def parse_known(options: type[Options], argv: list[str], *, command: str) -> Options:
    """Like `parse`, but looks only for the options of this dataclass and passes over all others."""
    return _run_tyro(options, argv, command, add_help=False)[0]


def print_json(value: Any) -> None:
    """What a command says with --json: strict JSON, with escapes for what standard output lacks or obeys."""
    text = json_text(explained(value), indent=2)
    encoding = sys.stdout.encoding or "utf-8"
    exact = text.encode(encoding, "replace").decode(encoding) == printable(text) == text
    print(text if exact else json_text(explained(value), indent=2, escaped=True))


def _called(command: str) -> str:
    return command if command.startswith("python ") else f"faisca {command}"


def _run_tyro(options: type[Options], argv: list[str], command: str, **more: Any) -> tuple[Options, list[str]]:
    """The parsed options, and the arguments that tyro does not know; its errors as FaiscaError."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed, unknown = tyro.cli(
                options,
                args=argv,
                prog=_called(command),
                description="",
                config=(tyro.conf.DisallowNone,),
                return_unknown_args=True,
                **more,
            )
    except SystemExit as stop:
        if stop.code:
            raise FaiscaError(_one_line(errors.getvalue(), command)) from None
        raise
    return _in_home(parsed), unknown


def _in_home(options: Options) -> Options:
    """Every path with the home folder in place of ~, which a shell leaves where it stands after an `=`."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    paths = {name: Path(os.path.expanduser(value)) for name, value in values.items() if isinstance(value, Path)}
    lists = {
        name: tuple(Path(os.path.expanduser(path)) for path in value)
        for name, value in values.items()
        if isinstance(value, tuple) and value and isinstance(value[0], Path)
    }
    return dataclasses.replace(options, **paths, **lists)  # type: ignore[type-var]


def _option_names(options: type[Any], prefix: str = "") -> Iterator[str]:
    """Every option of a dataclass as it is typed: sections are dataclasses too, and a plain flag has a negation."""
    for name, annotation in get_type_hints(options, include_extras=True).items():
        kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
        typed = next((mark.name for mark in marks if getattr(mark, "name", None)), name).replace("_", "-")
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _option_names(kind, f"{prefix}{typed}.")
        elif tyro.conf.Positional not in marks:
            yield f"--{prefix}{typed}"
            yield from (alias for mark in marks for alias in getattr(mark, "aliases", None) or ())
            if kind is bool and tyro.conf.FlagCreatePairsOff not in marks:
                yield f"--{prefix}no-{typed}"
    if not prefix:
        yield from ("-h", "--help")


def _refuse_unknown_options(arguments: list[str], names: list[str], command: str) -> None:
    """Raise FaiscaError, with a suggestion, for the first argument that looks like an option and is none."""
    for text in arguments:
        option = text.partition("=")[0].replace("_", "-")
        if re.match(r"--?[^\W\d]", option) and option not in names:
            remedy = suggest_option(option, names, command) or f"{_called(command)} --help lists what there is"
            raise FaiscaError(f"option {option} is unknown: {remedy}")


REWORDED = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 \2 is not a whole number"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 \2 is not a number"),
    (r"Error parsing (\S+): no type matching FLOAT could be instantiated from \[(.*)\]\.", r"\1 \2 is not a number"),
    (r"invalid choice (.*) for argument '(\S+)'. Expected one of \((.*)\)\.", r"\2 \1 is unknown: choose \3"),
    (r"Missing value for argument '(\S+)'.*", r"\1 needs a value"),
    (r"Missing from [^:]+: (\S+).*", r"\1 is missing"),
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
    return f"{line} ({_called(command)} --help explains it)"
