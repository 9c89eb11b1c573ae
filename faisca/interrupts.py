"""Ctrl-C in a run: the first asks it to save and stop after the step, the second stops at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """True once the user or the system has asked the run to stop."""

    def __init__(self) -> None:
        self.made = False

    def __bool__(self) -> bool:
        return self.made


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop answers between two steps."""
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.made:
            os._exit(130)  # checkpoints appear by renaming, so there is nothing to tidy up
        request.made = True
        say("stopping after this step, and saving (once more: stop at once)")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
