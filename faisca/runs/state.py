"""How far a run is: what `state.json` of a checkpoint says, and a resumed run starts from."""

import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from importlib.metadata import version
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from faisca.config import STAGES, Adapter, Config, ModelConfig
from faisca.config.files import config_from_dict
from faisca.errors import FaiscaError
from faisca.lora import with_adapter
from faisca.runs.manifest import FORMAT
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
        try:
            progress = Progress(**{**values, "before": Measures(**before) if before else None})
        except TypeError as error:
            raise FaiscaError(f"no usable progress in its state.json ({error})") from error
        if progress.stage not in STAGES or not isinstance(progress.step, int) or progress.step < 0:
            raise FaiscaError(
                f"{progress.stage!r} step {progress.step}, and there is no such step: stages are {', '.join(STAGES)}"
            )
        return progress

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


@dataclass(frozen=True)
class State:
    """What `state.json` of a checkpoint says. A field without a default stands in every checkpoint."""

    progress: Progress
    """of the stage: measures `before` it, the `backends` that trained it, tokens, seconds, skipped steps, …"""
    finished: bool
    """whether the stage has been measured at its end"""
    config: Config
    """the whole configuration"""
    model: ModelConfig
    """the model's, with its real `vocabulary_size`"""
    backend: str
    """what computed it: torch or mlx; imported where it came from elsewhere"""
    device: str
    """the framework's name for the device"""
    dtype: str
    """of products; weights and moments are float32 whatever it says"""
    versions: dict[str, str]
    """of Python and of libraries"""
    tokenizer: dict[str, str]
    """`kind` and `fingerprint`"""
    stages: list[dict[str, Any]]
    """entries of `summary.json`, one a finished stage"""
    metrics_bytes: int
    """of `metrics.jsonl` at this moment: a resumed run cuts the file back to this"""
    seconds: float
    """the run has taken so far"""
    metrics_sha256: str | None = None
    """of those bytes"""
    completions_bytes: int = 0
    """of `completions.jsonl`, which is cut back likewise"""
    completions_sha256: str | None = None
    """of those bytes"""
    best: dict[str, Any] | None = None
    """the checkpoint with the lowest loss (in SFT: on its own titles) in the newest stage that measures it"""
    hold_out_seed: int | None = None
    """which titles are never trained on where a source has no validation split; the share is `data.validation_share`"""
    ported_from: str | None = None
    """what an imported model was found in"""
    base_sha256: str | None = None
    """of the weights that the model's adapter belongs to (`faisca.lora.base_sha256`); they are in a file of the run"""

    @property
    def stage(self) -> str:
        return self.progress.stage

    @property
    def step(self) -> int:
        return self.progress.step

    def to_json(self) -> dict[str, Any]:
        """The content of `state.json`.

        Order and random numbers are pure functions of the seed and the step: cursor, schedule and
        random are there for readers.
        """
        step, an_epoch, seed = self.step, self.progress.steps_per_epoch, self.config.run.seed
        return {
            "format": FORMAT,
            **{"stage": self.stage, "step": step},
            "cursor": {"epoch": step // an_epoch, "step_in_epoch": step % an_epoch} if an_epoch else {"round": step},
            "schedule": {"step": step, "total_steps": self.progress.total_steps},
            "seed": seed,
            "random": {"seed": seed, "step": step, "streams": STREAMS},
            **asdict(self),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "State":
        """The inverse of `to_json`; FaiscaError names what is missing, of another type or impossible."""
        for name, kinds in ({"stage": (str,), "step": (int,)} | JSON_KINDS).items():
            if (name in values or name in REQUIRED) and not isinstance(values.get(name), kinds):
                raise FaiscaError(
                    f"no usable {name} in its state.json: "
                    "it was written by another program or version, take another checkpoint"
                )
        read: dict[str, Any] = {
            "progress": Progress.from_json(values["progress"] | {"stage": values["stage"], "step": values["step"]}),
            "config": config_from_dict(values["config"]),
            "model": _model(values),
        }
        if "hold_out_seed" not in values and values["backend"] != IMPORTED:  # an older version's
            read["hold_out_seed"] = read["config"].run.seed
        return State(**{name: values[name] for name in JSON_KINDS if name in values} | read)


def _model(values: Mapping[str, Any]) -> ModelConfig:
    """The model's configuration, with its adapter where it has one."""
    options = dict(values["model"])
    adapter = options.pop("adapter", None)
    model = config_from_dict(values["config"] | {"model": options}).model
    if adapter is None:
        return model
    try:
        return with_adapter(model, Adapter(**adapter | {"targets": tuple(adapter["targets"])}))
    except (TypeError, KeyError) as error:
        raise FaiscaError(f"no usable adapter in its state.json ({error})") from error


def _json_kinds(hint: Any) -> tuple[type, ...]:
    """What a field of State is when JSON is read: dataclasses are objects there."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(dict if is_dataclass(kind) else get_origin(kind) or kind for kind in kinds)


JSON_KINDS = {name: _json_kinds(hint) for name, hint in get_type_hints(State).items()}
REQUIRED = {"stage", "step"} | {field.name for field in fields(State) if field.default is MISSING}


def versions(details: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Of Python, of our libraries and of what the runtime names."""
    ours = {name: version(package) for name, package in LIBRARIES.items()}
    return {"python": platform.python_version()} | ours | dict(details)
