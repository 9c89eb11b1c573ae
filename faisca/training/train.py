"""Pre-training and fine-tuning: the loop. The step itself stands in the twins' `train.py`."""

from faisca.backend import Model
from faisca.config import TrainConfig
from faisca.data.windows import Rows, steps_per_epoch, training_batch
from faisca.runs.checkpoint import Checkpoint
from faisca.runs.manifest import sha256
from faisca.runs.state import Progress
from faisca.streams import integer_seed
from faisca.training.run import Run
from faisca.training.schedule import learning_rate
from faisca.training.stage import Stage, due
from faisca.training.start import note_data


def train(run: Run, progress: Progress, model: Model, checkpoint: Checkpoint | None) -> None:
    """Minimise the cross-entropy of the stage's windows, `progress.stage` being pretrain or sft."""
    name, backend, seed = progress.stage, run.setup.backend, run.setup.seed
    config: TrainConfig = getattr(run.config, name)
    windows = run.windows[name]
    an_epoch = steps_per_epoch(windows, config.batch_size)
    # Epochs say how long, unless max_steps ends it earlier.
    total = min(config.max_steps or config.epochs * an_epoch, config.epochs * an_epoch)
    _note_changes(run, progress, windows, total, an_epoch)
    processes = run.setup.processes
    dropout = processes.purpose(f"dropout in {name}")
    learner = backend.make_learner(model=model, config=config)
    stage = Stage(run, progress, model, learner)
    stage.begin(checkpoint)
    # A curve begins before the first step; a resumed stage has that point already.
    if stage.step == 0:
        stage.evaluate()
    with stage.under_way():
        while stage.step < total:
            # Which windows a step sees is a pure function of the seed and the step: resuming needs no more.
            inputs, targets = training_batch(
                windows,
                batch_size=config.batch_size,
                seed=seed,
                stage=name,
                step=stage.step,
                rows=processes.part(config.batch_size),
            )
            # Forward, backward, clip and the optimiser: one call, in which nothing waits for the device.
            rate = learning_rate(config, stage.step, total)
            metrics = backend.train_step(
                learner=learner,
                inputs=inputs,
                targets=targets,
                learning_rate=rate,
                micro_batch_size=config.micro_batch_size,
                dropout_seed=integer_seed(seed, dropout, stage.step),
            )
            tokens = config.batch_size * inputs.shape[1]  # of all processes
            stage.note(metrics, tokens=tokens, learning_rate=rate, epoch=(stage.step + 1) / an_epoch)
            # Look at the model now and then, and always before a checkpoint: the best one is kept.
            saving = due(stage.step, run.config.run.checkpoint_every)
            if saving or due(stage.step, config.evaluate_every) or stage.step == total:
                stage.evaluate()
            if due(stage.step, an_epoch):
                stage.show_samples()
            stage.checkpoint_or_stop()
    stage.finish()


def _note_changes(run: Run, progress: Progress, windows: Rows, total: int, an_epoch: int) -> None:
    """Say what follows where a resumed stage has other data, or other steps, than it began with."""
    note_data(progress, sha256(windows.tokens.tobytes()), run.log.say)
    epochs, progress.steps_per_epoch = progress.steps_per_epoch, an_epoch
    if epochs not in (0, an_epoch):
        was, now = progress.step / epochs, progress.step / an_epoch
        run.log.say(
            f"an epoch has now {an_epoch} steps, not {epochs}: step {progress.step} is epoch {now:.2f}, not {was:.2f}"
        )
    steps, progress.total_steps = progress.total_steps, total
    if steps not in (0, total):
        run.log.say(
            f"{progress.stage} ends after step {max(total, progress.step)}, not {steps}, and with it the "
            "schedule of its learning rates"
        )
