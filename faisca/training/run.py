"""A run: its setup, folder, log and data, opened once and shared by its stages."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from faisca.backend import load_backend
from faisca.config import Config, ModelConfig, plain
from faisca.config.files import config_text, config_to_dict
from faisca.data.conversations import ConversationSplits
from faisca.data.headlines import Titles, address_filters, load_headlines, select_titles, title_hashes
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import Tokenizer, load_tokenizer
from faisca.data.windows import Rows, Windows, steps_per_epoch
from faisca.errors import FaiscaError
from faisca.group import ALONE, Processes
from faisca.parameters import count_parameters
from faisca.processes.join import backend_here, check_same
from faisca.runs.checkpoint import NOTHING_SEEN, Checkpoint, prune_checkpoints, remove_leftovers
from faisca.runs.folder import hold_folder
from faisca.runs.log import RunLog
from faisca.system.files import write_atomically
from faisca.system.interrupts import StopRequest, stop_on_signals
from faisca.system.memory import peak_resident_bytes, reset_peak
from faisca.system.progress_bar import Tracker
from faisca.text import reward_name
from faisca.trackers.following import follow
from faisca.trackers.tracker import check_tracker
from faisca.training.evaluate import Yardstick, make_yardsticks
from faisca.training.generate import encode_prompt
from faisca.training.setup import Setup
from faisca.training.start import (
    check_tasks,
    facts_of,
    held_out_by,
    open_conversations,
    open_judge,
    opening_words,
    without_filter,
)

PATIENCE = 2.0
"""seconds in which the signals of a launcher and of the terminal are one"""
KEPT = ("metrics_bytes", "metrics_sha256", "completions_bytes", "completions_sha256")
"""what a checkpoint says of the run's files"""


@dataclass
class Run:
    """Everything the stages share; the model itself is passed along beside it."""

    setup: Setup
    folder: Path
    log: RunLog
    stop: StopRequest
    windows: Mapping[str, Rows]
    """training windows of pre-training and SFT, by stage"""
    yardsticks: Mapping[str, Yardstick]
    stages: list[dict[str, Any]]
    """entries of the summary, one a finished stage"""
    best: dict[str, Any] | None
    """the best checkpoint so far, see `best_of`"""
    hold_out_seed: int
    """decides which titles are never trained on; that of a checkpoint stays with its weights"""
    seen: np.ndarray
    """hashes of the titles that the model was trained on so far, sorted"""
    hashes: Mapping[str, np.ndarray]
    """those of the training titles, by stage"""
    data_report: str
    """how many titles there are, and what of the source was left out"""
    base_sha256: str | None = None
    """of the weights that the model's adapter belongs to, where it has one"""
    certificates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """verdicts of `preflight.py`, by stage, where it ran"""

    @property
    def config(self) -> Config:
        """The configuration that the run was opened with."""
        return self.setup.config

    def set_model(self, model: ModelConfig, base_sha256: str | None) -> None:
        """From here on the run's model has this configuration, and its adapter belongs to this base."""
        self.setup, self.base_sha256 = dataclasses.replace(self.setup, model_config=model), base_sha256

    def asked_to_stop(self) -> bool:
        """Whether any process was asked to, or nobody can read what it prints."""
        return self.setup.processes.any(bool(self.stop or self.log.output.lost))

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        return {
            "backend": self.setup.runtime.backend,
            "device": self.setup.runtime.device,
            "preset": self.config.preset,
            "seed": self.setup.seed,
            "parameters": count_parameters(plain(self.setup.model_config)),
            "reward": reward_name(self.config.grpo.reward),
            "sft_url_contains": self.config.sft.url_contains,
            "stages": self.stages,
        }

    @property
    def best_name(self) -> str | None:
        """The name of the best checkpoint so far."""
        return None if self.best is None else str(self.best["checkpoint"])

    def see(self, stage: str) -> None:
        """Note that a stage trains on its titles from here on."""
        self.seen = np.union1d(self.seen, self.hashes.get(stage, NOTHING_SEEN))

    def tidy(self, newest: Path) -> None:
        """Delete the checkpoints that need not stay now that `newest` is there."""
        ends = {self.folder / "checkpoints" / f"{entry['stage']}-{entry['steps']:06d}" for entry in self.stages}
        prune_checkpoints(self.folder, self.config.run.keep, ends=ends, newest=newest)

    def peak_memory(self) -> int:
        """Peak bytes since it was last asked: of the device where it has memory of its own, else resident."""
        peak = self._device_peak(reset_peak=True) or peak_resident_bytes()
        reset_peak()
        return peak

    @property
    def memory_kind(self) -> str:
        """What `peak_memory` counts, as words of the table: the device's memory, or all of the process."""
        return "device" if self._device_peak(reset_peak=False) else "resident"

    def _device_peak(self, *, reset_peak: bool) -> int | None:
        return self.setup.backend.memory(runtime=self.setup.runtime, reset_peak=reset_peak).get("peak")


@contextmanager
def open_run(
    config: Config,
    folder: Path,
    *,
    checkpoint: Checkpoint | None = None,
    resuming: bool = False,
    processes: Processes = ALONE,
) -> Iterator[Run]:
    """Open a run in `folder`, new or resumed; a checkpoint brings its tokenizer and model configuration.

    What can be refused is refused before the folder is touched, and before hours of training. A
    caller that resumes has taken hold of the folder already, with `hold_folder`.
    """
    # Refuse first, what needs no framework before what needs one: loading it takes seconds.
    check_tracker(config.run.tracker)
    hold_out_seed = held_out_by(config, checkpoint)
    config = without_filter(config)
    seen = NOTHING_SEEN if checkpoint is None else checkpoint.seen
    headlines = load_headlines(config.data, hold_out_seed, address_filters(config), seen)
    titles = select_titles(headlines, config)
    setup, reason = _open_setup(config, titles, checkpoint, processes)
    judge = setup.reward
    assert judge is not None, "a run that trains has its rewards"
    chats = open_conversations(setup, hold_out_seed)
    # Then take the folder: one run at a time writes there, and never over another run.
    with nullcontext() if resuming else hold_folder(folder):
        _prepare_folder(setup, folder, resuming)
        begun = checkpoint.state if checkpoint and resuming else None
        kept = {name: getattr(begun, name) for name in KEPT} if begun else {}
        with (
            RunLog(folder, **kept, seconds_before=begun.seconds if begun else 0.0) as log,
            stop_on_signals(patience=PATIENCE if processes.size > 1 else 0) as stop,
            closing(judge),
        ):
            judge.say = log.say
            tracker = config.run.tracker if processes.writes else "none"
            log.following = follow(tracker, folder, config_to_dict(setup.config), resuming, log.say)
            for line in (reason, *opening_words(setup, headlines)):
                log.say(line)
            windows, yardsticks = _tokenised(setup, titles, log, chats)
            if processes.size > 1:
                check_same(processes, facts_of(setup, windows, checkpoint))
            yield Run(
                setup=setup,
                folder=folder,
                log=log,
                stop=stop,
                windows=windows,
                yardsticks=yardsticks,
                stages=list(begun.stages) if begun else [],
                best=begun.best if begun else None,
                hold_out_seed=hold_out_seed,
                seen=seen,
                hashes={stage: title_hashes(titles[stage][0]) for stage in windows if not chats or stage != "sft"},
                data_report=headlines.report,
            )


def _open_setup(
    config: Config, titles: Titles, checkpoint: Checkpoint | None, processes: Processes
) -> tuple[Setup, str]:
    """The setup of a run, and the reason for its backend; FaiscaError where something cannot be had or does not fit."""
    name, reason = backend_here(config.run.backend)
    backend = load_backend(name)
    runtime = dataclasses.replace(backend.open_runtime(config=config.run), processes=processes)
    if checkpoint is not None:
        tokenizer = checkpoint_tokenizer(checkpoint)
    else:
        tokenizer = load_tokenizer(config.tokenizer, titles["pretrain"][0])
    model_config = _model_config(config, tokenizer, checkpoint)
    config = dataclasses.replace(config, model=dataclasses.replace(model_config, vocabulary_size=0))
    encode_prompt(tokenizer, config.sample.prompt, config.model.context)  # refuses one that does not fit
    setup = Setup(config, backend, runtime, tokenizer, model_config, open_judge(config.grpo))
    check_tasks(setup)
    return setup, f"backend {name}: {reason}"


def _prepare_folder(setup: Setup, folder: Path, resuming: bool) -> None:
    """Refuse a folder with another run in it; write the copies of configuration and tokenizer."""
    if not resuming and (folder / "checkpoints").exists():
        raise FaiscaError(f"{folder} has a run already: name another folder with --out, or continue it with --resume")
    remove_leftovers(folder)
    write_atomically(folder / "config.toml", config_text(setup.config).encode())
    for name, content in setup.tokenizer.files().items():
        write_atomically(folder / name, content)


def _tokenised(
    setup: Setup, titles: Titles, log: RunLog, chats: ConversationSplits | None
) -> tuple[dict[str, Rows], dict[str, Yardstick]]:
    """What to train on, by stage, and two sets of titles to measure on: tokenised once a run.

    Conversations take the place of SFT's titles.
    """
    tokens = partial(_tokens, setup.tokenizer, log)
    yardsticks = make_yardsticks(setup.config, titles, tokens)
    stages = [stage for stage in setup.config.run.stages if stage in titles and not (chats and stage == "sft")]
    windows: dict[str, Rows] = {
        stage: _windows(setup, stage, tokens(titles[stage][0], f"tokenising {stage} titles")) for stage in stages
    }
    if chats:
        log.say(f"sft learns from {setup.config.sft.conversations}: {chats.report}")
        windows["sft"] = chats.train
        yardsticks["portugal"] = dataclasses.replace(yardsticks["portugal"], tokens=chats.validation)
    return windows, yardsticks


def _tokens(tokenizer: Tokenizer, log: RunLog, titles: pa.Array, label: str) -> np.ndarray:
    """Titles as one array of token ids; progress is shown where the token cache does not have them."""
    with ExitStack() as stack:

        @cache
        def tracker() -> Tracker:
            return stack.enter_context(log.track(label, len(titles)))

        return tokenise(titles, tokenizer, progress=lambda done, _: tracker().update(done))


def _windows(setup: Setup, stage: str, tokens: np.ndarray) -> Windows:
    windows = Windows(tokens, setup.config.data.window, setup.config.data.stride)
    steps_per_epoch(windows, getattr(setup.config, stage).batch_size)  # refuses a batch that is too large
    return windows


def checkpoint_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that a checkpoint was trained with."""
    tokenizer = Tokenizer.from_files(checkpoint.tokenizer_files, str(checkpoint.folder / "tokenizer.json"))
    return tokenizer.as_saved(checkpoint.state.tokenizer.get("fingerprint"))


def _model_config(config: Config, tokenizer: Tokenizer, checkpoint: Checkpoint | None) -> ModelConfig:
    if checkpoint is not None:
        return dataclasses.replace(config.model, vocabulary_size=checkpoint.state.model.vocabulary_size)
    wanted = config.model.vocabulary_size
    if wanted and wanted < tokenizer.vocabulary_size:
        raise FaiscaError(
            f"model.vocabulary_size {wanted} is too small for the tokenizer's {tokenizer.vocabulary_size} tokens: "
            "leave it at 0, which takes the tokenizer's"
        )
    return dataclasses.replace(config.model, vocabulary_size=wanted or tokenizer.vocabulary_size)
