"""Both ends of a stage: measure and save before it; measure, enter it in the summary and save after it."""

from collections.abc import Callable
from typing import Any

from faisca.backend import Learner, Model
from faisca.runs.checkpoint import Checkpoint
from faisca.runs.state import Progress
from faisca.training.evaluate import measure
from faisca.training.run import Run

MEASURES = (
    "validation_loss",
    "bits_per_byte",
    "portugal_validation_loss",
    "football_share",
    "reward",
    "reward_std",
    "distinct_share",
    "samples",
)


def begin_stage(
    run: Run, progress: Progress, model: Model, learner: Learner, checkpoint: Checkpoint | None, reference: Any = None
) -> None:
    """Take the optimiser's state from the checkpoint of a stage under way, or save the stage's very beginning.

    Then measure the model, unless the stage before this one or the checkpoint has done so.
    """
    if run.runtime.backend not in progress.backends[-1:]:
        progress.backends.append(run.runtime.backend)
    if checkpoint is not None:
        run.backend.set_optimizer_state(learner=learner, state=checkpoint.optimizer)
    else:
        run.save(progress, model=model, learner=learner, finished=False, reference=reference)
    last = run.stages[-1] if run.stages else {}
    if not progress.before and all(f"{name}_after" in last for name in MEASURES):  # an older version had fewer
        progress.before = {name: last[f"{name}_after"] for name in MEASURES}
    if not progress.before:
        run.log.say(f"measuring the model before {progress.stage}")
        progress.before = measure(run.bench, model, run.yardsticks)
    run.peak_memory()  # a new peak begins


def finish_stage(
    run: Run, progress: Progress, model: Model, learner: Learner, reference: Any = None, **more: Callable[[], float]
) -> None:
    """Append the stage's entry to the summary (what `more` measures goes into it too) and write its last checkpoint."""
    progress.peak_memory_bytes = max(progress.peak_memory_bytes, run.peak_memory())
    run.log.say(f"measuring the model after {progress.stage}")
    after = measure(run.bench, model, run.yardsticks)
    entry: dict[str, Any] = {"stage": progress.stage, "steps": progress.step}
    for name in MEASURES:
        entry |= {f"{name}_before": progress.before.get(name), f"{name}_after": after[name]}
    entry |= {name: measure_it() for name, measure_it in more.items()}
    entry |= {
        "counted": run.config.sample.counted,
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else None,
        "peak_memory_bytes": progress.peak_memory_bytes,
        "peak_memory_kind": run.memory_kind if len(progress.backends) == 1 else None,
        "skipped_steps": progress.skipped,
        "backends": progress.backends,
    }
    run.stages.append(entry)
    run.log.record(stage=progress.stage, step=progress.step, **{f"full_{name}": after[name] for name in MEASURES})
    run.save(progress, model=model, learner=learner, finished=True, reference=reference)
