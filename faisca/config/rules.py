"""What makes a configuration impossible: types and ranges of single values, then rules between them."""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from faisca.errors import FaiscaError

if TYPE_CHECKING:
    from faisca.config import Config


@dataclass(frozen=True)
class Range:
    """The numbers that a field accepts; a field's annotation carries it."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
        bounds = [(word, getattr(self, name)) for name, word in words.items()]
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))


def check_config(config: "Config") -> None:
    """Raise a FaiscaError that names the first impossible value and the remedy."""
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if dataclasses.is_dataclass(value):
            _check_section(section.name, value)
    _check_model(config)
    _check_data(config)
    _check_training(config)
    _check_grpo(config)
    _check_stages(config)


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Raise a FaiscaError unless `value` fits the type and the range in `annotation`."""
    limits = None
    if get_origin(annotation) is Annotated:
        annotation, limits = get_args(annotation)
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise FaiscaError(f"{name} {value!r} is unknown: choose {', '.join(get_args(annotation))}")
    elif get_origin(annotation) is tuple:
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise FaiscaError(f"{name} {value!r} is not a list of texts")
    elif isinstance(value, bool) != (annotation is bool) or not isinstance(
        value, (int, float) if annotation is float else annotation
    ):
        kinds = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise FaiscaError(f"{name} {value!r} is not {kinds[annotation]}")
    elif annotation is float and not math.isfinite(value):
        raise FaiscaError(f"{name} {value} is not a finite number")
    if limits is not None and value not in limits:
        raise FaiscaError(f"{name} {value} is out of range: use a number {limits}")


def _check_section(section: str, value: Any) -> None:
    for name, annotation in get_type_hints(type(value), include_extras=True).items():
        check_value(f"{section}.{name}", getattr(value, name), annotation)


def _check_model(config: "Config") -> None:
    model = config.model
    if model.dim % model.num_heads:
        fitting = max(n for n in range(1, model.num_heads + 1) if model.dim % n == 0)
        raise FaiscaError(
            f"model.dim {model.dim} is not divisible by model.num_heads {model.num_heads}: "
            f"try --model.num-heads {fitting}"
        )
    if config.tokenizer.kind == "bpe" and config.tokenizer.vocabulary_size < 257:
        raise FaiscaError(
            f"tokenizer.vocabulary_size {config.tokenizer.vocabulary_size} is too small for a byte-level "
            "BPE: use at least 257 (256 bytes and <|endoftext|>)"
        )


def _check_data(config: "Config") -> None:
    if config.data.window > config.model.context:
        raise FaiscaError(
            f"data.window {config.data.window} is larger than model.context {config.model.context}, the "
            f"rows of the positional table: use --data.window {config.model.context} --data.stride "
            f"{config.model.context}, or for a new model at least --model.context {config.data.window}"
        )
    for name in ("source", "title_column"):
        if not getattr(config.data, name):
            raise FaiscaError(f"data.{name} is empty: name one")


def _check_training(config: "Config") -> None:
    for name, stage in (("pretrain", config.pretrain), ("sft", config.sft)):
        if stage.micro_batch_size and stage.batch_size % stage.micro_batch_size:
            raise FaiscaError(
                f"{name}.batch_size {stage.batch_size} is not a multiple of {name}.micro_batch_size "
                f"{stage.micro_batch_size}: choose a divisor of {stage.batch_size}"
            )


def _check_grpo(config: "Config") -> None:
    grpo = config.grpo
    rollouts = grpo.group_size * grpo.prompts_per_step
    if not grpo.prompts:
        raise FaiscaError('grpo.prompts is empty: give at least one ("" starts a headline)')
    if grpo.group_size < 2:
        raise FaiscaError("grpo.group_size 1 leaves nothing to compare with: use at least 2")
    if rollouts % grpo.minibatch_size:
        raise FaiscaError(
            f"grpo.minibatch_size {grpo.minibatch_size} does not divide the {rollouts} completions of a "
            "step: choose a divisor"
        )


def _check_stages(config: "Config") -> None:
    from faisca.config import STAGES

    stages = config.run.stages
    if not stages or list(stages) != [stage for stage in STAGES if stage in stages]:
        raise FaiscaError(
            f"run.stages {','.join(stages) or '(none)'} has an unknown name or another order: "
            f"choose among {','.join(STAGES)}, each once, in this order"
        )
