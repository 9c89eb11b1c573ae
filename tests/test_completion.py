"""`faisca completion`: a shell completes what the commands take."""

import contextlib
import io
import re
import shutil
import subprocess

import pytest

from faisca.cli import COMMANDS, main
from faisca.commands.completion import OPTIONS

SHELLS = ("bash", "zsh", "fish")


def printed(*argv: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(list(argv)) == 0
    return text.getvalue()


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: printed("completion", shell) for shell in SHELLS}


def test_every_command_has_its_options():
    assert set(OPTIONS) == set(COMMANDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_option_of_the_help(scripts, shell):
    for command in ("run", "generate", "port", "groups", "runs"):
        named = set(re.findall(r"^[│ ]*(?:-\w, )?(--[a-z][\w.-]*)", printed(command, "--help"), re.MULTILINE))
        assert len(named) >= 2, command
        absent = {option for option in named if option not in scripts[shell]}
        assert not absent, (command, absent)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")
@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (["faisca", "gen"], {"generate"}),
        (["faisca", "generate", "--temp"], {"--temperature"}),
        (["faisca", "run", "--grpo.temp"], {"--grpo.temperature"}),
        (["faisca", "port", "a", "b", "--to", ""], {"faisca", "torch", "mlx", "hf", "peft", "mlx-lm"}),
    ],
)
def test_bash_completes_with_it(scripts, tmp_path, typed, wanted):
    (tmp_path / "faisca.bash").write_text(scripts["bash"])
    words = " ".join(f"'{word}'" for word in typed)
    (function,) = set(re.findall(r"complete .*-F (\w+) faisca", scripts["bash"]))
    code = f"source {tmp_path}/faisca.bash; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}"
    code += (
        f'; COMP_LINE="{" ".join(typed)}"; COMP_POINT=${{#COMP_LINE}}; {function}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert wanted == set(done.stdout.split()), done.stderr


def test_another_shell_is_refused_in_a_line(capsys):
    assert main(["completion", "tcsh"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("faisca: ") and "tcsh" in line
