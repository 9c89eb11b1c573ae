"""Progress with the time that is left: a live bar on a terminal, a plain line every two seconds elsewhere.

Plain lines keep a file, or the log of a CI run, short and free of control codes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from faisca.text import clock, format_bytes, one_line

LIVE_INTERVAL = 0.1
"""seconds between two states of a live bar"""
PLAIN_INTERVAL = 2.0
"""seconds between two plain lines"""

Note = tuple[str, str]
"""a line below the state: what it is about, and a text of the model's"""
Draw = Callable[[int, str, Sequence[Note]], None]
"""shows how much is done, the whole state in words, and what stands below it"""


@contextmanager
def track(console: Console, label: str, total: int, done: int = 0) -> Iterator["Tracker"]:
    """Show progress towards `total`; `done` is where a resumed run begins."""
    with _drawing(console, label, total, done) as (draw, interval):
        tracker = Tracker(total, done, draw, interval)
        try:
            yield tracker
        finally:
            tracker.show()


@contextmanager
def track_if_long(console: Console, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that takes how much is done of `total`: shown as `track` does, once two seconds have passed."""
    began, trackers = time.monotonic(), list[Tracker]()
    with ExitStack() as stack:

        def update(done: int) -> None:
            if not trackers and time.monotonic() - began > PLAIN_INTERVAL:
                trackers.append(stack.enter_context(track(console, label, total, done)))
            for tracker in trackers:
                tracker.update(done)

        yield update


class Tracker:
    """Progress of one activity, drawn no more often than once in `interval` seconds, and at its end."""

    def __init__(self, total: int, done: int, draw: Draw, interval: float) -> None:
        self._total, self._start, self._done = total, done, done
        self._draw, self._interval = draw, interval
        self._values: dict[str, Any] = {}
        self._notes: Sequence[Note] = ()
        self._began = self._drawn_at = time.monotonic()
        self._stale = False

    def update(self, done: int, notes: Sequence[Note] = (), **shown: Any) -> None:
        """`done` of the total so far, and notes below; values shown stay until they are given anew.

        Names say units: `_per_second`, `_bytes` (tokens_per_second=12345.0 reads 12,345 tokens/s).
        """
        self._done, self._notes, self._stale = done, notes, True
        self._values |= shown
        if time.monotonic() - self._drawn_at >= self._interval:
            self.show()

    def show(self) -> None:
        """Show the present state now, unless it has been shown."""
        if self._stale:
            self._stale, self._drawn_at = False, time.monotonic()
            self._draw(self._done, self.words(), self._notes)

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


@contextmanager
def _drawing(console: Console, label: str, total: int, done: int) -> Iterator[tuple[Draw, float]]:
    if not (console.is_interactive and console.file.isatty()):
        yield partial(_print_plain, console, label), PLAIN_INTERVAL
        return
    whole = Column(no_wrap=True, min_width=cell_len(label))  # a narrow terminal crops the words, not the label
    bar = _LiveBar(
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.fields[words]}", markup=False),
        console=console,
        expand=True,
        auto_refresh=False,
    )
    with bar:
        task = bar.add_task(label, total=total, completed=done, words=f"{done:,}/{total:,}")
        yield partial(bar.draw, task), LIVE_INTERVAL


def _print_plain(console: Console, label: str, done: int, words: str, notes: Sequence[Note]) -> None:
    for line in (f"{label}  {words}", *(f"  {about}  {one_line(text)}" for about, text in notes)):
        console.print(line, soft_wrap=True)


class _LiveBar(RichProgress):
    """A bar, and two rows for each note below it: what it is about, and as much of its text as fits."""

    notes: Sequence[Note] = ()

    def draw(self, task: TaskID, done: int, words: str, notes: Sequence[Note]) -> None:
        self.notes = notes
        self.update(task, completed=done, words=words, refresh=True)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for about, text in self.notes:
            yield Text(f"  {about}", style="dim", no_wrap=True, overflow="ellipsis")
            yield Text(f"    {one_line(text)}", no_wrap=True, overflow="ellipsis")


def _value_words(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_per_second"):
        return f"{value:,.0f} {words.removesuffix(' per second')}/s"
    if isinstance(value, float):
        return f"{words} {value:.2f}" if abs(value) >= 0.1 else f"{words} {value:.2g}"
    return f"{words} {value:,}" if isinstance(value, int) else f"{words} {value}"
