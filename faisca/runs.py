"""A run: its folder, log, backend, data and tokenizer, opened once and shared by its stages."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faisca.backend import Backend, Learner, Model, Runtime, choose_backend, load_backend
from faisca.batches import Windows, steps_per_epoch, tokenise
from faisca.checkpoint import Checkpoint, prune_checkpoints, remove_leftovers, save_checkpoint
from faisca.config import Config, ModelConfig
from faisca.config_files import config_text
from faisca.errors import FaiscaError
from faisca.evaluation import Bench, Yardstick, make_yardsticks
from faisca.files import write_atomically
from faisca.generation import encode_prompt
from faisca.headlines import Headlines, load_headlines, stage_titles
from faisca.interrupts import StopRequest, stop_on_signals
from faisca.memory import peak_resident_bytes, reset_peak
from faisca.parameters import count_parameters
from faisca.progress import Progress, best_of, run_state
from faisca.rewards import load_reward
from faisca.run_folder import hold_folder
from faisca.run_log import RunLog
from faisca.tokenizer import Tokenizer, load_tokenizer


@dataclass
class Run:
    """Everything the stages share; the model itself is passed along beside it."""

    config: Config
    folder: Path
    log: RunLog
    stop: StopRequest
    backend: Backend
    runtime: Runtime
    headlines: Headlines
    tokenizer: Tokenizer
    model_config: ModelConfig
    stages: list[dict[str, Any]]
    """entries of the summary, one a finished stage"""
    best: dict[str, Any] | None
    """the best checkpoint so far, see `best_of`"""
    yardsticks: dict[str, Yardstick] = field(default_factory=dict)

    @property
    def bench(self) -> Bench:
        return Bench(
            self.backend,
            self.tokenizer,
            self.model_config.context,
            self.config.run.seed,
            self.config.sample,
            self.config.grpo,
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
            "stages": self.stages,
        }

    @property
    def best_name(self) -> str | None:
        """The name of the best checkpoint so far."""
        return None if self.best is None else str(self.best["checkpoint"])

    def windows(self, stage: str) -> Windows:
        """Training windows of pre-training or SFT."""
        titles, _ = stage_titles(self.headlines, getattr(self.config, stage), seed=self.config.run.seed, stage=stage)
        data = self.config.data
        return Windows(self.tokens(titles, f"tokenising {stage} titles"), data.window, data.stride)

    def tokens(self, titles: Any, label: str) -> np.ndarray:
        """Titles as one array of token ids, with progress where it takes long."""
        with self.log.track(label, len(titles)) as tracker:
            return tokenise(titles, self.tokenizer, progress=lambda done, total: tracker.update(done))

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
    name, reason = choose_backend(config.run.backend)
    backend = load_backend(name)
    runtime = backend.open_runtime(config=config.run)
    headlines = load_headlines(config.data, config.run.seed)
    tokenizer = checkpoint_tokenizer(checkpoint) if checkpoint else _new_tokenizer(config, headlines)
    model_config = _model_config(config, tokenizer, checkpoint)
    config = dataclasses.replace(config, model=dataclasses.replace(model_config, vocabulary_size=0))
    _check_texts(config, tokenizer)
    for stage in ("pretrain", "sft"):  # refuses a filter that leaves no titles
        stage_titles(headlines, getattr(config, stage), seed=config.run.seed, stage=stage)
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
            stages, best = list(state.get("stages", [])), state.get("best")
            run = Run(config, folder, log, stop, backend, runtime, headlines, tokenizer, model_config, stages, best)
            run.yardsticks = make_yardsticks(config, headlines, run.tokens)
            for stage in set(config.run.stages) - {"grpo"}:
                steps_per_epoch(run.windows(stage), getattr(config, stage).batch_size)
            yield run


def _new_tokenizer(config: Config, headlines: Headlines) -> Tokenizer:
    titles, _ = stage_titles(headlines, config.pretrain, seed=config.run.seed, stage="pretrain")
    return load_tokenizer(config.tokenizer, titles)


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


def _check_texts(config: Config, tokenizer: Tokenizer) -> None:
    """Refuse a reward that cannot be loaded and prompts that do not fit."""
    load_reward(config.grpo.reward)
    for prompt in (config.sample.prompt, *config.grpo.prompts):
        encode_prompt(tokenizer, prompt, config.model.context)


def _words(details: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in details.items())


def _model_words(config: ModelConfig, tokenizer: Tokenizer) -> str:
    return (
        f"model: {count_parameters(config):,} parameters, {config.num_layers} blocks of width {config.dim}, "
        f"context {config.context}; tokenizer {tokenizer.kind} with {tokenizer.vocabulary_size:,} tokens"
    )
