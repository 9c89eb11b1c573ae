"""Rewards in processes: the same numbers, an end to what hangs, and no process that outlives its run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from faisca.errors import FaiscaError
from faisca.rewards.judge import Judge
from faisca.rewards.samples import Samples
from faisca.rewards.workers import Workers

REWARDS = """
import os, re, time

def length(completions, prompts, answer):
    return [len(c) + len(p) + a for c, p, a in zip(completions, prompts, answer)]

def sleeps(texts):
    time.sleep(60 if "hang" in texts else 0)
    return [1.0] * len(texts)

def backtracks(texts):
    return [float(bool(re.match(r"(a+)+$", text))) for text in texts]

def slow_first(texts):
    time.sleep(float(texts[0]))
    return [float(text) for text in texts]

def dies(texts):
    if "die" in texts:
        os._exit(7)
    return [1.0] * len(texts)

def raises(texts):
    return [1 / len(text) for text in texts]

def process(texts):
    open(os.environ["PIDS"], "a").write(f"{os.getpid()}\\n")
    re.match(r"(a+)+$", "a" * 60 + "b") if "forever" in texts else None
    time.sleep(60 if "hang" in texts else 0)
    return [1.0] * len(texts)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(REWARDS)
    return path


def texts(*completions: str) -> Samples:
    n = len(completions)
    return Samples(list(completions), ["p"] * n, [[1]] * n, {"answer": list(range(n))})


def score(names: list[str], samples: Samples, said: list[str], **options: float) -> tuple[list[float], dict[str, int]]:
    judge = Judge(names, **options)  # type: ignore[arg-type]
    judge.say = said.append
    try:
        scores = judge.score(samples)
        return scores.total.tolist(), scores.failed
    finally:
        judge.close()


def test_rewards_are_the_same_with_any_number_of_processes(file):
    names = [f"{file}:length", "distinct", "length:2-3", f"{file}:raises"]
    results = []
    for workers in (0, 1, 3):
        said: list[str] = []
        judge = Judge(names, [1, 0.5, 2, -1], workers=workers)
        judge.say = said.append
        scores = judge.score(texts("a", "bb", "", "bb", "c c c"))
        judge.close()
        results.append(({k: v.tolist() for k, v in scores.parts.items()}, scores.total.tolist(), scores.failed, said))
    first = repr(results[0])
    assert "nan" in first and [repr(one) for one in results[1:]] == [first, first]


def test_rewards_of_a_row_have_its_columns(file, tmp_path):
    """Where a call fails for one completion, each is judged anew with what belongs to it."""
    body = "def f(completions, answer): return [a / len(c) for c, a in zip(completions, answer)]\n"
    (tmp_path / "m.py").write_text(body)
    total, failed = score([f"{tmp_path}/m.py:f"], texts("a", "", "cc", "d"), [])
    assert [total[0], *total[2:]] == [0, 1, 3] and failed == {"f": 1}


def test_outcomes_stand_in_the_order_of_the_jobs(file):
    """The first takes longest, and the others have another process."""
    workers = Workers([f"{file}:slow_first"], 2, 0.0)
    jobs = [(0, Samples.of_texts([text])) for text in ("0.5", "0.0", "0.1")]
    try:
        rewards = [outcome.rewards for outcome in workers.perform(jobs)]
    finally:
        workers.close()
    assert [one.tolist() for one in rewards if one is not None] == [[0.5], [0.0], [0.1]]


@pytest.mark.parametrize("function", ["sleeps", "backtracks"])
def test_a_completion_that_hangs_has_no_reward_and_its_process_is_replaced(file, function):
    """A regular expression that backtracks holds the interpreter: nothing inside of the process could end it."""
    hanging = {"sleeps": "hang", "backtracks": "a" * 60 + "b"}[function]
    said: list[str] = []
    judge = Judge([f"{file}:{function}"], timeout=0.5)
    judge.say = said.append
    began = time.monotonic()
    scores = judge.score(texts("aa", hanging, "aa"))
    assert time.monotonic() - began < 30
    assert np.isnan(scores.total).tolist() == [False, True, False] and scores.total[0] == scores.total[2] == 1
    assert scores.failed == {function: 1}
    assert len(said) == 1 and "no number for 1 of 3" in said[0] and "longer than grpo.reward_timeout 0.5" in said[0]
    assert judge.score(texts("aa")).total.tolist() == [1.0]  # with another process
    judge.close()


def test_a_process_that_dies_is_one_completion_without_a_reward(file):
    said: list[str] = []
    total, failed = score([f"{file}:dies"], texts("a", "die"), said, workers=1)
    assert total[0] == 1 and np.isnan(total[1]) and failed == {"dies": 1}
    assert "its process ended with status 7" in said[0]


def test_a_reward_that_always_hangs_stops_the_run_with_one_line(file):
    with pytest.raises(FaiscaError, match=r"took longer than grpo\.reward_timeout 0\.3 seconds"):
        score([f"{file}:sleeps"], texts("hang"), [], timeout=0.3)


def test_a_file_that_only_loads_here_is_one_line(tmp_path):
    body = "import multiprocessing\nassert multiprocessing.parent_process() is None\ndef f(t): return [1.0] * len(t)\n"
    (tmp_path / "m.py").write_text(body)
    assert score([f"{tmp_path}/m.py:f"], texts("a"), [])[0] == [1.0]
    with pytest.raises(FaiscaError, match="cannot be run: AssertionError"):
        score([f"{tmp_path}/m.py:f"], texts("a"), [], workers=1)


def test_a_script_that_trains_unguarded_is_told_so(file, tmp_path):
    body = RUN.replace('if __name__ == "__main__":', "if True:")
    (tmp_path / "run.py").write_text(body)
    command = [sys.executable, str(tmp_path / "run.py"), f"{file}:raises", "wait", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode and "as it began: a script that trains does so below if __name__" in done.stderr


RUN = """
import signal, sys
from faisca.rewards.judge import Judge
from faisca.rewards.samples import Samples

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
    judge = Judge([sys.argv[1]], workers=2, timeout=float(sys.argv[3]))
    judge.score(Samples.of_texts(["a"]))
    print("ready", flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
    judge.score(Samples.of_texts([sys.argv[2]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("busy", "timeout"), [("wait", 0), ("hang", 0), ("forever", 1.5)])
def test_processes_end_with_their_run_however_it_ends(file, tmp_path, stop, busy, timeout):
    """Waiting for work, asleep in Python, and in C code that holds the interpreter."""
    script, pids = tmp_path / "run.py", tmp_path / "pids"
    script.write_text(RUN)
    environment = os.environ | {"PIDS": str(pids)}
    command = [sys.executable, str(script), f"{file}:process", busy, str(timeout)]
    run = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "ready\n"
    children = set(_children(run.pid))
    assert len(children) >= 2
    time.sleep(0.3)
    run.send_signal(stop)
    assert run.wait(timeout=20) != 0
    assert _gone(children, 15), "processes that outlive their run"


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(one) for one in listed.stdout.split()]


def _gone(pids: set[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")
