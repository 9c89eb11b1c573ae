"""The Makefile, with stubs for interpreters: which Python it takes, what it says, where the demo goes."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = "make sh sed dirname touch mkdir cp".split()
STUB = """#!/bin/sh
# a Python {version} that notes what it is asked to do
case "$1 $2" in
  "-c "*) echo {version} ;;
  "-m venv")
    echo "$@ with {version}" >> {log}
    for venv; do :; done
    mkdir -p "$venv/bin"
    cp "$0" "$venv/bin/python"
    printf '#!/bin/sh\\nfor out; do :; done\\nmkdir -p "$out"\\n' > "$venv/bin/faisca"
    touch "$venv/pyvenv.cfg"
    chmod +x "$venv/bin/faisca" ;;
  *) echo "$@" >> {log} ;;
esac
"""
BROKEN = "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n"
UV = """#!/bin/sh
case "$*" in
  "python find --no-project >=3.11,<3.15") echo {found} ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The Makefile and what it reads, and a PATH without any Python."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in [*TOOLS, "chmod"]:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    return tmp_path


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def interpreter(checkout: Path, name: str, version: str) -> None:
    script(checkout / "bin" / name, STUB.format(version=version, log=checkout / "log"))


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "bin" / "make"), *arguments]
    return subprocess.run(
        command, cwd=checkout, env={"PATH": str(checkout / "bin")}, check=False, capture_output=True, text=True
    )


def log(checkout: Path) -> list[str]:
    path = checkout / "log"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("versions", "taken", "why"),
    [
        ({"python3": "3.11.0"}, "3.11.0", "python3 is Python 3.11.0: taken for .venv"),
        ({"python3": "3.14.2"}, "3.14.2", "python3 is Python 3.14.2: taken"),
        (
            {"python3": "3.9.6", "python3.13": "3.13.1", "python3.11": "3.11.4"},
            "3.13.1",
            "python3.13 is Python 3.13.1 (Faísca needs Python 3.11 to 3.14, and python3 is 3.9.6): taken",
        ),
        ({"python3": "3.15.0", "python3.12": "3.12.1"}, "3.12.1", "and python3 is 3.15.0"),
        ({"python3": "3.10.13", "python3.11": "3.11.4"}, "3.11.4", "and python3 is 3.10.13"),
        ({"python3.14": "3.14.0"}, "3.14.0", "python3.14 is Python 3.14.0: taken"),
    ],
)
def test_make_takes_the_first_python_that_suits_and_says_why(checkout, versions, taken, why):
    for name, version in versions.items():
        interpreter(checkout, name, version)
    done = make(checkout, "install")
    assert done.returncode == 0, done.stderr
    assert why in done.stdout.splitlines()[0]
    venv, pip = log(checkout)
    assert venv == f"-m venv .venv with {taken}"
    assert pip.startswith("-m pip install") and pip.endswith("-c constraints.txt -e .[all]")


def test_a_shim_that_does_not_run_is_passed_over(checkout):
    interpreter(checkout, "python3", "3.9.18")
    script(checkout / "bin" / "python3.13", BROKEN)
    interpreter(checkout, "python3.12", "3.12.1")
    done = make(checkout, "install")
    assert done.returncode == 0 and "pyenv" not in done.stdout + done.stderr
    assert log(checkout)[0].endswith("with 3.12.1")


def test_uv_is_asked_last(checkout):
    interpreter(checkout, "python3", "3.9.6")
    (checkout / "elsewhere").mkdir()
    interpreter(checkout, "../elsewhere/python", "3.13.9")
    script(checkout / "bin" / "uv", UV.format(found=checkout / "elsewhere" / "python"))
    done = make(checkout, "install")
    assert done.returncode == 0 and "elsewhere/python is Python 3.13.9" in done.stdout
    assert log(checkout)[0].endswith("with 3.13.9")


@pytest.mark.parametrize("target", ["install", "demo", "test", "lint"])
@pytest.mark.parametrize("uv", [False, True])
def test_without_a_suitable_python_one_line_says_so(checkout, target, uv):
    interpreter(checkout, "python3", "3.9.6")
    if uv:
        script(checkout / "bin" / "uv", "#!/bin/sh\nexit 1\n")
    done = make(checkout, target)
    assert done.returncode != 0 and not log(checkout)
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert ours == [
        "faisca: Faísca needs Python 3.11 to 3.14, and found none: python3 is 3.9.6; install one "
        "(brew install python@3.13, or uv python install 3.13), or name one: make install PYTHON=/path/to/python"
    ]


@pytest.mark.parametrize(
    ("asked", "why"),
    [("python3.9", "is Python 3.9.6"), ("python2", "is Python 2.7.18"), ("python3.13", "does not run")],
)
def test_an_unsuitable_python_that_was_asked_for_is_refused(checkout, asked, why):
    interpreter(checkout, "python3.9", "3.9.6")
    interpreter(checkout, "python2", "2.7.18")
    interpreter(checkout, "python3", "3.13.0")  # is no substitute for what was asked
    script(checkout / "bin" / "python3.13", BROKEN)
    done = make(checkout, "install", f"PYTHON={asked}")
    assert done.returncode != 0 and not log(checkout)
    assert done.stderr.startswith(
        f"faisca: PYTHON={asked} {why}: name one from 3.11 to 3.14, or leave PYTHON out\nmake"
    )


def test_an_environment_with_another_python_is_made_anew(checkout):
    interpreter(checkout, "python3", "3.9.6")
    subprocess.run([str(checkout / "bin" / "python3"), "-m", "venv", str(checkout / ".venv")], check=True, cwd=checkout)
    interpreter(checkout, "python3.12", "3.12.1")
    assert make(checkout, "install").returncode == 0
    assert log(checkout)[1] == "-m venv --clear .venv with 3.12.1"
    (checkout / ".venv" / ".installed").unlink()
    interpreter(checkout, "python3", "3.13.0")
    assert make(checkout, "install").returncode == 0  # its own Python suits: it stays
    assert log(checkout)[3] == "-m venv .venv with 3.12.1"


def test_a_folder_that_is_no_environment_is_never_cleared(checkout):
    interpreter(checkout, "python3", "3.13.0")
    (checkout / "mine").mkdir()
    (checkout / "mine" / "file").touch()
    make(checkout, "install", "VENV=mine")
    assert log(checkout)[0] == "-m venv mine with 3.13.0"


def test_each_demo_has_a_folder_of_its_own(checkout):
    interpreter(checkout, "python3", "3.13.0")
    for name in ("runs/demo", "runs/demo-2", "runs/demo-3"):
        done = make(checkout, "demo")
        assert done.returncode == 0, done.stderr
        assert f"run --preset spark --out {name}" in done.stderr and (checkout / name).is_dir()
