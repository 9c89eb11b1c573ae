"""A thread for each backend: it loads the models, and takes what pages ask for in turns, a step of each.

A framework's arrays stay in the thread that made them. Nobody waits for a reader: what a job has to say is
bounded (a line for each token), so it is put down for the page, and a page that is slow or gone holds up none.
"""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faisca.errors import FaiscaError
from faisca.loaded_model import LoadedModel
from faisca.text import in_one_line

Event = dict[str, Any]
Turn = tuple["Job", Generator[Event, None, None]]
AT_ONCE, WAITING = 8, 64
"""jobs that take turns, each with a key-value cache of its own, and jobs that wait for one of them to end"""
END = "end"
"""the event after which a job says nothing"""
ENDED = "faisca play has ended: start it again"
PATIENCE = 5
"""seconds"""


@dataclass(eq=False)
class Job:
    """What one column of a page asks for."""

    folder: Path
    """the checkpoint whose model does it"""
    work: Callable[[LoadedModel], Iterator[Event]]
    post: Callable[[Event], None]
    """takes what there is to say; called in the worker's thread"""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """set once nobody listens any more"""


class Worker:
    """The thread of a backend, its models and its jobs."""

    def __init__(self, name: str, load: Callable[[Path], LoadedModel]) -> None:
        self.name = name
        self._load = load
        self._models: dict[Path, LoadedModel] = {}
        self._waiting: deque[Job] = deque()
        self._unfinished: set[Job] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"play {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job at the end of those that wait; where there are too many, or the thread has ended, it is told so."""
        with self._changed:
            self._waiting = deque(one for one in self._waiting if not one.cancelled.is_set())
            self._unfinished.add(job)
            if self._stopping:
                self._end(job, ENDED)
            elif len(self._waiting) >= WAITING:
                self._end(job, f"{self.name} has {WAITING} texts to write before this one: try again in a while")
            else:
                self._waiting.append(job)
                self._changed.notify()

    def stop(self) -> None:
        """End all jobs, and the thread after its step: a model that is being loaded is waited for only so long."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
            for job in list(self._unfinished):
                self._end(job, ENDED)
        self._thread.join(timeout=PATIENCE)

    def _run(self) -> None:
        turns: deque[Turn] = deque()
        while self._admit(turns):
            job, events = turns.popleft()
            if self._step(job, events):
                turns.append((job, events))

    def _admit(self, turns: deque[Turn]) -> bool:
        """Let waiting jobs take turns; waits where there is nothing to do. False once it is to stop."""
        with self._changed:
            while not (turns or self._waiting or self._stopping):
                self._changed.wait()
            while self._waiting and len(turns) < AT_ONCE:
                job = self._waiting.popleft()
                turns.append((job, self._events(job)))
            return not self._stopping

    def _events(self, job: Job) -> Generator[Event, None, None]:
        if job.folder not in self._models:
            yield {"event": "loading"}
        if job.folder not in self._models:  # nor has another job loaded it meanwhile
            self._models[job.folder] = self._load(job.folder)
        yield from job.work(self._models[job.folder])

    def _step(self, job: Job, events: Generator[Event, None, None]) -> bool:
        """The job's next event; False where it is over, whichever way, and its page knows."""
        try:
            if job.cancelled.is_set():
                events.close()
            elif (event := next(events, None)) is not None:
                job.post(event)
                return True
            self._end(job)
        except (FaiscaError, RuntimeError, MemoryError) as error:  # bad input, or a framework out of memory
            self._end(job, in_one_line(error))
        except Exception as error:  # a bug of ours: the page says so, the terminal where, and others play on
            traceback.print_exc(file=sys.stderr)
            self._end(job, f"a fault of faisca's: {in_one_line(error)}")
        return False

    def _end(self, job: Job, problem: str = "") -> None:
        """Tell the page, once, that a job is over, and why where it could not be done."""
        with self._changed:
            if job not in self._unfinished:
                return
            self._unfinished.remove(job)
        job.cancelled.set()
        if problem:
            job.post({"event": "error", "message": problem})
        job.post({"event": END})
