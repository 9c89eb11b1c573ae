"""Text at the borders: encodings, control characters, brackets, ~, prompts, and outputs that nobody reads."""

import json
import os
import pty
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from small_runs import arguments, is_one_clear_line, outcome, resume, same_outcome, start

import faisca
from faisca import cli
from faisca.commands.parse import print_json
from faisca.errors import FaiscaError
from faisca.runs.checkpoint import load_checkpoint
from faisca.training.generate import clean

pytestmark = pytest.mark.xdist_group("borders")
EVERY_STEP = ("--checkpoint-every", "1")


@pytest.fixture(scope="module")
def run(material, tmp_path_factory) -> Path:
    """A finished run, in a folder that rich would take for markup."""
    folder = tmp_path_factory.mktemp("runs") / "[red]é :smile:"
    start(material, folder, "torch", *EVERY_STEP)
    return folder


def program(*argv: str | Path, **more: object) -> subprocess.CompletedProcess[bytes]:
    """`faisca ARGV` as a process of its own; `more` are variables of its environment."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", **{name: str(value) for name, value in more.items()}}
    command = [sys.executable, "-m", "faisca", *map(str, argv)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, timeout=300)


# --- encodings ----------------------------------------------------------------------------------


def only_about_data(told: str) -> bool:
    """Whether standard error holds nothing but evaluate's line of what it read."""
    return told == "" or (told.startswith("data: ") and told.count("\n") == 1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("command", ["runs", "generate", "evaluate"])
def test_a_character_that_the_output_lacks_is_a_question_mark(command, encoding, run):
    more = {"runs": [], "generate": ["-p", "“é", "-n", "1"], "evaluate": ["--data", "sample"]}[command]
    target = run.parent if command == "runs" else run
    done = program(command, target, *more, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and only_about_data(done.stderr.decode()), done.stderr
    shown = done.stdout.decode(encoding)
    e = "?" if encoding == "ascii" else "é"
    assert {"runs": f"[red]{e} :smile:", "generate": f"“{e}".encode(encoding, "replace").decode(encoding)}.get(
        command, "validation loss"
    ) in shown


def test_training_ends_whatever_it_has_to_show(run, material, tmp_path):
    """Titles, samples and the progress hold what ASCII lacks; a table has lines that it lacks."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    options = arguments(material, "torch", *EVERY_STEP)
    done = program("run", *options, "--out", tmp_path / "run", **plain)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr[-500:]
    assert done.stdout.isascii() and b"validation loss" in done.stdout and b"?" in done.stdout
    same_outcome(outcome(tmp_path / "run"), outcome(run))


def test_json_loses_no_character(run):
    """Escapes stand for what the output lacks, and for what steers a terminal."""
    argv = ("generate", run, "-p", "“Évora”\u009b2J", "-n", "1", "--json")
    told = [program(*argv, PYTHONIOENCODING=encoding).stdout for encoding in ("ascii", "utf-8")]
    assert told[0].isascii() and json.loads(told[0]) == json.loads(told[1].decode())
    assert "\u009b" not in told[1].decode() and json.loads(told[1])["generated"][0]["prompt"] == "“Évora”\u009b2J"
    assert json.loads(told[0])["checkpoint"].startswith(str(run))


def test_plain_json_stays_readable(capsys):
    print_json({"a": "É", "b": float("nan"), "c": [float("-inf")], "d": {"e": float("inf")}})
    text = capsys.readouterr().out
    assert '"É"' in text
    assert json.loads(text, parse_constant=pytest.fail) == {
        **{"a": "É", "b": None, "b_is": "not a number", "c": [None]},
        "d": {"e": None, "e_is": "infinite"},
    }


# --- control characters and brackets ------------------------------------------------------------


@pytest.mark.parametrize("width", ["200", "30"])
def test_brackets_are_text_and_nothing_steers_the_terminal(width, run, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", width)
    wild = tmp_path / "[bold]\x1b[2Jx"
    wild.symlink_to(run)
    for argv in (
        ["runs", str(tmp_path)],
        ["inspect", str(wild)],
        ["evaluate", str(wild), "--data", "sample"],
        ["generate", str(wild), "-p", "[bold]a\x1b[2J", "-n", "1"],
        ["port", str(wild), str(tmp_path / f"[i]{width}.npz"), "--to", "mlx", "--no-verify"],
        ["inspect", str(tmp_path / "[bold]\x1bnowhere")],
    ):
        cli.main(argv)
        shown = "".join(capsys.readouterr())
        assert "\x1b" not in shown and "[bold]" in shown.replace("\n", ""), argv


def test_a_strangers_checkpoint_cannot_steer_the_terminal(run, tmp_path, capsys):
    import shutil

    from faisca.runs.manifest import write_files

    copy = tmp_path / "copy"
    files = {
        path.name: path.read_bytes() for path in load_checkpoint(run).folder.iterdir() if path.name != "manifest.json"
    }
    state = json.loads(files["state.json"])
    state["versions"]["[red]\x1b[2J"] = state["tokenizer"]["kind"] = "\x1b[31m[/red]"
    write_files(copy, files | {"state.json": json.dumps(state).encode(), "[red]x\x1b": b""})
    assert cli.main(["inspect", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "[red]x " in shown and "[/red]" in shown
    shutil.rmtree(copy)


def test_a_table_shows_brackets_in_help_and_in_mistakes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('[data]\nsource = "[red]x"\n')
    assert cli.main(["run", "--config", "mine.toml", "--help"]) == 0
    assert "[red]x" in capsys.readouterr().out
    assert cli.main(["run", "--model.dim", "[red]3"]) == 2
    assert "[red]3" in capsys.readouterr().err


# --- ~ ------------------------------------------------------------------------------------------


@pytest.fixture
def home(run, material, tmp_path, monkeypatch) -> Path:
    """A home folder with a run, a reward, prompts and a configuration in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(run)
    for name in ("headlines.jsonl", "reward.py", "tiny.toml"):
        (tmp_path / name).write_bytes((material / name).read_bytes())
    (tmp_path / "prompts.txt").write_text("Governo\n")
    return tmp_path


def test_home_is_expanded_in_every_path(home, capsys):
    less = "--device=cpu --backend=torch --tokenizer.vocabulary-size=300 --pretrain.max-steps=1 --grpo.steps=1".split()
    files = "--config=~/tiny.toml --data=~/headlines.jsonl --grpo.reward=~/reward.py:length".split()
    assert cli.main(["run", "--out=~/new", "--grpo.prompts=~/prompts.txt", *files, *less]) == 0
    assert (home / "new" / "summary.json").is_file() and not (home / "~").exists()
    assert load_checkpoint(home / "new").state.config.grpo.prompts == ("Governo",)
    for argv in (
        ["run", "--resume=~/new"],
        ["grpo", "--from=~/base", "--out=~/more", "--grpo.steps=1", *files[1:]],
        ["generate", "~/new", "--prompts=~/prompts.txt", "-n1"],
        ["evaluate", "~/new", "--data=~/headlines.jsonl"],
        ["runs", "~/new"],
        ["inspect", "~/new"],
        ["port", "~/new", "~/new.npz", "--to=mlx", "--no-verify"],
    ):
        assert cli.main(argv) == 0, (argv, capsys.readouterr().err)
    assert (home / "new.npz").is_file() and not (home / "~").exists()
    assert faisca.load("~/new", backend="torch").checkpoint.folder.is_relative_to(home)
    assert cli.main(["bench", "compare", "~/nowhere.json"]) == 2
    assert f"{home}/nowhere.json cannot be read" in capsys.readouterr().err
    assert cli.main(["runs", "~nobody-of-this-name/x"]) == 2
    assert "~nobody-of-this-name/x is no folder" in capsys.readouterr().err


# --- prompts ------------------------------------------------------------------------------------


def test_prompts_are_normalised_as_titles_are(run):
    model = faisca.load(run, backend="torch", device="cpu")
    plain = model.generate("Évora é", n=3)
    assert all(text.startswith("Évora é") for text in plain)
    for prompt in (unicodedata.normalize("NFD", "Évora é"), "  Évora\u00a0\té ", "Évora\u2028é"):
        assert model.generate(prompt, n=3) == plain, repr(prompt)
    assert clean("") == clean(" \t") == ""
    with pytest.raises(FaiscaError, match=r"prompt '\\udc80' is not valid Unicode"):
        model.generate("\udc80")


# --- outputs that nobody reads ------------------------------------------------------------------


def in_a_shell(command: str, *, errors: Path, **names: object) -> int:
    """Exit status of the first program of a pipe; {faisca} and names stand for what they are."""
    own = f"OMP_NUM_THREADS=1 '{sys.executable}' -m faisca"
    quoted = {name: f"'{value}'" for name, value in names.items()}
    text = command.format(faisca=own, **quoted) + "; exit ${PIPESTATUS[0]}"
    with errors.open("wb") as file:
        return subprocess.run(["bash", "-c", text], check=False, stderr=file, timeout=300).returncode


def training(material: Path, folder: Path) -> str:
    return " ".join(["run", *(f"'{word}'" for word in arguments(material, "torch", *EVERY_STEP)), f"--out '{folder}'"])


@pytest.mark.parametrize(
    ("sink", "reason"), [("| head -n 1 > /dev/null", "Broken pipe"), ("> /dev/full", "No space left on device")]
)
def test_a_run_that_nobody_reads_is_saved_and_goes_on(sink, reason, run, material, tmp_path):
    folder, errors = tmp_path / "a run", tmp_path / "errors"
    if sink == "> /dev/full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    status = in_a_shell("{faisca} " + f"{training(material, folder)} {sink}", errors=errors)
    told = errors.read_text()
    assert status == 130 and is_one_clear_line(told), told
    assert f"the output cannot be written ({reason}); stopped after pretrain step 1;" in told
    assert told.endswith(f"continue with --resume '{folder}'\n")
    resume(folder)
    same_outcome(outcome(folder), outcome(run))


def test_a_closed_terminal_loses_nothing(run, material, tmp_path):
    """A terminal that goes away sends SIGHUP, perhaps twice, and then every write to it fails."""
    folder = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        command = [sys.executable, "-m", "faisca", "run", *arguments(material, "torch", *EVERY_STEP)]
        os.execv(sys.executable, [*command, "--out", str(folder)])
    shown = b""
    while b"pretrain" not in shown or not any(folder.glob("checkpoints/pretrain-00000[1-9]")):
        shown += os.read(terminal, 1024)
    os.close(terminal)
    os.kill(child, signal.SIGHUP)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert not load_checkpoint(folder).state.finished
    resume(folder)
    same_outcome(outcome(folder), outcome(run))


def test_nohup_keeps_a_run_going(tmp_path):
    code = (
        "import signal; from faisca.system.interrupts import stop_on_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with stop_on_signals() as stop:\n"
        "    signal.raise_signal(signal.SIGHUP); print(bool(stop))\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "with stop_on_signals() as stop:\n"
        "    signal.raise_signal(signal.SIGHUP); signal.raise_signal(signal.SIGHUP); print(bool(stop))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "False\nTrue\n")


@pytest.mark.parametrize(
    "command", ["generate {run} -n 3", "evaluate {run} --data sample", "runs {run}", "inspect {run}"]
)
def test_other_commands_end_quietly_or_in_one_line(command, run, tmp_path):
    errors = tmp_path / "errors"
    status = in_a_shell("{faisca} " + command + " | true", run=run, errors=errors)
    assert status in (141, 0) and only_about_data(errors.read_text())
    if command.startswith("runs") and Path("/dev/full").exists():
        status = in_a_shell("{faisca} " + command + " > /dev/full", run=run, errors=errors)
        told = errors.read_text()
        assert status == 2 and is_one_clear_line(told) and "No space left on device" in told
        assert in_a_shell("{faisca} " + command + " >&-", run=run, errors=errors) == 0
        assert errors.read_text() == ""
