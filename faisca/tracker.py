"""Progress with the time that is left: a live bar on a terminal, a plain line every two seconds elsewhere.

Plain lines keep a file, or the log of a CI run, short and free of control codes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from faisca.memory import format_bytes

LIVE_INTERVAL = 0.1
"""seconds between two states of a live bar"""
PLAIN_INTERVAL = 2.0
"""seconds between two plain lines"""

Draw = Callable[[int, str], None]
"""shows how much is done, and the whole state in words"""


@contextmanager
def track(console: Console, label: str, total: int, done: int = 0) -> Iterator["Tracker"]:
    """Show progress towards `total`; `done` is where a resumed run begins."""
    with _drawing(console, label, total, done) as (draw, interval):
        tracker = Tracker(total, done, draw, interval)
        try:
            yield tracker
        finally:
            tracker.show()


class Tracker:
    """Progress of one activity, drawn no more often than once in `interval` seconds, and at its end."""

    def __init__(self, total: int, done: int, draw: Draw, interval: float) -> None:
        self._total, self._start, self._done = total, done, done
        self._draw, self._interval = draw, interval
        self._values: dict[str, Any] = {}
        self._began = self._drawn_at = time.monotonic()
        self._stale = False

    def update(self, done: int, **shown: Any) -> None:
        """`done` of the total so far; values shown stay until they are given anew.

        Names say units: `_per_second`, `_bytes` (tokens_per_second=12345.0 reads 12,345 tokens/s).
        """
        self._done, self._stale = done, True
        self._values |= shown
        if time.monotonic() - self._drawn_at >= self._interval:
            self.show()

    def show(self) -> None:
        """Show the present state now, unless it has been shown."""
        if self._stale:
            self._stale, self._drawn_at = False, time.monotonic()
            self._draw(self._done, self.words())

    def words(self) -> str:
        """The state in words, as in `120/300  loss 4.21  12,345 tokens/s  1.2 GB  ETA 0:00:41`."""
        count = f"{self._done:>{len(f'{self._total:,}')},}/{self._total:,}"
        values = [_value_words(name, value) for name, value in self._values.items() if value is not None]
        return "  ".join([count, *values, self._time_words()])

    def _time_words(self) -> str:
        elapsed = time.monotonic() - self._began
        if self._done >= self._total:
            return f"in {clock(elapsed)}"
        if self._done <= self._start:
            return "ETA -:--:--"
        return f"ETA {clock(elapsed / (self._done - self._start) * (self._total - self._done))}"


def clock(seconds: float) -> str:
    """A duration as H:MM:SS."""
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def _drawing(console: Console, label: str, total: int, done: int) -> Iterator[tuple[Draw, float]]:
    if not (console.is_interactive and console.file.isatty()):
        yield lambda _, words: console.print(f"{label}  {words}", soft_wrap=True), PLAIN_INTERVAL
        return
    with _live_bar(console, label) as bar:
        task = bar.add_task(label, total=total, completed=done, words=f"{done:,}/{total:,}")
        draw = partial(bar.update, task, refresh=True)
        yield lambda done, words: draw(completed=done, words=words), LIVE_INTERVAL


def _live_bar(console: Console, label: str) -> Progress:
    whole = Column(no_wrap=True, min_width=cell_len(label))  # a narrow terminal crops the words, not the label
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.fields[words]}", markup=False),
        console=console,
        expand=True,
        auto_refresh=False,
    )


def _value_words(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_per_second"):
        return f"{value:,.0f} {words.removesuffix(' per second')}/s"
    if isinstance(value, float):
        return f"{words} {value:.2f}" if abs(value) >= 0.1 else f"{words} {value:.2g}"
    return f"{words} {value:,}" if isinstance(value, int) else f"{words} {value}"
