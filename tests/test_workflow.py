"""The workflow of continuous integration: every command in it exists, and none fails unseen."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from faisca.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
LINES = [
    line for job in WORKFLOW["jobs"].values() for step in job["steps"] for line in step.get("run", "").splitlines()
]
STAGES = [shlex.split(stage) for line in LINES for stage in line.split("|")]


def calls(program: str) -> list[list[str]]:
    """The arguments of every call of a program, in whatever folder it lies."""
    return [words[1:] for words in STAGES if words[0].endswith(program)]


def test_all_that_is_called_is_known():
    assert {Path(words[0]).name for words in STAGES} == {"make", "python", "faisca", "tee"}


def test_make_has_the_targets():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {arguments[0] for arguments in calls("make")} == {"test", "install"} <= targets


@pytest.mark.parametrize("arguments", calls("bin/faisca"), ids=" ".join)
def test_faisca_has_the_commands_and_options(arguments, capsys):
    if arguments == ["--version"]:
        assert main(arguments) == 0
        return
    assert arguments[0] in COMMANDS and main([arguments[0], "--help"]) == 0
    shown = capsys.readouterr().out
    options = [word for word in arguments if word.startswith("-")]
    assert [option for option in options if option not in shown] == []


def test_pytest_gets_files_that_exist():
    runs = [arguments[2:] for arguments in calls("python") if arguments[:2] == ["-m", "pytest"]]
    named = [word for arguments in runs for word in arguments if "/" in word or word.startswith(("tests", "parity"))]
    assert len(runs) == 3 and len(named) >= 4
    assert [word for word in named if not (ROOT / word).exists()] == []


def test_the_wheel_has_the_name_that_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wheel = f"dist/{project['name'].replace('-', '_')}-{project['version']}-py3-none-any.whl"
    assert any(wheel in line for line in LINES)


def test_a_pipe_fails_where_its_first_part_does():
    assert WORKFLOW["defaults"]["run"]["shell"] == "bash"  # GitHub adds pipefail to a shell that is named


def test_each_python_that_is_promised_is_tested():
    assert WORKFLOW["jobs"]["linux"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
