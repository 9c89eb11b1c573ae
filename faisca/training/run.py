"""A run: its folder, log, backend, data and tokenizer, opened once and shared by its stages."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from faisca.backend import Backend, Learner, Model, Runtime, choose_backend, load_backend
from faisca.config import Config, ModelConfig
from faisca.config.files import config_text
from faisca.data.headlines import address_filters, load_headlines, select_titles
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import Tokenizer, load_tokenizer
from faisca.data.windows import Windows, steps_per_epoch
from faisca.errors import FaiscaError
from faisca.parameters import count_parameters
from faisca.runs.checkpoint import Checkpoint, prune_checkpoints, remove_leftovers, save_checkpoint
from faisca.runs.folder import hold_folder
from faisca.runs.log import RunLog
from faisca.runs.state import Progress, best_of, run_state
from faisca.system.files import write_atomically
from faisca.system.interrupts import StopRequest, stop_on_signals
from faisca.system.memory import peak_resident_bytes, reset_peak
from faisca.system.progress_bar import Tracker
from faisca.training.evaluate import Bench, Yardstick, make_yardsticks
from faisca.training.generate import encode_prompt, ends_in_space
from faisca.training.rewards import Reward, load_reward


@dataclass
class Run:
    """Everything the stages share; the model itself is passed along beside it."""

    config: Config
    folder: Path
    log: RunLog
    stop: StopRequest
    backend: Backend
    runtime: Runtime
    tokenizer: Tokenizer
    model_config: ModelConfig
    reward: Reward
    stages: list[dict[str, Any]]
    """entries of the summary, one a finished stage"""
    best: dict[str, Any] | None
    """the best checkpoint so far, see `best_of`"""
    yardsticks: dict[str, Yardstick] = field(default_factory=dict)
    windows: dict[str, Windows] = field(default_factory=dict)
    """training windows of pre-training and SFT, by stage"""

    @property
    def bench(self) -> Bench:
        return Bench(
            self.backend,
            self.tokenizer,
            self.model_config.context,
            self.config.run.seed,
            self.config.sample,
            self.config.grpo,
            self.reward,
        )

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        return {
            "backend": self.runtime.backend,
            "device": self.runtime.device,
            "preset": self.config.preset,
            "seed": self.config.run.seed,
            "parameters": count_parameters(self.model_config),
            "reward": self.config.grpo.reward,
            "sft_url_contains": self.config.sft.url_contains,
            "stages": self.stages,
        }

    @property
    def best_name(self) -> str | None:
        """The name of the best checkpoint so far."""
        return None if self.best is None else str(self.best["checkpoint"])

    def tokens(self, titles: pa.Array, label: str) -> np.ndarray:
        """Titles as one array of token ids; progress is shown where the token cache does not have them."""
        with ExitStack() as stack:

            @cache
            def tracker() -> Tracker:
                return stack.enter_context(self.log.track(label, len(titles)))

            return tokenise(titles, self.tokenizer, progress=lambda done, _: tracker().update(done))

    def save(
        self,
        progress: Progress,
        *,
        model: Model,
        learner: Learner,
        finished: bool,
        reference: dict[str, np.ndarray] | None = None,
    ) -> Path:
        """A checkpoint of this moment; it becomes the latest, and old ones along the way go."""
        self.best = best_of(self.best, progress)
        state = run_state(
            progress,
            finished=finished,
            config=self.config,
            model=self.model_config,
            runtime=self.runtime,
            stages=self.stages,
            best=self.best,
            tokenizer={"kind": self.tokenizer.kind, "fingerprint": self.tokenizer.fingerprint},
            metrics_bytes=self.log.flush(),
            metrics_sha256=self.log.metrics_sha256,
            seconds=self.log.seconds,
        )
        folder = save_checkpoint(
            self.folder,
            state=state,
            parameters=self.backend.get_parameters(model=model),
            optimizer=self.backend.get_optimizer_state(learner=learner),
            reference=reference,
            tokenizer_json=self.tokenizer.json_text() if self.tokenizer.kind == "bpe" else None,
            best=self.best_name,
        )
        self.tidy(folder)
        return folder

    def tidy(self, newest: Path) -> None:
        """Delete the checkpoints that need not stay now that `newest` is there."""
        ends = {self.folder / "checkpoints" / f"{entry['stage']}-{entry['steps']:06d}" for entry in self.stages}
        prune_checkpoints(self.folder, self.config.run.keep, ends=ends, newest=newest)

    def peak_memory(self) -> int:
        """Peak bytes since it was last asked: of the device where it has memory of its own, else resident."""
        peak = self.backend.memory(runtime=self.runtime, reset_peak=True).get("peak") or peak_resident_bytes()
        reset_peak()
        return peak

    @property
    def memory_kind(self) -> str:
        """What `peak_memory` counts, as words of the table: the device's memory, or all of the process."""
        counted = self.backend.memory(runtime=self.runtime, reset_peak=False).get("peak")
        return "device" if counted else "resident"


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


@contextmanager
def open_run(
    config: Config, folder: Path, *, checkpoint: Checkpoint | None = None, resuming: bool = False
) -> Iterator[Run]:
    """Open a run in `folder`, new or resumed; from a checkpoint come its tokenizer and model configuration.

    What can be refused is refused before the folder is touched, and before hours of training. Who
    resumes holds the folder already.
    """
    headlines = load_headlines(config.data, config.run.seed, address_filters(config))
    titles = select_titles(headlines, config)  # refuses a filter that leaves none
    name, reason = choose_backend(config.run.backend)
    backend = load_backend(name)  # takes seconds: what can be refused without it has been
    runtime = backend.open_runtime(config=config.run)
    tokenizer = (
        checkpoint_tokenizer(checkpoint) if checkpoint else load_tokenizer(config.tokenizer, titles["pretrain"][0])
    )
    model_config = _model_config(config, tokenizer, checkpoint)
    config = dataclasses.replace(config, model=dataclasses.replace(model_config, vocabulary_size=0))
    reward = load_reward(config.grpo.reward)
    for prompt in (config.sample.prompt, *config.grpo.prompts):
        encode_prompt(tokenizer, prompt, config.model.context)  # refuses one that does not fit
    state: dict[str, Any] = checkpoint.state if checkpoint and resuming else {}
    with nullcontext() if resuming else hold_folder(folder):
        if not resuming and (folder / "checkpoints").exists():
            raise FaiscaError(
                f"{folder} has a run already: name another folder with --out, or continue it with --resume"
            )
        remove_leftovers(folder)
        write_atomically(folder / "config.toml", config_text(config).encode())
        if tokenizer.kind == "bpe":
            write_atomically(folder / "tokenizer.json", tokenizer.json_text().encode())
        kept = {name: state[name] for name in ("metrics_bytes", "metrics_sha256") if name in state}
        with RunLog(folder, **kept, seconds_before=state.get("seconds", 0.0)) as log, stop_on_signals() as stop:
            for line in (f"backend {name}: {reason}", *runtime.reasons, _words(runtime.details)):
                log.say(line)
            log.say(f"data: {headlines.report}")
            log.say(_model_words(model_config, tokenizer))
            for prompt in filter(ends_in_space, config.grpo.prompts):
                log.say(f"prompt {prompt!r}: the space at its end is left out, for tokens bring their own")
            stages, best = list(state.get("stages", [])), state.get("best")
            run = Run(config, folder, log, stop, backend, runtime, tokenizer, model_config, reward, stages, best)
            run.yardsticks = make_yardsticks(config, titles, run.tokens)
            run.windows = {
                stage: _windows(run, stage, titles[stage][0]) for stage in config.run.stages if stage in titles
            }
            yield run


def _windows(run: Run, stage: str, titles: pa.Array) -> Windows:
    data = run.config.data
    windows = Windows(run.tokens(titles, f"tokenising {stage} titles"), data.window, data.stride)
    steps_per_epoch(windows, getattr(run.config, stage).batch_size)  # refuses a batch that is too large
    return windows


def checkpoint_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that a checkpoint was trained with."""
    if checkpoint.tokenizer_json is None:
        return Tokenizer.gpt2()
    return Tokenizer.from_json(checkpoint.tokenizer_json, str(checkpoint.folder / "tokenizer.json"))


def _model_config(config: Config, tokenizer: Tokenizer, checkpoint: Checkpoint | None) -> ModelConfig:
    if checkpoint is not None:
        return ModelConfig(**checkpoint.state["model"])
    wanted = config.model.vocabulary_size
    if wanted and wanted < tokenizer.vocabulary_size:
        raise FaiscaError(
            f"model.vocabulary_size {wanted} is too small for the tokenizer's {tokenizer.vocabulary_size} tokens: "
            "leave it at 0, which takes the tokenizer's"
        )
    return dataclasses.replace(config.model, vocabulary_size=wanted or tokenizer.vocabulary_size)


def _words(details: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in details.items())


def _model_words(config: ModelConfig, tokenizer: Tokenizer) -> str:
    return (
        f"model: {count_parameters(config):,} parameters, {config.num_layers} blocks of width {config.dim}, "
        f"context {config.context}; tokenizer {tokenizer.kind} with {tokenizer.vocabulary_size:,} tokens"
    )
