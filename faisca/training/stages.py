"""The recipe: pre-training, SFT and GRPO, one after the other on one model, from the start or from a checkpoint."""

import shlex
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from faisca.backend import Model
from faisca.config import Config
from faisca.errors import FaiscaError
from faisca.lora import merged
from faisca.parameters import initial_parameters
from faisca.processes.join import processes_of
from faisca.processes.launched import first_process
from faisca.runs.changes import change_words, check_changes, stages_to_do, with_finished_stages
from faisca.runs.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, read_state
from faisca.runs.checks import check_resumable
from faisca.runs.folder import hold_folder
from faisca.runs.plots import draw_charts
from faisca.runs.pointers import write_pointers
from faisca.runs.state import Progress, State
from faisca.runs.summary import show_summary, write_summary
from faisca.system.tensors import Tensors
from faisca.training import adapters
from faisca.training.grpo import reinforce
from faisca.training.preflight import preflight
from faisca.training.run import Run, open_run
from faisca.training.start import check_start, start_words
from faisca.training.train import train


def run(config: Config, folder: Path, start_from: Path | None = None) -> dict[str, Any]:
    """Run `config.run.stages` in a new folder, from initial weights or from a checkpoint's; returns the summary."""
    first = config.run.stages[0]
    if start_from is None and first != "pretrain":
        raise FaiscaError(f"{first} starts from a trained model: name a checkpoint with --from")
    checkpoint = None if start_from is None else load_checkpoint(start_from)
    words, parameters = list[str](), None
    if checkpoint is not None:
        config = check_start(config, checkpoint)
        words = start_words(config, checkpoint)
        parameters = merged(checkpoint.parameters, checkpoint.state.model)
        checkpoint = replace(checkpoint, parameters={}, optimizer={}, reference=None)  # not kept while it trains
    with (
        processes_of(config, folder) as (processes, own),
        open_run(config, own, checkpoint=checkpoint, processes=processes) as opened,
    ):
        for line in words:
            opened.log.say(line)
        if parameters is None:
            # Of process 0, for another processor may round the logarithm of a draw differently.
            initial = partial(initial_parameters, opened.setup.model_config, config.run.seed)
            parameters = Tensors.of(processes.first(lambda: dict(initial())))
        model = adapters.begin(opened, first, parameters)
        del parameters
        return _run_stages(opened, model, list(config.run.stages), None)


def resume(folder: Path, config: Config) -> dict[str, Any]:
    """Continue a run from its newest good checkpoint, as if it had never stopped; returns the summary."""
    with hold_folder(folder) if first_process() else nullcontext():
        checkpoint = load_checkpoint(folder)
        state = checkpoint.state
        check_resumable(checkpoint.folder, state, checkpoint.optimizer, checkpoint.reference)
        check_changes(config, state, folder)
        config = with_finished_stages(config, state)
        with (
            processes_of(config, folder) as (processes, own),
            open_run(config, own, checkpoint=checkpoint, resuming=True, processes=processes) as opened,
        ):
            opened.log.say(f"resuming after step {state.step} of {state.stage}")
            for line in change_words(config, state):
                opened.log.say(line)
            _note_change(opened, checkpoint)
            opened.set_model(state.model, state.base_sha256)
            model = opened.setup.make_model(checkpoint.parameters)
            _catch_up(opened, checkpoint)
            return _run_stages(opened, model, stages_to_do(config, state), None if state.finished else checkpoint)


def saved_state(folder: Path) -> State:
    """The state in a run's newest good checkpoint."""
    return read_state(find_checkpoint(folder, say=lambda _: None))


def _catch_up(run: Run, checkpoint: Checkpoint) -> None:
    """Do what follows the writing of a checkpoint, for the run may have died right after that."""
    if not run.setup.processes.writes:
        adapters.keep_base(run, checkpoint.parameters)
        return
    newest = run.folder / "checkpoints" / checkpoint.state.progress.name
    write_pointers(run.folder, newest.name, run.best_name)
    run.tidy(newest)
    _show_stages(run)


def _note_change(run: Run, checkpoint: Checkpoint) -> None:
    """Say and record where a run changes what computes it."""
    keys = ("backend", "device", "dtype")
    now = {key: getattr(run.setup.runtime, key) for key in keys}
    before = {key: getattr(checkpoint.state, key) for key in keys}
    if now != before:
        words = (" ".join(dict.fromkeys(computed.values())) for computed in (now, before))  # imported, once
        run.log.say("from here on with {}; so far it was {}".format(*words))
        previous = {f"previous_{key}": value for key, value in before.items()}
        run.log.record(stage=checkpoint.state.stage, step=checkpoint.state.step, **now, **previous)


def _run_stages(run: Run, model: Model, stages: list[str], checkpoint: Checkpoint | None) -> dict[str, Any]:
    for stage in stages:
        progress = Progress(stage) if checkpoint is None else deepcopy(checkpoint.state.progress)
        if checkpoint is None and run.stages and adapters.changes(run, stage):
            model = adapters.begin(run, stage, adapters.end(run, model))
        model = preflight(run, progress, model)
        perform = reinforce if stage == "grpo" else train
        with run.setup.backend.training_memory(runtime=run.setup.runtime):
            perform(run, progress, model, checkpoint)
        checkpoint = None
        _show_stages(run)
        if stage != stages[-1] and run.asked_to_stop():
            folder = shlex.quote(str(run.folder))  # the stage's end has been saved
            raise KeyboardInterrupt(f"stopped after {stage}; continue with --resume {folder}")
    show_summary(run.summary, run.log.console)
    run.log.say(f"all of it is in {run.folder}; to write headlines with it:")
    words = ("faisca", "generate", str(run.folder), "--prompt", run.config.sample.prompt)
    run.log.say(f"  {shlex.join(words)}", whole=True)
    return run.summary


def _show_stages(run: Run) -> None:
    """Write the summary of the finished stages, and draw all charts."""
    if run.stages and run.setup.processes.writes:
        write_summary(run.folder, run.summary)
        draw_charts(run.folder)
