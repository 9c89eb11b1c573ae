"""The console, the metrics file and the memory counter of a run."""

import json
import math
import os
import re
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from faisca.errors import FaiscaError
from faisca.runs import log as run_log
from faisca.runs.log import RunLog, read_records
from faisca.system import memory
from faisca.system import progress_bar as tracker
from faisca.system.files import write_atomically
from faisca.text import format_bytes, json_text, printable


class Clock:
    """A clock that stands still until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(run_log, "time", clock)
    monkeypatch.setattr(tracker, "time", clock)
    return clock


# metrics.jsonl


def test_record_is_one_strict_json_object_a_line(tmp_path, clock):
    with RunLog(tmp_path, seconds_before=10.0) as log:
        clock.now += 1.23456
        log.record(stage="sft", step=3, loss=0.1 + 0.2, grad_norm=math.nan, most=np.float32(math.inf), n=np.int64(7))
        log.record(stage="sft", step=4, samples=["É golo", "\n"], shares=np.array([0.5, math.nan]))
    first, second = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert first == (
        '{"stage": "sft", "step": 3, "seconds": 11.235, "loss": 0.30000000000000004, '
        '"grad_norm": null, "most": null, "n": 7, "grad_norm_is": "not a number", "most_is": "infinite"}'
    )
    assert '"É golo"' in second
    assert json.loads(second)["shares"] == [0.5, None]


def test_flush_returns_the_size_on_disk(tmp_path):
    with RunLog(tmp_path) as log:
        assert log.flush() == 0
        log.record(stage="pretrain", step=1, title="São João")
        assert log.flush() == (tmp_path / "metrics.jsonl").stat().st_size > 0


def test_resuming_cuts_the_file_back_and_appends(tmp_path):
    with RunLog(tmp_path) as log:
        log.record(stage="pretrain", step=1)
        size = log.flush()
        log.record(stage="pretrain", step=2, after_the_checkpoint=True)
    with RunLog(tmp_path, metrics_bytes=size, seconds_before=5.0) as log:
        log.record(stage="pretrain", step=2)
        assert log.flush() == (tmp_path / "metrics.jsonl").stat().st_size
    records = read_records(tmp_path)
    assert [record["step"] for record in records] == [1, 2]
    assert "after_the_checkpoint" not in records[1]
    assert records[1]["seconds"] >= 5.0


def test_a_new_run_starts_the_file_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"old": 1}\n')
    with RunLog(tmp_path / "nested" / "run"), RunLog(tmp_path):
        pass
    assert read_records(tmp_path) == read_records(tmp_path / "nested" / "run") == []


def test_a_file_shorter_than_its_checkpoint_says_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(FaiscaError, match=r"metrics\.jsonl has \d bytes, but .* after 100: put the whole file back"):
        RunLog(tmp_path, metrics_bytes=100)


def test_a_file_that_has_changed_since_its_checkpoint_is_an_error(tmp_path):
    with RunLog(tmp_path) as log:
        log.record(stage="pretrain", step=1)
        kept = {"metrics_bytes": log.flush(), "metrics_sha256": log.metrics_sha256}
    with RunLog(tmp_path, **kept) as log:
        assert log.metrics_sha256 == kept["metrics_sha256"]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1", b"7"))
    with pytest.raises(FaiscaError, match=r"metrics\.jsonl is not as it was .*: put the whole file back, or move it"):
        RunLog(tmp_path, **kept)


def test_a_missing_file_is_begun_anew_and_said_to_be(tmp_path, capsys):
    with RunLog(tmp_path, metrics_bytes=100) as log:
        log.record(stage="sft", step=5)
        assert log.flush() == (tmp_path / "metrics.jsonl").stat().st_size
    assert "metrics.jsonl is missing: it begins anew" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FaiscaError, match=r"file.*cannot be written.*: choose another folder"):
        RunLog(tmp_path / "file")


def test_reading_leaves_out_a_torn_last_line_and_names_a_broken_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_records(tmp_path) == [{"step": 1}, {"step": 2}]
    for broken in ("{oops}", "[1]", "\x00"):
        path.write_text('{"step": 1}\n' + broken + "\n")
        with pytest.raises(FaiscaError, match="line 2 is not a JSON object"):
            read_records(tmp_path)
    with pytest.raises(FaiscaError, match=r"has no metrics\.jsonl"):
        read_records(tmp_path / "elsewhere")


def test_json_text_refuses_what_it_does_not_know():
    assert json_text({"a": (1, True, None, -math.inf)}) == '{"a": [1, true, null, null]}'
    with pytest.raises(TypeError):
        json_text({"a": object()})


def test_a_failing_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# the console


def test_say_prints_texts_as_they_are_on_one_line(tmp_path, capsys):
    text = "[bold]título[/bold] :smile: " + "muito longo " * 20
    with RunLog(tmp_path) as log:
        log.say(text.strip())
        log.say("\x1b[2J\rsteered\x9b5n")
    assert capsys.readouterr().out == text.strip() + "\n [2J steered 5n\n"


def test_printable_keeps_what_people_write():
    text = "É “golo”, 5 € 🚀\n東京 مرحبا"
    assert printable(text) == text
    assert printable("a\tb\x00\u202ec") == "a b  c"


def test_plain_progress_is_a_line_every_two_seconds_and_the_last(tmp_path, capsys, clock):
    with RunLog(tmp_path) as log, log.track("pretrain", 1300, done=1000) as tracker:
        for done in range(1010, 1301, 10):
            clock.now += 0.25
            values = {"loss": 4.2 if done < 1300 else math.nan, "kl": 0.00123, "skipped": None, "rows": 12345}
            tracker.update(done, **values, tokens_per_second=12345.4, peak_memory_bytes=1.23e9)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "pretrain  1,080/1,300  loss 4.20  kl 0.0012  rows 12,345  12,345 tokens/s  1.2 GB  ETA 0:00:06",
        "pretrain  1,160/1,300  loss 4.20  kl 0.0012  rows 12,345  12,345 tokens/s  1.2 GB  ETA 0:00:04",
        "pretrain  1,240/1,300  loss 4.20  kl 0.0012  rows 12,345  12,345 tokens/s  1.2 GB  ETA 0:00:02",
        "pretrain  1,300/1,300  loss nan  kl 0.0012  rows 12,345  12,345 tokens/s  1.2 GB  in 0:00:08",
    ]


def test_values_stay_until_given_anew(tmp_path, capsys):
    with RunLog(tmp_path) as log, log.track("sft", 100) as tracker:
        tracker.update(10, loss=3.0, stage_name="pt")
        tracker.update(100)
    assert re.fullmatch(r"sft  100/100  loss 3\.00  stage name pt  in 0:00:00\n", capsys.readouterr().out)


def test_progress_without_anything_to_do(tmp_path, capsys):
    with RunLog(tmp_path) as log:
        with log.track("empty", 0) as tracker:
            tracker.update(0)
        with log.track("resumed", 10, done=5) as tracker:
            tracker.update(5)
        with log.track("never updated", 10):
            pass
    assert capsys.readouterr().out == "empty  0/0  in 0:00:00\nresumed   5/10  ETA -:--:--\n"


def test_an_error_in_tracked_work_shows_how_far_it_came(tmp_path, capsys, clock):
    def interrupted():
        with RunLog(tmp_path) as log, log.track("grpo", 30) as tracker:
            clock.now += 1
            tracker.update(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().out == "grpo  10/30  ETA 0:00:02\n"


def test_colours_may_be_forced_but_a_file_gets_no_live_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with RunLog(tmp_path) as log, log.track("sft", 2) as tracker:
        tracker.update(2)
    assert capsys.readouterr().out == "sft  2/2  in 0:00:00\n"


UNWANTED = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")

LIVE = """
import sys, time
from pathlib import Path
from faisca.runs.log import RunLog

with RunLog(Path(sys.argv[1])) as log, log.track("pretrain", 300) as tracker:
    for done in (100, 200, 300):
        time.sleep(0.11)
        tracker.update(done, loss=4.0, tokens_per_second=1e4, peak_memory_bytes=1e9)
        log.say(f"beside {done}")
        with log.track("evaluate", 2) as inner:
            inner.update(2)
"""


def run_in_terminal(command: list[str], columns: int, **environment: str) -> str:
    """What a program writes to a terminal of this width."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in UNWANTED}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=kept | {"TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # how Linux says that the other end has closed
        pass
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode()


@pytest.mark.parametrize("columns", [100, 30])
def test_a_terminal_gets_a_live_bar_that_fits(tmp_path, columns):
    written = run_in_terminal([sys.executable, "-c", LIVE, str(tmp_path)], columns)
    assert "\x1b[" in written
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    frames = [line.rstrip() for line in re.split(r"[\r\n]+", shown)]
    assert max(map(len, frames)) <= columns
    for done in (100, 200, 300):
        assert f"beside {done}" in frames
        assert any(line.startswith("pretrain") and f" {done}/300" in line for line in frames)
    assert any("━" in line and "10,000 tokens/s  1.0 GB" in line for line in frames) == (columns == 100)


NOTES = """
import sys, time
from pathlib import Path
from faisca.runs.log import RunLog

with RunLog(Path(sys.argv[1])) as log:
    log.say("palavra " * 20)
    log.say("faisca " + "comando " * 12, whole=True)
    with log.track("grpo", 2) as tracker:
        for done in (1, 2):
            time.sleep(0.11)
            tracker.update(done, [(f"best {done}", "[bold]golo[/] :smile: \\x1b[2J" + "longo " * 20)], reward=1.0)
"""


def test_notes_stand_below_the_bar_as_text_and_lines_break_at_words(tmp_path):
    written = run_in_terminal([sys.executable, "-c", NOTES, str(tmp_path)], 50)
    assert "\x1b[2J" not in written
    frames = [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written))]
    assert frames.count("palavra palavra palavra palavra palavra palavra") == 3
    assert "faisca " + "comando " * 11 + "comando" in frames  # to be copied, in one piece
    for done in (1, 2):
        at = frames.index(f"  best {done}")
        assert f" {done}/2 " in frames[at - 1] and frames[at + 1].startswith("    [bold]golo[/] :smile:")
        assert frames[at + 1].endswith("…") and len(frames[at + 1]) <= 50


def test_plain_notes_are_a_line_each(tmp_path, capsys):
    with RunLog(tmp_path) as log, log.track("grpo", 1) as tracker:
        tracker.update(1, [("best  reward 1.00", "[b]golo\x1b[2J\n fim"), ("worst", "x" * 200)], reward=0.5)
    first, best, worst = capsys.readouterr().out.splitlines()
    assert first.startswith("grpo  1/1  reward 0.50") and best == "  best  reward 1.00  [b]golo [2J fim"
    assert worst == "  worst  " + "x" * 159 + "…"


def test_no_color_is_respected(tmp_path):
    coloured = re.compile(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[0-9;]*m")
    command = [sys.executable, "-c", LIVE, str(tmp_path)]
    assert coloured.search(run_in_terminal(command, 100))
    assert not coloured.search(run_in_terminal(command, 100, NO_COLOR="1"))


# memory


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_234_000_000, "1.2 GB"),
        (12_200_000_000, "12.2 GB"),
        (10**16, "10000 TB"),
    ],
)
def test_sizes_in_words(size, words):
    assert format_bytes(size) == words


def test_peak_resident_memory_sees_what_was_used_and_can_be_reset():
    """In a process of its own: here, memory that other tests leave behind may be freed meanwhile."""
    size = 100_000_000
    lines = (
        "from faisca.system.memory import peak_resident_bytes as peak, reset_peak",
        f"first = peak(); reset = reset_peak(); base = peak(); block = b'x' * {size}; used = peak(); del block",
        "print(first, int(reset), base, used, int(reset_peak()), peak())",
    )
    printed = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    ).stdout
    first, reset, base, used, again, after = map(int, printed.split())
    assert used >= max(base, size)
    if reset:
        assert again and used - base > 0.9 * size
        assert after < used - size / 2
    else:
        assert used >= first


def test_peak_of_other_systems(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    usage = SimpleNamespace(ru_maxrss=5000)
    monkeypatch.setattr(memory.resource, "getrusage", lambda _: usage)
    assert memory.reset_peak() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    assert memory.peak_resident_bytes() == 5000 * 1024
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.peak_resident_bytes() == 5000
    memory.STATUS.write_text("VmPeak:\t 9 kB\nVmHWM:\t    7 kB\nVmRSS:\t 6 kB\n")
    assert memory.peak_resident_bytes() == 7 * 1024


# --- completions --------------------------------------------------------------------------------


def completion_rows(*steps: int) -> list[dict]:
    return [{"step": step, "completion": "é", "reward": float("nan")} for step in steps for _ in range(2)]


def test_completions_are_a_file_of_their_own_and_cut_back_alike(tmp_path):
    path = tmp_path / "completions.jsonl"
    with RunLog(tmp_path) as log:
        assert (log.completions_bytes, log.completions_sha256) == (0, None) and not path.exists()
        log.record_completions(completion_rows(1))
        kept = {"completions_bytes": log.completions_bytes, "completions_sha256": log.completions_sha256}
        log.record_completions(completion_rows(2))
    with RunLog(tmp_path, **kept) as log:
        log.record_completions(completion_rows(3))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 1, 3, 3]
    assert json.loads(path.read_text().splitlines()[0]) == {"step": 1, "completion": "é", "reward": None}


def test_completions_after_a_checkpoint_without_any_are_dropped(tmp_path):
    with RunLog(tmp_path) as log:
        log.record_completions(completion_rows(1))
    with RunLog(tmp_path) as log:
        assert log.completions_bytes == 0
    assert (tmp_path / "completions.jsonl").read_bytes() == b""


def test_completions_that_are_missing_or_changed_are_said_to_be(tmp_path, capsys):
    with RunLog(tmp_path) as log:
        log.record_completions(completion_rows(1))
        kept = {"completions_bytes": log.completions_bytes, "completions_sha256": log.completions_sha256}
    path = tmp_path / "completions.jsonl"
    path.write_text(path.read_text().replace("1", "7"))
    with pytest.raises(FaiscaError, match=r"completions\.jsonl is not as it was"):
        RunLog(tmp_path, **kept)
    path.unlink()
    with RunLog(tmp_path, **kept) as log:
        log.record_completions(completion_rows(2))
    assert "completions.jsonl is missing: it begins anew" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 2
