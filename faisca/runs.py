"""A run: its folder, log, backend, data and tokenizer, opened once and shared by its stages."""

import dataclasses
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from faisca.backend import Backend, Learner, Model, Runtime, choose_backend, load_backend
from faisca.batches import Windows, steps_per_epoch, tokenise
from faisca.checkpoint import Checkpoint, prune_checkpoints, remove_leftovers, save_checkpoint
from faisca.config import Config, ModelConfig
from faisca.config_files import config_to_dict, write_config
from faisca.errors import FaiscaError
from faisca.evaluation import Bench, Yardstick, make_yardsticks
from faisca.files import write_atomically
from faisca.generation import encode_prompt
from faisca.headlines import Headlines, load_headlines, stage_titles
from faisca.interrupts import StopRequest, stop_on_signals
from faisca.memory import peak_resident_bytes, reset_peak
from faisca.parameters import count_parameters
from faisca.rewards import load_reward
from faisca.run_log import RunLog
from faisca.tokenizer import Tokenizer, load_tokenizer


@dataclass
class Progress:
    """How far a stage is, and what a checkpoint must remember of it."""

    stage: str
    step: int = 0
    before: dict[str, Any] = field(default_factory=dict)
    """the model's measurements before the stage"""
    seconds: float = 0.0
    """spent in steps, evaluations left out"""
    tokens: int = 0
    """trained on, or sampled in GRPO"""
    peak_memory_bytes: int = 0
    best_validation_loss: float | None = None
    best_step: int = 0
    """where it was met, if a checkpoint was due there"""
    skipped: int = 0
    """steps left out because their loss or gradient was not finite"""
    skipped_in_a_row: int = 0


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
        state = {
            **{"stage": progress.stage, "step": progress.step, "finished": finished},
            "progress": dataclasses.asdict(progress),
            "stages": self.stages,
            "seed": self.config.run.seed,
            "config": config_to_dict(self.config),
            "model": dataclasses.asdict(self.model_config),
            "tokenizer": {"kind": self.tokenizer.kind, "fingerprint": self.tokenizer.fingerprint},
            **{"backend": self.runtime.backend, "device": self.runtime.device, "dtype": self.runtime.dtype},
            "versions": {"python": platform.python_version(), "faisca": version("faisca-mlx")}
            | dict(self.runtime.details),
            "metrics_bytes": self.log.flush(),
            "seconds": self.log.seconds,
        }
        folder = save_checkpoint(
            self.folder,
            state=state,
            parameters=self.backend.get_parameters(model=model),
            optimizer=self.backend.get_optimizer_state(learner=learner),
            reference=reference,
            tokenizer_json=self.tokenizer.json_text() if self.tokenizer.kind == "bpe" else None,
            best=0 < progress.step == progress.best_step,
        )
        ends = {self.folder / "checkpoints" / f"{entry['stage']}-{entry['steps']:06d}" for entry in self.stages}
        prune_checkpoints(self.folder, self.config.run.keep, ends=ends)
        return folder

    def answer_stop(self) -> None:
        """Leave the run if it was asked to stop; the loops have saved just before."""
        if self.stop:
            raise KeyboardInterrupt

    def peak_memory(self) -> int:
        """Peak bytes since it was last asked: of the device where it has memory of its own, else resident."""
        peak = self.backend.memory(runtime=self.runtime, reset_peak=True).get("peak") or peak_resident_bytes()
        reset_peak()
        return peak


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


@contextmanager
def open_run(
    config: Config, folder: Path, *, checkpoint: Checkpoint | None = None, resuming: bool = False
) -> Iterator[Run]:
    """Open a run in `folder`, new or resumed; from a checkpoint come its tokenizer and model configuration.

    What can be refused is refused before the folder is touched, and before hours of training.
    """
    name, reason = choose_backend(config.run.backend)
    backend = load_backend(name)
    runtime = backend.open_runtime(config=config.run)
    headlines = load_headlines(config.data, config.run.seed)
    tokenizer = checkpoint_tokenizer(checkpoint) if checkpoint else _new_tokenizer(config, headlines)
    model_config = _model_config(config, tokenizer, checkpoint)
    config = dataclasses.replace(config, model=dataclasses.replace(model_config, vocabulary_size=0))
    _check_texts(config, tokenizer)
    state: dict[str, Any] = checkpoint.state if checkpoint and resuming else {}
    with _locked(folder):
        remove_leftovers(folder)
        write_config(config, folder / "config.toml")
        if tokenizer.kind == "bpe":
            write_atomically(folder / "tokenizer.json", tokenizer.json_text().encode())
        metrics_bytes, seconds_before = state.get("metrics_bytes", 0), state.get("seconds", 0.0)
        log = RunLog(folder, metrics_bytes=metrics_bytes, seconds_before=seconds_before)
        with log, stop_on_signals(log.say) as stop:
            for line in (f"backend {name}: {reason}", *runtime.reasons, _words(runtime.details)):
                log.say(line)
            log.say(f"data: {headlines.report}")
            log.say(_model_words(model_config, tokenizer))
            stages = list(state.get("stages", []))
            run = Run(config, folder, log, stop, backend, runtime, headlines, tokenizer, model_config, stages)
            run.yardsticks = make_yardsticks(config, headlines, run.tokens)
            for stage in set(config.run.stages) - {"grpo"}:
                steps_per_epoch(run.windows(stage), getattr(config, stage).batch_size)
            yield run


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise FaiscaError(f"{folder} is in use by another run: wait for it, or choose another --out") from error
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise FaiscaError(f"{folder} cannot be a run folder ({error.strerror}): choose another --out") from error


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
