"""What happens around the steps of a stage: measure, log, evaluate, show, save, stop, and both ends.

The loops of `train.py` and `grpo.py` say when; this file says how.
"""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from faisca.backend import Learner, Metrics, Model
from faisca.config import TrainConfig
from faisca.errors import FaiscaError
from faisca.parameters import Parameters
from faisca.runs.checkpoint import Checkpoint, save_checkpoint
from faisca.runs.measures import before_and_after, measures_after
from faisca.runs.state import Progress, State, best_of, versions
from faisca.training.evaluate import measure, measure_loss, show_samples
from faisca.training.rollout_report import notes, state_note
from faisca.training.run import Run


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


class Stage:
    """A stage of a run under way: its model and learner, and how far they are."""

    def __init__(
        self, run: Run, progress: Progress, model: Model, learner: Learner, reference: Parameters | None = None
    ) -> None:
        self.run, self.progress, self.model, self.learner, self.reference = run, progress, model, learner, reference
        self._pending: list[tuple[Metrics, dict[str, Any]]] = []

    @property
    def step(self) -> int:
        """Steps done so far."""
        return self.progress.step

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Go on from the checkpoint of a stage under way, or save the stage's very beginning and measure it."""
        run, progress = self.run, self.progress
        if run.setup.runtime.backend not in progress.backends[-1:]:
            progress.backends.append(run.setup.runtime.backend)
        if checkpoint is not None:
            run.setup.backend.set_optimizer_state(learner=self.learner, state=checkpoint.optimizer)
        else:
            run.see(progress.stage)
            self.save(finished=False)
        if progress.before is None and run.stages:  # the stage before this one has measured the same weights
            progress.before = measures_after(run.stages[-1])
        if progress.before is None:
            run.log.say(f"measuring the model before {progress.stage}")
            with self.nothing_lost():
                progress.before = measure(run.setup, self.model, run.yardsticks)
        run.peak_memory()  # a new peak begins

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Show progress towards the stage's last step; the clock of its steps runs inside."""
        with self.run.log.track(self.progress.stage, self.progress.total_steps, done=self.step) as self._tracker:
            self._since = time.perf_counter()
            yield

    @contextmanager
    def nothing_lost(self) -> Iterator[None]:
        """Around what a user's reward may end: the steps done are saved, and the error says how to go on."""
        try:
            yield
        except FaiscaError as error:
            with self._clock_stopped():
                self.save(finished=False)
            raise FaiscaError(f"{error}; {self._stopped()}") from error

    def note(self, metrics: Metrics, *, tokens: int, **known: Any) -> None:
        """Count the step just made. Its metrics are read every `log_every` steps: reading waits for the device."""
        self.progress.step += 1
        self.progress.tokens += tokens
        known |= {"step": self.step, "tokens": tokens, "tokens_seen": self.progress.tokens}
        self._pending.append((metrics, known))
        if len(self._pending) >= self.run.config.run.log_every:
            self._read_pending()

    def note_round(self, measured: dict[str, Any], *, tokens: int, failed: bool, learning_rate: float) -> None:
        """Count and record a round of GRPO, whose metrics have been read already; show its best and its worst."""
        progress, now = self.progress, time.perf_counter()
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += now - self._since
        self._since = now
        self.run.log.record(stage=progress.stage, step=progress.step, learning_rate=learning_rate, **measured)
        self._count_bad(failed, progress.step)
        shown = {"reward": measured["reward_mean"], "kl": measured["kl"]}
        rate = progress.tokens / progress.seconds
        self._tidy_memory()
        below = [state_note(measured), *notes(measured["best"], measured["worst"])]
        self._tracker.update(progress.step, below, **shown, tokens_per_second=rate)

    def evaluate(self) -> None:
        """Record the losses on the first `evaluation_batches` of both yardsticks."""
        run, progress = self.run, self.progress
        config: TrainConfig = getattr(run.config, progress.stage)
        with self._clock_stopped():
            loss, bits = measure_loss(run.setup, self.model, run.yardsticks["validation"], config.evaluation_batches)
            portugal, _ = measure_loss(run.setup, self.model, run.yardsticks["portugal"], config.evaluation_batches)
        progress.measured = {"validation_loss": loss, "portugal_validation_loss": portugal}
        progress.measured_step = self.step
        run.log.record(
            stage=progress.stage,
            step=self.step,
            epoch=self.step / progress.steps_per_epoch,
            tokens_seen=progress.tokens,
            validation_loss=loss,
            bits_per_byte=bits,
            portugal_validation_loss=portugal,
        )

    def show_samples(self) -> None:
        """Show and record a few headlines."""
        with self._clock_stopped():
            headlines = show_samples(self.run.setup, self.model, self.step)
        self.run.log.record(stage=self.progress.stage, step=self.step, samples=headlines)
        self.run.log.say(f"{self.progress.stage} step {self.step} writes: {headlines[0]}")

    def checkpoint_or_stop(self) -> None:
        """Save where a checkpoint is due or the run has to stop, and then stop: steps keep failing, or Ctrl-C."""
        reason = self._reason_to_stop(self.run.asked_to_stop())
        if reason or due(self.step, self.run.config.run.checkpoint_every):
            with self._clock_stopped():
                self.save(finished=False)
        if reason:
            raise reason

    def finish(self, **more: Callable[[], float]) -> None:
        """Measure the model, append the stage's entry to the summary, what `more` measures included, and save."""
        run, progress = self.run, self.progress
        assert progress.before is not None, "a stage that has begun has been measured"
        progress.peak_memory_bytes = max(progress.peak_memory_bytes, run.peak_memory())
        run.log.say(f"measuring the model after {progress.stage}")
        with self.nothing_lost():
            after = measure(run.setup, self.model, run.yardsticks)
        run.stages.append(
            {"stage": progress.stage, "steps": progress.step}
            | before_and_after(progress.before, after)
            | {name: measure_it() for name, measure_it in more.items()}
            | ({"certificate": run.certificates[progress.stage]} if progress.stage in run.certificates else {})
            | {
                "counted": run.config.sample.counted,
                "seconds": progress.seconds,
                "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else None,
                "peak_memory_bytes": progress.peak_memory_bytes,
                "peak_memory_kind": run.memory_kind if len(progress.backends) == 1 else None,
                "skipped_steps": progress.skipped,
                "backends": progress.backends,
                "data": run.data_report,
            }
        )
        full = {f"full_{name}": value for name, value in vars(after).items()}
        run.log.record(stage=progress.stage, step=progress.step, **full)
        self.save(finished=True)

    def save(self, *, finished: bool) -> None:
        """A checkpoint of this moment; it becomes the latest, and old ones along the way go."""
        run, setup = self.run, self.run.setup
        run.best = best_of(run.best, self.progress)
        state = State(
            progress=self.progress,
            finished=finished,
            config=setup.config,
            model=setup.model_config,
            backend=setup.runtime.backend,
            device=setup.runtime.device,
            dtype=setup.runtime.dtype,
            versions=versions(setup.runtime.details),
            tokenizer={"kind": setup.tokenizer.kind, "fingerprint": setup.tokenizer.fingerprint},
            stages=run.stages,
            best=run.best,
            hold_out_seed=run.hold_out_seed,
            base_sha256=run.base_sha256,
            metrics_bytes=run.log.flush(),
            metrics_sha256=run.log.metrics_sha256,
            completions_bytes=run.log.completions_bytes,
            completions_sha256=run.log.completions_sha256,
            seconds=run.log.seconds,
        )
        arrays = {
            "model": setup.backend.get_parameters(model=self.model),
            "optimizer": setup.backend.get_optimizer_state(learner=self.learner),
            **({} if self.reference is None else {"reference": self.reference}),
            "seen": {"titles": run.seen},
        }
        if not run.setup.processes.writes:
            return
        files = setup.tokenizer.files()
        run.tidy(save_checkpoint(run.folder, state, arrays, tokenizer_files=files, best=run.best_name))

    def _read_pending(self) -> None:
        """Read the metrics of the steps since the last time, write a line a step, and show the last."""
        if not self._pending:
            return
        setup, progress = self.run.setup, self.progress
        read = setup.backend.read_metrics(metrics=[metrics for metrics, _ in self._pending])
        seconds = time.perf_counter() - self._since
        rate = sum(known.pop("tokens") for _, known in self._pending) / seconds
        for measured, (_, known) in zip(read, self._pending, strict=True):
            step = known.pop("step")
            self.run.log.record(stage=progress.stage, step=step, **known, **measured, tokens_per_second=rate)
            self._count_bad(bool(measured["skipped"]), step)
        progress.seconds += seconds
        self._pending.clear()
        self._tidy_memory()
        memory = setup.backend.memory(runtime=setup.runtime, reset_peak=False).get("peak")
        self._tracker.update(self.step, loss=read[-1]["loss"], tokens_per_second=rate, memory_bytes=memory)
        self._since = time.perf_counter()

    def _tidy_memory(self) -> None:
        for line in self.run.setup.backend.tidy_memory(learner=self.learner):
            self.run.log.say(f"{self.progress.stage} step {self.step}: {line}")

    @contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """Record what is pending; what is done inside does not count as time of the steps."""
        self._read_pending()
        yield
        self._since = time.perf_counter()

    def _count_bad(self, skipped: bool, step: int) -> None:
        """Count a step whose loss or gradient was not finite."""
        self.progress.skipped += skipped
        self.progress.skipped_in_a_row = self.progress.skipped_in_a_row + 1 if skipped else 0
        if skipped:
            self.run.log.say(f"{self.progress.stage} step {step}: loss or gradient not finite, step skipped")

    def _reason_to_stop(self, asked: bool) -> BaseException | None:
        """What to raise once the step has been saved; None to go on."""
        run, progress = self.run, self.progress
        if progress.skipped_in_a_row >= run.config.run.max_bad_steps:
            failed, progress.skipped_in_a_row = progress.skipped_in_a_row, 0  # a resumed run may try as often again
            return FaiscaError(
                f"{progress.stage}: {failed} steps in a row had a loss or gradient that is not finite: start a new run "
                f"with a lower --{progress.stage}.learning-rate, or try it with --resume {self._folder}"
            )
        if run.log.output.lost:
            return KeyboardInterrupt(f"the output cannot be written ({run.log.output.lost}); {self._stopped()}")
        return KeyboardInterrupt(self._stopped()) if asked else None

    def _stopped(self) -> str:
        """How to go on from the step that has just been saved, in words."""
        return f"stopped after {self.progress.stage} step {self.step}; continue with --resume {self._folder}"

    @property
    def _folder(self) -> str:
        """The run's folder as a shell takes it."""
        return shlex.quote(str(self.run.folder))
