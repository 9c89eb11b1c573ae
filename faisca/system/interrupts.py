"""Ctrl-C in a run: the first asks it to save and stop after the step, the second stops at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

NOTICE = b"\nstopping after this step, and saving (once more: stop at once)\n"


class StopRequest:
    """True once the user or the system has asked the run to stop."""

    def __init__(self) -> None:
        self.made = False

    def __bool__(self) -> bool:
        return self.made


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop answers between two steps."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.made:
            os._exit(130)  # checkpoints appear by renaming, so there is nothing to tidy up
        request.made = True
        with contextlib.suppress(OSError):  # a terminal that is gone must not keep the run from saving
            os.write(2, NOTICE)  # print is not safe here: the signal may have come in the middle of one

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
