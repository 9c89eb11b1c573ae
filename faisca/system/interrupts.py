"""Ctrl-C in a run: the first asks it to save and stop after the step, the second stops at once.

So does `kill`; a terminal that is closed asks too, and may do so more than once.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)
"""Windows has none"""
NOTICE = b"\nstopping after this step, and saving (once more: stop at once)\n"


class StopRequest:
    """True once the user or the system has asked the run to stop."""

    def __init__(self) -> None:
        self.made, self.since = False, 0.0

    def __bool__(self) -> bool:
        return self.made


@contextlib.contextmanager
def stop_on_signals(patience: float = 0.0) -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a request that the loop answers between two steps.

    What comes within `patience` seconds is the same request: a launcher hands on what its processes got themselves.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.made and time.monotonic() - request.since < patience:
            return
        if request.made and number != HANGUP:
            os._exit(130)  # checkpoints appear by renaming, so there is nothing to tidy up
        request.made, request.since = True, time.monotonic()
        with contextlib.suppress(OSError):  # a terminal that is gone must not keep the run from saving
            os.write(2, NOTICE)  # print is not safe here: the signal may have come in the middle of one

    numbers = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:  # nohup ignores it, and means it
        numbers.append(HANGUP)
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
