"""What happens around a step: reading its metrics now and then, logging them, counting the bad ones."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faisca.backend import Metrics
from faisca.errors import FaiscaError
from faisca.runs.state import Progress
from faisca.system.progress_bar import Tracker
from faisca.training.run import Run


class StepLog:
    """Collects the metrics of steps and reads them every `log_every` steps: reading waits for the device."""

    def __init__(self, run: Run, progress: Progress, tracker: Tracker) -> None:
        self.run, self.progress, self.tracker = run, progress, tracker
        self._pending: list[tuple[Metrics, dict[str, Any]]] = []
        self._since = time.perf_counter()

    def add(self, metrics: Metrics, tokens: int, **known: float) -> None:
        """Take the metrics of the step just made, and what is known of it without the device."""
        self.progress.tokens += tokens
        known |= {"step": self.progress.step, "tokens_seen": self.progress.tokens, "tokens": tokens}
        self._pending.append((metrics, known))
        if len(self._pending) >= self.run.config.run.log_every:
            self.record()

    def record(self) -> None:
        """Read what is pending, write a line a step, and show the last."""
        if not self._pending:
            return
        read = self.run.backend.read_metrics(metrics=[metrics for metrics, _ in self._pending])
        seconds = time.perf_counter() - self._since
        rate = sum(known["tokens"] for _, known in self._pending) / seconds
        for measured, (_, known) in zip(read, self._pending, strict=True):
            step = known.pop("step")
            del known["tokens"]
            self.run.log.record(stage=self.progress.stage, step=step, **known, **measured, tokens_per_second=rate)
            count_bad_step(self.run, self.progress, bool(measured["skipped"]))
        self.progress.seconds += seconds
        self._pending.clear()
        memory = self.run.backend.memory(runtime=self.run.runtime, reset_peak=False).get("peak")
        self.tracker.update(step, loss=read[-1]["loss"], tokens_per_second=rate, memory_bytes=memory)
        self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record what is pending; what is done inside does not count as time of the steps."""
        self.record()
        yield
        self._since = time.perf_counter()


def count_bad_step(run: Run, progress: Progress, skipped: bool) -> None:
    """Count a step whose loss or gradient was not finite."""
    progress.skipped += skipped
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
    if skipped:
        run.log.say(f"{progress.stage} step {progress.step}: loss or gradient not finite, step skipped")


def reason_to_stop(run: Run, progress: Progress) -> BaseException | None:
    """What to raise once the step has been saved: steps keep failing, or the user asked to stop; None to go on."""
    if progress.skipped_in_a_row >= run.config.run.max_bad_steps:
        failed, progress.skipped_in_a_row = progress.skipped_in_a_row, 0  # a resumed run may try as often again
        return FaiscaError(
            f"{progress.stage}: {failed} steps in a row had a loss or gradient that is not finite; "
            f"the weights are still good: try a lower --{progress.stage}.learning-rate, with --resume {run.folder}"
        )
    if run.stop:
        run.log.say(f"stopped after {progress.stage} step {progress.step}; continue with --resume {run.folder}")
        return KeyboardInterrupt()
    return None
