"""`faisca launch` for real: what a user sees, processes that die or hang, and going on in other numbers."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_models import TWINS
from small_runs import arguments, killed_in, resume, start, write_material

from faisca.commands.launch import free_ports, launcher
from faisca.processes import watch
from faisca.runs.checkpoint import load_checkpoint
from faisca.runs.log import read_records

pytestmark = pytest.mark.xdist_group("processes")  # one after the other: they look for free ports
BACKENDS = [name for name in ("torch", "mlx") if name in TWINS]
LIMIT = 300
"""seconds in which anything here ends, also where a machine has much else to do"""
PARTS = ("--grpo.prompts-per-step", "2", "--grpo.minibatch-size", "4", "--sample.counted", "6")
DRY = ("--model.dropout", "0", "--model.attention-dropout", "0", *PARTS)
LONG = (*DRY, *"--stages pretrain --pretrain.epochs 99 --pretrain.max-steps 120 --run.checkpoint-every 20".split())
MARK = "FAISCA_TEST_LAUNCH"
"""a variable that all processes of a launch inherit: torchrun's are of sessions of their own"""
UNTIMED = re.compile("seconds|tokens_per_second")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"))


def begin(size: int, *words: str, backend: str = "") -> subprocess.Popen[str]:
    """`faisca launch` under way."""
    own = ["-n", str(size), *(["--backend", backend] if backend else [])]
    return under_way([sys.executable, "-m", "faisca", "launch", *own, *words])


def under_way(command: list[str]) -> subprocess.Popen[str]:
    """A command whose processes `members` finds."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.Popen(command, text=True, env=os.environ | {MARK: mark}, **pipes)
    process.mark = mark
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its status and all that was printed; nothing of it is left."""
    try:
        text, _ = process.communicate(timeout=LIMIT)
        time.sleep(0.5)
    finally:
        left = members(process)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert not left, f"processes are left: {left}\n{text}"
    return process.returncode, text


def members(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a launch; of a zombie there are no variables."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={process.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def of_rank(process: subprocess.Popen[str], rank: int) -> int:
    """The process with this number among those of a launch."""
    for pid in members(process):
        variables = set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        trains = b"faisca" in line and not {b"launch", b"--nproc-per-node", b"--starting-port"} & set(line)
        if trains and {f"RANK={rank}".encode(), f"MLX_RANK={rank}".encode()} & variables:
            return pid
    raise AssertionError(f"no process {rank}")


def wait_for(done: Callable[[], bool]) -> None:
    """Until something is so."""
    until = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.05)


def same_trajectory(one: Path, two: Path, tolerance: float = 1e-3) -> None:
    """The same records, numbers in band, and near weights."""
    left, right = read_records(one), read_records(two)
    assert [(r["stage"], r["step"], sorted(r)) for r in left] == [(r["stage"], r["step"], sorted(r)) for r in right]
    for mine, theirs in zip(left, right, strict=True):
        for name, value in mine.items():
            if isinstance(value, float) and not UNTIMED.search(name):
                assert theirs[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (mine["step"], name)
            elif name in ("samples", "tokens_seen"):
                assert theirs[name] == value
    assert farthest(one, two) < tolerance


def farthest(one: Path, two: Path) -> float:
    """The largest difference of a weight, of the newest checkpoints."""
    left, right = (load_checkpoint(folder).parameters for folder in (one, two))
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


# --- what a user sees ---------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_come_to_the_same_run(backend: str, material: Path, tmp_path: Path):
    start(material, tmp_path / "one", backend, *DRY)
    words = arguments(material, backend, *DRY, "--out", str(tmp_path / "two"))
    status, text = end(begin(2, "run", *words, backend=backend))
    assert status == 0, text
    same_trajectory(tmp_path / "one", tmp_path / "two")
    names = [sorted(p.name for p in (tmp_path / run).rglob("*") if p.is_file()) for run in ("one", "two")]
    assert names[0] == names[1], "process 0 leaves what one process leaves"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("data:", "model:", "measuring", "all of it is in"))]
    assert said and all(lines.count(line) == len([s for s in said if s == line]) for line in said)
    assert sum(line.startswith("model:") for line in lines) == 1, "process 0 alone prints"
    assert re.search(r"^launch: .*(torch\.distributed\.run|mlx\.launch) ", text, re.MULTILINE)


def test_what_is_wrong_is_said_before_anything_starts(material: Path, tmp_path: Path):
    for words, line in {
        ("-n", "3", "run", "--preset", "tiny"): "cannot be split over 3 processes: use a multiple of it",
        ("-n", "1", "run"): "--processes 1 is no launch",
        ("-n", "2"): "faisca launch needs a command to launch",
        ("-n", "2", "run", "--preset", "none"): "preset 'none' is unknown",
        ("--hostfile", "x.json", "pretrain", "--backend", "torch"): "--hostfile is for mlx.launch",
    }.items():
        command = [sys.executable, "-m", "faisca", "launch", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=LIMIT)
        assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif("mlx" not in BACKENDS, reason="needs MLX")
def test_a_port_in_use(material: Path, tmp_path: Path):
    first = free_ports(2)
    with socket.create_server(("127.0.0.1", first)):
        assert free_ports(2, first) != first
        mlx = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "2", "--starting-port", str(first), "--"]
        words = [*arguments(material, "mlx", *LONG), "--out", str(tmp_path / "run")]
        _, text = end(under_way([*mlx, sys.executable, "-m", "faisca", "run", *words]))
    assert "cannot join the others" in text and "start all of them anew" in text and "Traceback" not in text


@pytest.mark.skipif("torch" not in BACKENDS, reason="needs torch")
def test_processes_with_other_data(material: Path, tmp_path: Path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join((material / "headlines.jsonl").read_text().splitlines(keepends=True)[:300]))
    script = tmp_path / "mine.py"
    script.write_text(
        "import os, sys\nfrom faisca.cli import main\n"
        f"other = ['--data', {str(other)!r}] if os.environ['RANK'] == '1' else []\n"
        "sys.exit(main(sys.argv[1:] + other))\n"
    )
    words = ["run", *arguments(material, "torch", *LONG), "--out", str(tmp_path / "run")]
    _, text = end(under_way([*launcher("torch", 2), str(script), *words]))
    assert re.search(r"faisca: process 1 has other (options|training data of pretrain) than process 0", text), text
    assert text.count("faisca: ") == 1


# --- going on in other numbers ------------------------------------------------------------------


def stopped_at_work(size: int, folder: Path, backend: str) -> int:
    """The step at which a launch that goes on with a run was asked to stop, some steps later, and saved."""
    before = load_checkpoint(folder).state.step
    process = begin(size, "run", "--resume", str(folder), "--backend", backend)
    wait_for(lambda: load_checkpoint(folder, say=lambda _: None).state.step > before or process.poll() is not None)
    os.kill(of_rank(process, size - 1), signal.SIGTERM)  # whichever was asked, all stop
    status, text = end(process)
    assert status == 130 and f"continue with --resume {folder}" in text, text
    return load_checkpoint(folder).state.step


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.skipif(len(BACKENDS) < 2, reason="needs both frameworks")
def test_one_two_four_one_and_the_other_backend(material: Path, tmp_path: Path):
    """A run of 120 steps, begun alone, on in two processes of torch, in four of MLX's, and alone to its end."""
    start(material, tmp_path / "whole", "torch", *LONG)
    killed_in("torch", "train_step", 25, lambda: start(material, tmp_path / "parts", "torch", *LONG))
    steps = [20, stopped_at_work(2, tmp_path / "parts", "torch"), stopped_at_work(4, tmp_path / "parts", "mlx")]
    assert steps == sorted(set(steps)) and steps[-1] < 120
    resume(tmp_path / "parts", "--backend", "torch")
    for record in read_records(tmp_path / "parts"):
        assert "processes" not in json.dumps(record), "a run knows nothing of ranks"
    whole = {(r["stage"], r["step"]): r["loss"] for r in read_records(tmp_path / "whole") if "loss" in r}
    parts = {(r["stage"], r["step"]): r["loss"] for r in read_records(tmp_path / "parts") if "loss" in r}
    assert parts == {place: pytest.approx(loss, abs=1e-3) for place, loss in whole.items()}
    assert farthest(tmp_path / "whole", tmp_path / "parts") < 1e-3


# --- faults -------------------------------------------------------------------------------------


def hit(process: subprocess.Popen[str], number: int, rank: int) -> float:
    """Send a process a signal; -1 is the launcher."""
    pid = of_rank(process, rank) if rank >= 0 else launcher_of(process)
    os.kill(pid, number)
    return time.monotonic()


def launcher_of(process: subprocess.Popen[str]) -> int:
    """torchrun or mlx.launch: the parent of process 0."""
    stat = Path(f"/proc/{of_rank(process, 0)}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


FAULTS = [
    pytest.param("torch", signal.SIGKILL, 1),
    pytest.param("mlx", signal.SIGKILL, 0),
    pytest.param("mlx", signal.SIGSTOP, 1),
    pytest.param("torch", signal.SIGKILL, 0, marks=pytest.mark.full),
    pytest.param("torch", signal.SIGSTOP, 0, marks=pytest.mark.full),
    pytest.param("torch", signal.SIGSTOP, 1, marks=pytest.mark.full),
    pytest.param("mlx", signal.SIGKILL, 1, marks=pytest.mark.full),
    pytest.param("mlx", signal.SIGSTOP, 0, marks=pytest.mark.full),
]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("backend", "number", "rank"), FAULTS)
def test_a_process_that_dies_or_hangs_ends_all_and_loses_nothing(backend, number, rank, material: Path, tmp_path: Path):
    if backend not in BACKENDS:
        pytest.skip(f"needs {backend}")
    folder, words = tmp_path / "run", arguments(material, backend, *LONG)
    process = begin(2, "run", *words, "--out", str(folder), backend=backend)
    wait_for(lambda: (folder / "checkpoints/pretrain-000020").exists() or process.poll() is not None)
    began = hit(process, number, rank)
    status, text = end(process)
    assert status == 2 and time.monotonic() - began < 60, (status, text)
    how = f"has not answered for {watch.SILENCE:.0f} s" if number == signal.SIGSTOP else "has ended"
    assert re.findall(rf"faisca: process {rank} {how}, .*: continue with --resume {folder}", text), text
    assert text.count("faisca: ") == 1, text
    status, text = end(begin(2, "run", "--resume", str(folder), backend=backend))
    assert status == 0, text
    start(material, tmp_path / "whole", backend, *LONG)
    same_trajectory(tmp_path / "whole", folder)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_launcher_that_dies_stops_the_run_which_saves(backend: str, material: Path, tmp_path: Path):
    folder, words = tmp_path / "run", arguments(material, backend, *LONG, "--pretrain.max-steps", "4000")
    process = begin(2, "run", *words, "--out", str(folder), backend=backend)
    wait_for(lambda: (folder / "checkpoints/pretrain-000020").exists() or process.poll() is not None)
    hit(process, signal.SIGKILL, -1)
    process.communicate(timeout=LIMIT)
    wait_for(lambda: not members(process))
    step = load_checkpoint(folder).state.step
    assert 20 <= step < 4000 and process.returncode != 0


@pytest.mark.full
@pytest.mark.parametrize("backend", BACKENDS)
def test_fifty_deaths(backend: str, material: Path, tmp_path: Path):
    """A process, drawn like the moment, is killed again and again; in the end the run is the unbroken one."""
    from faisca.streams import generator

    draw, folder = generator(7, "deaths"), tmp_path / "run"
    words, deaths = (
        arguments(material, backend, *LONG, "--run.checkpoint-every", "2", "--pretrain.max-steps", "1500"),
        0,
    )
    process = begin(2, "run", *words, "--out", str(folder), backend=backend)
    while deaths < 50:
        wait_for(lambda: (folder / "latest").exists() or process.poll() is not None)  # noqa: B023
        began = load_checkpoint(folder).state.step
        wait_for(lambda: load_checkpoint(folder, say=lambda _: None).state.step > began or process.poll() is not None)  # noqa: B023
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1 * draw.random())
        hit(process, signal.SIGKILL, int(draw.integers(2)))
        status, text = end(process)
        assert status == 2 and text.count("faisca: ") == 1, text
        deaths += 1
        process = begin(2, "run", "--resume", str(folder), backend=backend)
    status, text = end(process)
    assert status == 0, text
    start(material, tmp_path / "whole", backend, *LONG, "--pretrain.max-steps", "1500")
    same_trajectory(tmp_path / "whole", folder)
