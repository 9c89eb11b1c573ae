"""Rewards in processes of their own: several at once, and one that hangs is ended, with its process, and replaced.

No library's pool ends a single process that hangs in C code, and leaves none behind where the run is killed. Processes
are spawned, so that they share no lock and no device with the run. They end with it, however it ends: one that waits
reads the end of its pipe, one that computes is watched by a thread; and one that holds the interpreter, as a regular
expression that backtracks for ever does, by a timer outside of it (`faulthandler`).
"""

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from faisca.errors import FaiscaError
from faisca.rewards.named import is_file, load_reward
from faisca.rewards.samples import Outcome, Samples, attempt

Job = tuple[int, Samples]
"""which reward, of which completions"""
GRACE = 2.0
"""seconds after its time in which a process without a run ends itself"""


class Workers:
    """`count` processes that compute the rewards of these names; `timeout` seconds for each call, 0 is none."""

    def __init__(self, names: Sequence[str], count: int, timeout: float) -> None:
        self._names, self._timeout = tuple(names), timeout
        self._idle = [_Worker(self._names, timeout) for _ in range(count)]
        for worker in self._idle:
            worker.wait_until_ready()
        self._busy: list[_Worker] = []

    def perform(self, jobs: Iterable[Job]) -> list[Outcome]:
        """The outcomes of the jobs, in their order; each is done by whichever process is free."""
        waiting, done = deque(enumerate(jobs)), dict[int, Outcome]()
        while waiting or self._busy:
            while waiting and self._idle:
                worker = self._idle.pop()
                self._busy.append(worker)
                worker.begin(*waiting.popleft())
            wait([worker.connection for worker in self._busy], self._time_left())
            for worker in list(self._busy):
                outcome = worker.outcome()
                if outcome is not None:
                    done[worker.number] = outcome
                    self._busy.remove(worker)
                    self._idle.append(worker if worker.alive else self._replacement())
        return [done[number] for number in sorted(done)]

    def close(self) -> None:
        """End all processes, whatever they do."""
        for worker in (*self._idle, *self._busy):
            worker.end()
        self._idle, self._busy = [], []

    def _replacement(self) -> "_Worker":
        worker = _Worker(self._names, self._timeout)
        worker.wait_until_ready()
        return worker

    def _time_left(self) -> float | None:
        """Seconds until the first process runs out of time."""
        if not self._timeout:
            return None
        return max(0.0, min(worker.deadline for worker in self._busy) - time.monotonic())


class _Worker:
    """A process, and the job that it is at."""

    def __init__(self, names: tuple[str, ...], timeout: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, names, timeout), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is seen here
        self._timeout = timeout
        self.alive, self.number, self.deadline = True, -1, 0.0

    def wait_until_ready(self) -> None:
        """Python and the user's file are loaded: that is not time of the reward's."""
        try:
            problem = self.connection.recv()
        except EOFError:
            problem = (
                f"a process for rewards {self._ended()} as it began: a script that trains does so below "
                "if __name__ == '__main__':, for each process reads it"
            )
        if problem:
            self.end()
            raise FaiscaError(problem)

    def begin(self, number: int, job: Job) -> None:
        """Take the job with this number."""
        self.number, self.deadline = number, time.monotonic() + self._timeout
        with suppress(OSError):  # it has ended since its last job: `outcome` reads that
            self.connection.send(job)

    def outcome(self) -> Outcome | None:
        """What came of the job; None while it is at it."""
        try:
            if self.connection.poll():
                received: Outcome = self.connection.recv()
                return received
        except (EOFError, OSError):
            self.end()
            return Outcome(failed=f"failed: its process {self._ended()}")
        if self._timeout and time.monotonic() >= self.deadline:
            self.end()
            return Outcome(failed=f"took longer than grpo.reward_timeout {self._timeout:g} seconds")
        return None

    def end(self) -> None:
        """Kill the process."""
        self.alive = False
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _ended(self) -> str:
        self._process.join(GRACE)
        return f"ended with status {self._process.exitcode}"


def _work(connection: Connection, names: tuple[str, ...], timeout: float) -> None:
    """What the process does: load the rewards, then job after job until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its processes
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    try:
        functions = [load_reward(name) for name in names]
    except FaiscaError as error:
        connection.send(str(error))
        return
    connection.send("")
    with open(os.devnull, "w") as nowhere:
        while True:
            try:
                reward, samples = connection.recv()
            except EOFError:
                return
            if timeout:
                faulthandler.dump_traceback_later(timeout + GRACE, exit=True, file=nowhere)
            outcome = attempt(functions[reward], samples, texts=not is_file(names[reward]))
            faulthandler.cancel_dump_traceback_later()
            connection.send(outcome)


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None, "it was started by a run"
    run.join()
    os._exit(1)
