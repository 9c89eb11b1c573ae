"""Real faults: killed processes, flipped bits, full disks, two writers. Nothing is lost, or one clear line says so.

`--full` runs the long version: more than 100 SIGKILLs and 200 damaged files.
"""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_models import open_twin
from small_runs import (
    arguments,
    begin,
    finish,
    is_one_clear_line,
    killed_in,
    outcome,
    resume,
    same_outcome,
    start,
)

from faisca import cli
from faisca.runs import log as run_log
from faisca.runs.checkpoint import checkpoint_folders, load_checkpoint
from faisca.runs.log import read_records
from faisca.training import stages

pytestmark = pytest.mark.xdist_group("faults")
EVERY_STEP = ("--checkpoint-every", "1")


@pytest.fixture(scope="module")
def unbroken(material, tmp_path_factory) -> Path:
    """A run that nothing happened to, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    start(material, folder, "torch", *EVERY_STEP)
    return folder


# --- killed -------------------------------------------------------------------------------------


def kill_until_it_is_done(material: Path, folder: Path, chance: random.Random, span: float) -> tuple[int, int]:
    """Start a run, kill it at a random moment of `span` seconds or in the middle of a write, resume it, until it ends.

    Returns how many kills there were, and how many of them caught a checkpoint half-written.
    """
    kills = torn = 0
    while True:
        begun = (folder / "checkpoints").is_dir() and bool(checkpoint_folders(folder))
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)  # it died before its first checkpoint: nothing to go on from
        new = ["run", *arguments(material, "torch", *EVERY_STEP), "--out", str(folder)]
        process = begin(["run", "--resume", str(folder)] if begun else new, folder.with_suffix(".errors"))
        moment = time.monotonic() + chance.uniform(0, span)
        in_a_write = chance.random() < 0.5
        while process.is_alive():
            if time.monotonic() > moment and (not in_a_write or any(folder.glob("checkpoints/.*"))):
                break
            time.sleep(0.0005)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0, folder.with_suffix(".errors").read_text()
            return kills, torn
        kills, torn = kills + 1, torn + any(folder.glob("checkpoints/.*"))
        span *= 1.1  # however slow the machine, it must come to an end


def killed_many_times(material: Path, unbroken: Path, folder: Path, wanted: int) -> tuple[int, int]:
    """Runs that are killed and resumed until they end as the unbroken one, until there were enough kills."""
    chance, kills, torn, runs = random.Random(0), 0, 0, 0
    for name in ("first", "timed"):  # the first one also waits until the libraries are loaded
        began = time.monotonic()
        done = finish(
            ["run", *arguments(material, "torch", *EVERY_STEP), "--out", str(folder / name)], folder / "errors"
        )
        assert done[0] == 0, done
    span = (time.monotonic() - began) / 2  # so that a run is killed more than once
    while kills < wanted:
        runs += 1
        more, half_written = kill_until_it_is_done(material, folder / f"run{runs}", chance, span)
        kills, torn = kills + more, torn + half_written
        same_outcome(outcome(folder / f"run{runs}"), outcome(unbroken))
    print(
        f"{kills} kills, {torn} inside the writing or deleting of a checkpoint, {runs} runs equal to the unbroken one"
    )
    return kills, torn


def test_killed_at_random_moments_a_run_ends_as_the_unbroken_one(material, unbroken, tmp_path):
    kills, _ = killed_many_times(material, unbroken, tmp_path, 5)
    assert kills >= 5


@pytest.mark.full
def test_killed_a_hundred_times(material, unbroken, tmp_path):
    kills, torn = killed_many_times(material, unbroken, tmp_path, 100)
    assert kills >= 100 and torn >= 10


# --- damaged ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_off(material, tmp_path_factory) -> Path:
    """A run that died in its last step; to be copied and damaged."""
    folder = tmp_path_factory.mktemp("broken") / "run"
    killed_in("torch", "grpo_step", 15, lambda: start(material, folder, "torch", *EVERY_STEP))
    return folder


def damage(file: Path, chance: random.Random) -> str:
    """Flip a bit of a file or cut it off, at a random offset; returns what was done, in words."""
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    if chance.random() < 0.3:
        file.write_bytes(content[:place])
        return f"{file} cut at {place}"
    content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return f"{file} flipped at {place}"


def damaged_many_times(
    template: Path, unbroken: Path, folder: Path, wanted: int, capsys, monkeypatch
) -> dict[int, int]:
    """Damage one file of a copy of the run and resume it: the unbroken run's end, or a clear line; counts by status."""
    monkeypatch.setattr(stages, "draw_charts", lambda folder: None)  # most of the time that a resumed run takes
    chance, expected, ends = random.Random(1), outcome(unbroken), {0: 0, 2: 0}
    files = sorted(path.relative_to(template) for path in template.rglob("*") if path.is_file() and path.stat().st_size)
    for trial in range(wanted):
        run = shutil.copytree(template, folder / str(trial))
        done = damage(run / files[trial % len(files)], chance)
        status = cli.main(["run", "--resume", str(run)])
        errors = capsys.readouterr().err
        assert status in ends, done
        ends[status] += 1
        if status:
            assert is_one_clear_line(errors), (done, errors)
            assert ".jsonl" in done and "put the whole file back" in errors, done
        else:
            same_outcome(outcome(run), expected, but=("checkpoints",))  # old damaged ones stay as they are
        shutil.rmtree(run)
    print(f"{wanted} damages in {len(files)} files: {ends[0]} runs equal to the unbroken one, {ends[2]} clear lines")
    return ends


def test_a_damaged_file_costs_nothing_or_is_named(broken_off, unbroken, tmp_path, capsys, monkeypatch):
    ends = damaged_many_times(broken_off, unbroken, tmp_path, 60, capsys, monkeypatch)
    assert ends[0] >= 50 and ends[2] >= 1


@pytest.mark.full
def test_two_hundred_damages(broken_off, unbroken, tmp_path, capsys, monkeypatch):
    ends = damaged_many_times(broken_off, unbroken, tmp_path, 210, capsys, monkeypatch)
    assert ends[0] >= 150 and ends[2] >= 5


@pytest.mark.parametrize("name", ["latest", "best", "config.toml", "summary.json", "tokenizer.json", "charts", ".lock"])
def test_a_deleted_file_is_no_loss(name, broken_off, unbroken, tmp_path):
    run = shutil.copytree(broken_off, tmp_path / "run")
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    resume(run)
    same_outcome(outcome(run), outcome(unbroken))


def test_deleted_metrics_are_begun_anew(broken_off, unbroken, tmp_path, capsys):
    run = shutil.copytree(broken_off, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    resume(run)
    assert "metrics.jsonl is missing: it begins anew" in capsys.readouterr().out
    assert {record["stage"] for record in read_records(run)} == {"grpo"}
    same_outcome(outcome(run), outcome(unbroken), but=("metrics",))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(broken_off, unbroken, tmp_path, capsys):
    run = shutil.copytree(broken_off, tmp_path / "run")
    newest = checkpoint_folders(run)[-1]
    (newest / "optimizer.safetensors").unlink()
    resume(run)
    told = capsys.readouterr().err
    assert told == f"checkpoint {newest} is damaged (optimizer.safetensors is missing): trying the one before it\n"
    same_outcome(outcome(run), outcome(unbroken))


def test_without_a_good_checkpoint_it_says_so(broken_off, tmp_path, capsys):
    run = shutil.copytree(broken_off, tmp_path / "run")
    for folder in checkpoint_folders(run):
        (folder / "manifest.json").write_text("{}")
    assert cli.main(["run", "--resume", str(run)]) == 2
    assert is_one_clear_line(capsys.readouterr().err)


# --- no room ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1_000, 100_000])
def test_a_full_disk_is_one_clear_line_and_loses_nothing(limit, broken_off, unbroken, material, tmp_path):
    """A limit on the size of files stands for the disk: the metrics do not fit, or the model does not."""
    run, errors = shutil.copytree(broken_off, tmp_path / "run"), tmp_path / "errors"
    before = load_checkpoint(run)
    status, text = finish(["run", "--resume", str(run)], errors, limit=limit)
    assert status == 2 and is_one_clear_line(text), text
    assert f"File too large): mend that, then --resume {run} continues from {before.folder.name}, which is as" in text
    assert load_checkpoint(run).folder == before.folder
    resume(run)
    same_outcome(outcome(run), outcome(unbroken))
    status, text = finish(["run", *arguments(material, "torch"), "--out", str(tmp_path / "new")], errors, limit=limit)
    assert status == 2 and is_one_clear_line(text), text


def test_a_disk_that_fills_up_under_the_metrics(broken_off, unbroken, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(broken_off, tmp_path / "run")

    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run_log._Lines, "append", full)
        assert cli.main(["run", "--resume", str(run)]) == 2
    text = capsys.readouterr().err
    assert is_one_clear_line(text) and "No space left on device" in text
    resume(run)
    same_outcome(outcome(run), outcome(unbroken))


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Nobody's rights where the tests run as root, who may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A temporary folder that everybody may enter, which pytest's own may not be."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_read_only_folder_is_one_clear_line(broken_off, unbroken, material, reachable, capsys):
    run = shutil.copytree(broken_off, reachable / "run")
    for path in (*run.rglob("*"), run, reachable):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with unprivileged():
        for argv in (["--resume", str(run)], [*arguments(material, "torch"), "--out", str(reachable / "new")]):
            capsys.readouterr()
            assert cli.main(["run", *argv]) == 2
            text = capsys.readouterr().err
            assert is_one_clear_line(text) and "Permission denied" in text, text
    for path in (reachable, run, *run.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    resume(run)
    same_outcome(outcome(run), outcome(unbroken))


# --- two at once, interruptions, numbers ---------------------------------------------------------


def test_two_runs_in_one_folder(material, unbroken, tmp_path):
    """Whoever comes second is told so, whether both begin at once or one resumes under the other."""
    run = tmp_path / "run"
    argv = ["run", *arguments(material, "torch", *EVERY_STEP), "--out", str(run)]
    both = [begin(argv, tmp_path / f"errors{i}") for i in range(2)]
    deadline = time.monotonic() + 60
    while not (run / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    third = finish(["run", "--resume", str(run)], tmp_path / "errors2")
    for process in both:
        process.join(timeout=120)
    texts = [(tmp_path / f"errors{i}").read_text() for i in range(2)]
    assert sorted(process.exitcode for process in both) == [0, 2], texts
    assert third[0] in (0, 2)  # 0 where the winner was done before it came
    for status, text in [*((p.exitcode, t) for p, t in zip(both, texts, strict=True)), third]:
        assert status == 0 or is_one_clear_line(text), text
    same_outcome(outcome(run), outcome(unbroken))


def test_a_second_process_is_told_that_the_folder_is_in_use(broken_off, tmp_path, capsys):
    from filelock import FileLock

    run = shutil.copytree(broken_off, tmp_path / "run")
    with FileLock(run / ".lock"):
        assert cli.main(["run", "--resume", str(run)]) == 2
    assert f"{run} is in use by another run" in capsys.readouterr().err
    with pytest.raises(AssertionError):
        resume(tmp_path / "elsewhere")


def test_a_second_ctrl_c_stops_at_once():
    program = (
        "import signal; from faisca.system.interrupts import stop_on_signals\n"
        "with stop_on_signals() as stop:\n"
        "    signal.raise_signal(signal.SIGINT); print('saving', bool(stop), flush=True)\n"
        "    signal.raise_signal(signal.SIGINT); print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, "saving True\n")
    assert "stopping after this step, and saving" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_asked_to_stop_saves_and_can_go_on(number, material, unbroken, tmp_path):
    run, errors = tmp_path / "run", tmp_path / "errors"
    process = begin(["run", *arguments(material, "torch", *EVERY_STEP), "--out", str(run)], errors)
    while process.is_alive() and not (run / "checkpoints" / "pretrain-000002").exists():
        time.sleep(0.002)
    os.kill(process.pid, number)
    process.join(timeout=120)
    assert process.exitcode == 130, errors.read_text()
    step = load_checkpoint(run).state.step
    told = f"faisca: interrupted: stopped after pretrain step {step}; continue with --resume {run}"
    assert errors.read_text().splitlines()[-1] == told
    resume(run)
    same_outcome(outcome(run), outcome(unbroken))


REWARDS = {
    "raises": ("raise RuntimeError('no network')", "failed: RuntimeError: no network"),
    "nonsense": ("return ['good'] * len(texts)", "failed: ValueError: could not convert"),
    "too few": ("return [1.0]", "returned (1,) numbers for"),
    "infinite": ("return [float('inf')] * len(texts)", "returned an infinite number"),
    "exits": ("raise SystemExit(3)", "failed: SystemExit: 3"),
}


@pytest.mark.parametrize(
    ("way", "calls", "saved"),
    [("raises", 0, "pretrain-000000"), ("raises", 7, "grpo-000004"), *((way, 5, "grpo-000002") for way in REWARDS)],
)
def test_a_reward_that_fails_loses_no_step(way, calls, saved, material, unbroken, tmp_path):
    """It judges before a stage, in each step and after a stage: whenever it fails, the steps so far are saved."""
    fault, words = REWARDS[way]
    whole = (material / "reward.py").read_text()
    run, reward, errors = tmp_path / "run", tmp_path / "reward.py", tmp_path / "errors"
    failing = f"    global calls\n    calls += 1\n    if calls > {calls}:\n        {fault}\n"
    reward.write_text("calls = 0\n" + whole.replace("(texts):\n", f"(texts):\n{failing}"))
    own = arguments(material, "torch", *EVERY_STEP, "--grpo.reward", f"{reward}:length")
    status, text = finish(["run", *own, "--out", str(run)], errors)
    assert status == 2 and is_one_clear_line(text) and words in text, text
    stage, step = saved.split("-")
    assert text.endswith(f"; stopped after {stage} step {int(step)}; continue with --resume {run}\n")
    assert load_checkpoint(run).folder.name == saved
    reward.write_text(whole)
    resume(run)
    found, expected = outcome(run), outcome(unbroken)
    found["summary"]["reward"] = expected["summary"]["reward"]  # the file's name
    same_outcome(found, expected)


def test_a_reward_that_fails_where_no_checkpoint_is_due(material, tmp_path):
    (tmp_path / "reward.py").write_text(
        "import itertools\nn = itertools.count()\ndef f(t): return [1 / max(0, 5 - next(n))] * len(t)\n"
    )
    own = ("--checkpoint-every", "0", "--grpo.reward", f"{tmp_path}/reward.py:f")
    status, text = finish(
        ["run", *arguments(material, "torch", *own), "--out", str(tmp_path / "run")], tmp_path / "errors"
    )
    assert status == 2 and "ZeroDivisionError" in text and "stopped after grpo step 2;" in text
    assert load_checkpoint(tmp_path / "run").folder.name == "grpo-000002"


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run_with_its_last_good_state(
    backend, material, tmp_path, capsys
):
    open_twin(backend)
    run = tmp_path / "run"
    wild = ("--pretrain.learning-rate", "1e30", "--pretrain.clip-norm", "0", "--run.max-bad-steps", "3")
    assert cli.main(["run", *arguments(material, backend, *wild), "--out", str(run)]) == 2
    text = capsys.readouterr().err
    assert is_one_clear_line(text) and "3 steps in a row" in text and "--pretrain.learning-rate" in text
    skipped = [record["step"] for record in read_records(run) if record.get("skipped")]
    saved = load_checkpoint(run)
    assert len(skipped) >= 3 and saved.state.progress.skipped == len(skipped)
    assert all((abs(array) < float("inf")).all() for array in saved.parameters.values())
    assert int(saved.optimizer["step"]) == saved.state.step - len(skipped)
