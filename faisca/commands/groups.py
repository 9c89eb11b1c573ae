"""`faisca groups`: what GRPO's policy wrote in a step, group by group, with what each completion was worth."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.commands.parse import parse, print_json
from faisca.config.files import read_sections
from faisca.errors import FaiscaError
from faisca.runs.log import COMPLETIONS
from faisca.system.tables import PlainConsole
from faisca.text import one_line, reward_title


@dataclass(frozen=True, kw_only=True)
class GroupsOptions:
    """Options of `faisca groups`."""

    run: Annotated[Positional[Path], arg(metavar="RUN", help="a run folder that GRPO has written in")]
    step: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the last so far)")] = None
    """the step of GRPO"""
    json: FlagCreatePairsOff[bool] = False
    """print one JSON list instead of tables, a completion each"""


def groups(argv: list[str]) -> int:
    """Show GRPO's groups of a step, also of a run under way: each completion with its rewards and its advantage,
    the best first. A run keeps them in completions.jsonl, unless --grpo.no-save-completions is given.

    examples:
      faisca groups runs/spark
      faisca groups runs/spark --step 10
      watch faisca groups runs/spark     # live
    """
    options = parse(GroupsOptions, argv, command="groups", help=groups.__doc__)
    rows = read_step(options.run, options.step)
    if options.json:
        print_json(rows)
        return 0
    console = PlainConsole()
    console.print(f"grpo step {rows[0]['step']} of {options.run}", style="bold", soft_wrap=True)
    size = read_sections(options.run / "config.toml")["grpo"].group_size
    for first in range(0, len(rows), size):
        console.print(_table(rows[first : first + size]))
    return 0


def read_step(folder: Path, step: int | None) -> list[dict[str, Any]]:
    """The completions of a step, None the last, in their order; a line that is still being written is left out."""
    path = folder / COMPLETIONS
    if not path.is_file():
        raise FaiscaError(f"{folder} has no {COMPLETIONS}: name a run folder in which GRPO has written some")
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    steps = [row["step"] for row in rows]
    if not steps:
        raise FaiscaError(f"{path} has no completions yet: wait for the first step")
    wanted = steps[-1] if step is None else step
    if wanted not in steps:
        raise FaiscaError(f"--step {wanted} is not in {path}: it has {steps[0]} to {steps[-1]}")
    return [row for row in rows if row["step"] == wanted]


def _table(group: list[dict[str, Any]]) -> Table:
    """A group, the best completion first; one that did not end has an ellipsis."""
    prompt = group[0]["prompt"]
    asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    table = Table(title=f"{one_line(asked)!r}", title_justify="left", box=None, pad_edge=False)
    names = list(group[0]["rewards"])
    for title in ("advantage", "reward", *(map(reward_title, names) if len(names) > 1 else ())):
        table.add_column(title, justify="right")
    table.add_column("completion", overflow="ellipsis", no_wrap=True)
    for row in sorted(group, key=lambda row: -(row["advantage"] or 0.0)):
        parts = [row["rewards"][name] for name in names] if len(names) > 1 else []
        numbers = [
            f"{row['advantage'] or 0.0:+.2f}",
            *("–" if n is None else f"{n:.2f}" for n in (row["reward"], *parts)),
        ]
        table.add_row(*numbers, one_line(row["completion"]) + ("" if row["ended"] else " …"))
    return table
