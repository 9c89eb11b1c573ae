"""How far a run is: what `state.json` of a checkpoint says, and a resumed run starts from."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from faisca.backend import Runtime
from faisca.config import Config, ModelConfig
from faisca.config.files import config_to_dict
from faisca.runs.measures import Measures

LIBRARIES = {"faisca": "faisca-mlx", "numpy": "numpy", "safetensors": "safetensors", "tokenizers": "tokenizers"}
IMPORTED = "imported"
"""backend, device and dtype of a model that came from elsewhere"""
STREAMS = "NumPy Philox; key: first 16 bytes of SHA-256 of '{seed}/{purpose}'; counter: [0, 0, step, row]"


@dataclass
class Progress:
    """How far a stage is, and what a checkpoint must remember of it."""

    stage: str
    step: int = 0
    total_steps: int = 0
    steps_per_epoch: int = 0
    """0 in GRPO, which has no epochs over data"""
    before: Measures | None = None
    """the model before the stage"""
    backends: list[str] = field(default_factory=list)
    """those that trained the stage, in turn"""
    data_sha256: str = ""
    """of the stage's training tokens"""
    seconds: float = 0.0
    """spent in steps, evaluations left out"""
    tokens: int = 0
    """trained on, or sampled in GRPO"""
    peak_memory_bytes: int = 0
    measured: dict[str, float] = field(default_factory=dict)
    """the last losses along the way: `validation_loss`, `portugal_validation_loss`"""
    measured_step: int = 0
    """where they were measured"""
    skipped: int = 0
    """steps left out because their loss or gradient was not finite"""
    skipped_in_a_row: int = 0

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Progress":
        """The inverse of `dataclasses.asdict`; an older version's `before` may have fewer measures."""
        before = values.get("before")
        return Progress(**{**values, "before": Measures(**before) if before else None})

    @property
    def name(self) -> str:
        """What a checkpoint of this moment is called."""
        return f"{self.stage}-{self.step:06d}"


def best_of(best: dict[str, Any] | None, progress: Progress) -> dict[str, Any] | None:
    """The run's best checkpoint once this moment is saved: `checkpoint`, `stage`, `validation_loss`.

    It is the one with the lowest loss on the stage's own validation titles, in the newest stage that
    measures it on its way (GRPO does not).
    """
    if not 0 < progress.measured_step == progress.step:
        return best
    loss = progress.measured["portugal_validation_loss" if progress.stage == "sft" else "validation_loss"]
    if best is not None and best["stage"] == progress.stage and best["validation_loss"] <= loss:
        return best
    return {"checkpoint": progress.name, "stage": progress.stage, "validation_loss": loss}


def run_state(
    progress: Progress, *, finished: bool, config: Config, model: ModelConfig, runtime: Runtime, **more: Any
) -> dict[str, Any]:
    """What `state.json` says beyond its format; docs/checkpoints.md explains every key. `more` goes into it too.

    Order and random numbers are pure functions of the seed and the step: cursor, schedule and
    random are there for readers.
    """
    step, an_epoch = progress.step, progress.steps_per_epoch
    return {
        **{"stage": progress.stage, "step": step, "finished": finished},
        "cursor": {"epoch": step // an_epoch, "step_in_epoch": step % an_epoch} if an_epoch else {"round": step},
        "schedule": {"step": step, "total_steps": progress.total_steps},
        "seed": config.run.seed,
        "random": {"seed": config.run.seed, "step": step, "streams": STREAMS},
        "progress": asdict(progress),
        "config": config_to_dict(config),
        "model": asdict(model),
        **{"backend": runtime.backend, "device": runtime.device, "dtype": runtime.dtype},
        "versions": _versions(runtime.details),
        **more,
    }


def _versions(details: Mapping[str, str]) -> dict[str, str]:
    ours = {name: version(package) for name, package in LIBRARIES.items()}
    return {"python": platform.python_version()} | ours | dict(details)
