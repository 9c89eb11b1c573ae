"""What a single value may be: its type, and the range that its annotation carries."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from faisca.errors import FaiscaError


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


Count = Annotated[int, Range(least=1)]
CountOrOff = Annotated[int, Range(least=0)]
Share = Annotated[float, Range(least=0, below=1)]
ShareOrAll = Annotated[float, Range(least=0, most=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Raise a FaiscaError unless `value` fits the type and the range in `annotation`."""
    limits = None
    if get_origin(annotation) is Annotated:
        annotation, limits = get_args(annotation)
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise FaiscaError(f"{name} {value!r} is unknown: choose {', '.join(get_args(annotation))}")
    elif get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        if not isinstance(value, tuple) or not all(_is(item, one) for one in value):
            raise FaiscaError(f"{name} {value!r} is not a list of {'texts' if item is str else 'numbers'}")
        if item is float and not all(map(math.isfinite, value)):
            raise FaiscaError(f"{name} {value!r} has a number that is not finite")
    elif isinstance(value, bool) != (annotation is bool) or not isinstance(
        value, (int, float) if annotation is float else annotation
    ):
        kinds = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise FaiscaError(f"{name} {value!r} is not {kinds[annotation]}")
    elif annotation is float and not math.isfinite(value):
        raise FaiscaError(f"{name} {value} is not a finite number")
    if limits is not None and value not in limits:
        raise FaiscaError(f"{name} {value} is out of range: use a number {limits}")


def check_section(section: str, value: Any) -> None:
    """Raise a FaiscaError that names the first value of a section dataclass that does not fit its annotation."""
    for name, annotation in get_type_hints(type(value), include_extras=True).items():
        check_value(f"{section}.{name}", getattr(value, name), annotation)


def _is(kind: type, item: Any) -> bool:
    return type(item) in (int, float) if kind is float else isinstance(item, kind)
