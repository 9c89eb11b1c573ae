"""The recipe: pre-training, SFT and GRPO, one after the other on one model, from the start or from a checkpoint."""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faisca.backend import Model
from faisca.config import STAGES, Config, TrainConfig
from faisca.config.files import config_from_dict
from faisca.data.sources import is_path
from faisca.data.windows import Windows, steps_per_epoch, training_batch
from faisca.errors import FaiscaError
from faisca.parameters import initial_parameters
from faisca.runs.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, read_state, write_pointers
from faisca.runs.checks import check_resumable
from faisca.runs.folder import hold_folder
from faisca.runs.manifest import sha256
from faisca.runs.plots import draw_charts
from faisca.runs.state import Progress
from faisca.runs.summary import show_summary, write_summary
from faisca.streams import integer_seed
from faisca.training.evaluate import measure_loss, show_samples
from faisca.training.grpo import reinforce
from faisca.training.run import Run, due, open_run
from faisca.training.schedule import learning_rate
from faisca.training.stage import begin_stage, finish_stage
from faisca.training.step_log import StepLog, reason_to_stop


def run(config: Config, folder: Path, start_from: Path | None = None) -> dict[str, Any]:
    """Run `config.run.stages` in a new folder, from initial weights or from a checkpoint's; returns the summary."""
    first = config.run.stages[0]
    if start_from is None and first != "pretrain":
        raise FaiscaError(f"{first} starts from a trained model: name a checkpoint with --from")
    checkpoint = None if start_from is None else load_checkpoint(start_from)
    data_words = "" if checkpoint is None else compare_data(config, checkpoint)
    with open_run(config, folder, checkpoint=checkpoint) as opened:
        if checkpoint is None:
            parameters = initial_parameters(opened.model_config, config.run.seed)
        else:
            opened.log.say(f"starting from {checkpoint.folder}: its model, tokenizer and weights; {data_words}")
            parameters = checkpoint.parameters
        return _run_stages(opened, _make_model(opened, parameters), list(config.run.stages), None)


def resume(folder: Path, config: Config) -> dict[str, Any]:
    """Continue a run from its newest good checkpoint, as if it had never stopped; returns the summary."""
    with hold_folder(folder):
        checkpoint = load_checkpoint(folder)
        state = checkpoint.state
        check_resumable(checkpoint.folder, state, checkpoint.optimizer, checkpoint.reference, config)
        with open_run(config, folder, checkpoint=checkpoint, resuming=True) as opened:
            opened.log.say(f"resuming after step {checkpoint.step} of {checkpoint.stage}")
            _note_change(opened, checkpoint)
            model = _make_model(opened, checkpoint.parameters)
            first = STAGES.index(checkpoint.stage) + state["finished"]
            to_do = [stage for stage in config.run.stages if STAGES.index(stage) >= first]
            _complete(opened, checkpoint)
            return _run_stages(opened, model, to_do, None if state["finished"] else checkpoint)


def saved_config(folder: Path) -> Config:
    """The configuration in a run's newest good checkpoint."""
    return config_from_dict(read_state(find_checkpoint(folder, say=lambda _: None))["config"])


def compare_data(config: Config, checkpoint: Checkpoint) -> str:
    """Whether a run measures on the titles that its checkpoint was trained and measured on, in words.

    Raises FaiscaError where those are to be taken, and the files are not there.
    """
    source, begun = config.data.source, config_from_dict(checkpoint.state["config"])
    if checkpoint.state["backend"] == "imported":
        return f"data: {source} (what an imported model was trained on is not known)"
    data = config.data
    if dataclasses.replace(begun.data, window=data.window, stride=data.stride) != data:  # windows change no title
        theirs = begun.data.source if begun.data.source != source else "the same source with other options"
        return f"data: {source}, not its own ({theirs}): losses cannot be compared with those of that run"
    if is_path(source) and not Path(source).expanduser().exists():
        raise FaiscaError(
            f"{checkpoint.folder} was trained on {source}, which does not exist here: name it with --data PATH, "
            "or other data, with which losses cannot be compared with those of that run"
        )
    if is_path(source) and begun.run.seed != config.run.seed:
        return f"its data, {source}, but with seed {config.run.seed}: where titles are held out, they are others"
    return f"its data, {source}"


def _make_model(run: Run, parameters: dict[str, Any]) -> Model:
    return run.backend.make_model(config=run.model_config, parameters=parameters, runtime=run.runtime)


def _complete(run: Run, checkpoint: Checkpoint) -> None:
    """What follows the writing of a checkpoint, for the run may have died right after that."""
    newest = run.folder / "checkpoints" / f"{checkpoint.stage}-{checkpoint.step:06d}"
    write_pointers(run.folder, newest.name, run.best_name)
    run.tidy(newest)
    _show_stages(run)


def _note_change(run: Run, checkpoint: Checkpoint) -> None:
    """Say and record where a run changes what computes it."""
    keys = ("backend", "device", "dtype")
    now, before = {key: getattr(run.runtime, key) for key in keys}, {key: checkpoint.state[key] for key in keys}
    if now != before:
        words = (" ".join(dict.fromkeys(computed.values())) for computed in (now, before))  # imported, once
        run.log.say("from here on with {}; so far it was {}".format(*words))
        previous = {f"previous_{key}": value for key, value in before.items()}
        run.log.record(stage=checkpoint.stage, step=checkpoint.step, **now, **previous)


def _run_stages(run: Run, model: Model, stages: list[str], checkpoint: Checkpoint | None) -> dict[str, Any]:
    for stage in stages:
        progress = Progress(stage) if checkpoint is None else Progress(**checkpoint.state["progress"])
        perform: Callable[..., None] = reinforce if stage == "grpo" else train
        perform(run, progress, model, checkpoint)
        checkpoint = None
        _show_stages(run)
        if run.stop and stage != stages[-1]:
            raise KeyboardInterrupt  # the stage's end has been saved
    show_summary(run.summary, run.log.console)
    run.log.say(f"all of it is in {run.folder}; to write headlines with it:")
    words = ("faisca", "generate", str(run.folder), "--prompt", run.config.sample.prompt)
    run.log.say(f"  {shlex.join(words)}", whole=True)
    return run.summary


def _show_stages(run: Run) -> None:
    if run.stages:
        write_summary(run.folder, run.summary)
        draw_charts(run.folder)


def train(run: Run, progress: Progress, model: Model, checkpoint: Checkpoint | None) -> None:
    """Pre-training or SFT: minimise the cross-entropy of the stage's windows."""
    stage, seed = progress.stage, run.config.run.seed
    config: TrainConfig = getattr(run.config, stage)
    windows = run.windows[stage]
    an_epoch = steps_per_epoch(windows, config.batch_size)
    total = min(config.max_steps or config.epochs * an_epoch, config.epochs * an_epoch)
    progress.total_steps, progress.steps_per_epoch = total, an_epoch
    _note_data(run, progress, windows)
    learner = run.backend.make_learner(model=model, config=config)
    begin_stage(run, progress, model, learner, checkpoint)
    if progress.step == 0:
        evaluate_along(run, progress, model, an_epoch)
    with run.log.track(stage, total, done=progress.step) as tracker:
        steps = StepLog(run, progress, tracker)
        while progress.step < total:
            step = progress.step
            inputs, targets = training_batch(windows, batch_size=config.batch_size, seed=seed, stage=stage, step=step)
            rate = learning_rate(config, step, total)
            metrics = run.backend.train_step(
                learner=learner,
                inputs=inputs,
                targets=targets,
                learning_rate=rate,
                micro_batch_size=config.micro_batch_size,
                dropout_seed=integer_seed(seed, f"dropout in {stage}", step),
            )
            progress.step += 1
            steps.add(metrics, inputs.size, learning_rate=rate, epoch=progress.step / an_epoch)
            saving = due(progress.step, run.config.run.checkpoint_every)
            if saving or due(progress.step, config.evaluate_every) or progress.step == total:
                with steps.paused():
                    evaluate_along(run, progress, model, an_epoch)
            if due(progress.step, an_epoch):
                with steps.paused():
                    sample_along(run, progress, model)
            reason = reason_to_stop(run, progress)
            if reason or saving:
                with steps.paused():
                    run.save(progress, model=model, learner=learner, finished=False)
            if reason:
                raise reason
    finish_stage(run, progress, model, learner)


def _note_data(run: Run, progress: Progress, windows: Windows) -> None:
    """Say where the data of a resumed stage are not those that it began with."""
    before, progress.data_sha256 = progress.data_sha256, sha256(windows.tokens.tobytes())
    if before not in ("", progress.data_sha256):
        run.log.say("the training data have changed since the checkpoint: the run goes on with the new ones")


def evaluate_along(run: Run, progress: Progress, model: Model, an_epoch: int) -> None:
    """Record the losses on the first `evaluation_batches` of both yardsticks."""
    config: TrainConfig = getattr(run.config, progress.stage)
    loss, bits = measure_loss(run.bench, model, run.yardsticks["validation"], config.evaluation_batches)
    portugal, _ = measure_loss(run.bench, model, run.yardsticks["portugal"], config.evaluation_batches)
    progress.measured = {"validation_loss": loss, "portugal_validation_loss": portugal}
    progress.measured_step = progress.step
    run.log.record(
        stage=progress.stage,
        step=progress.step,
        epoch=progress.step / an_epoch,
        tokens_seen=progress.tokens,
        validation_loss=loss,
        bits_per_byte=bits,
        portugal_validation_loss=portugal,
    )


def sample_along(run: Run, progress: Progress, model: Model) -> None:
    """Show and record a few headlines."""
    headlines = show_samples(run.bench, model, progress.step)
    run.log.record(stage=progress.stage, step=progress.step, samples=headlines)
    run.log.say(f"{progress.stage} step {progress.step} writes: {headlines[0]}")
