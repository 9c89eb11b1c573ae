"""What GRPO asks: `grpo.prompts`, or the lines of `grpo.prompts_file` with what rewards are told of each.

A line is a JSON object with `prompt` (a text, or messages) or `messages` ([{role, content}, …]), which the model's
chat template writes; whatever else it has are columns for rewards. All lines are of one kind, with the same columns.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faisca.data.chat import Message, check_messages
from faisca.errors import FaiscaError
from faisca.streams import permutation
from faisca.text import in_one_line

RESERVED = ("completions", "completion_ids", "prompts")
"""what every reward is offered: columns cannot have these names"""


@dataclass(frozen=True)
class Task:
    """A prompt, and what is known of it."""

    prompt: str | list[Message]
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    """the file and line that it comes from"""

    @property
    def text(self) -> str:
        """What a reader sees before the completion: of messages the last."""
        return self.prompt if isinstance(self.prompt, str) else f"{self.prompt[-1]['content']} →"


@dataclass(frozen=True)
class Tasks:
    """All prompts, in the order in which they were written."""

    all: tuple[Task, ...]
    shuffled: bool = False
    """each pass in another order, or always in turn"""
    sha256: str = ""
    """of the file, in hexadecimal"""

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return sorted(self.all[0].columns)

    def chosen(self, first: int, count: int, seed: int) -> list[Task]:
        """The tasks number `first` and on, passes counted through: each pass has every task once."""
        return [self._at(*divmod(i, len(self.all)), seed) for i in range(first, first + count)]

    def in_turn(self, count: int) -> list[Task]:
        """As many tasks, in the order of the file, which models are compared on."""
        return [self.all[i % len(self.all)] for i in range(count)]

    def _at(self, turn: int, place: int, seed: int) -> Task:
        if self.shuffled:
            place = int(permutation(seed, "order of grpo prompts", len(self.all), turn)[place])
        return self.all[place]


def open_tasks(prompts: Sequence[str], file: str) -> Tasks:
    """The tasks of `grpo.prompts`, or of the file where one is named; a FaiscaError names the line that is none."""
    if not file:
        return Tasks(tuple(map(Task, prompts)))
    try:
        content = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise FaiscaError(
            f"grpo.prompts_file {file} cannot be read ({error.strerror}): name a file of JSON, an object a line"
        ) from error
    lines = enumerate(content.splitlines(), 1)
    tasks = tuple(_task(line, f"{file}, line {number}") for number, line in lines if line.strip())
    if not tasks:
        raise FaiscaError(f'grpo.prompts_file {file} is empty: write a prompt a line, as in {{"prompt": "O"}}')
    for task in tasks:
        _check_like(task, tasks[0])
    return Tasks(tasks, shuffled=True, sha256=hashlib.sha256(content).hexdigest())


def _task(line: bytes, where: str) -> Task:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FaiscaError(f"{where} is no JSON ({in_one_line(error)}): write an object a line") from error
    if not isinstance(values, dict) or ("prompt" in values) == ("messages" in values):
        has = "both" if isinstance(values, dict) and "prompt" in values else "neither"
        raise FaiscaError(f"{where} has {has} of prompt and messages: write an object with one of them")
    name = "prompt" if "prompt" in values else "messages"
    taken = [key for key in RESERVED if key in values]
    if taken:
        raise FaiscaError(f"{where} has a column {taken[0]}, which rewards know as something else: rename it")
    columns = {key: value for key, value in values.items() if key != name}
    return Task(_prompt(values[name], name, where), columns, where)


def _prompt(value: Any, name: str, where: str) -> str | list[Message]:
    if name == "prompt" and isinstance(value, str):
        return value
    try:
        messages = check_messages(value)
    except FaiscaError as error:
        raise FaiscaError(f"{where}: {error}") from error
    if messages[-1]["role"] == "assistant":
        raise FaiscaError(f"{where} ends with an answer: leave the assistant's last message out, or make it a column")
    return messages


def _check_like(task: Task, first: Task) -> None:
    """FaiscaError where a task is not of the first one's kind, with its columns."""
    if isinstance(task.prompt, str) != isinstance(first.prompt, str):
        raise FaiscaError(f"{task.where} mixes texts and messages: write all prompts as {first.where} does")
    unlike = sorted(task.columns.keys() ^ first.columns.keys())
    if unlike:
        verb = "has no" if unlike[0] in first.columns else "alone has a"
        raise FaiscaError(f"{task.where} {verb} column {unlike[0]}: write the same columns in all lines")
