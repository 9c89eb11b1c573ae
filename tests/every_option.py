"""Every option of the configuration, and the values that it can be changed to."""

import dataclasses
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from faisca.config import Config


def options() -> dict[str, Any]:
    """All options by their whole names, with their annotations."""
    return {
        f"{section.name}.{name}": get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        for section in dataclasses.fields(Config)
        if section.name != "preset"
        for name, annotation in get_type_hints(type(getattr(Config(), section.name)), include_extras=True).items()
    }


def choices(name: str, base: Any, value: Any) -> list[Any]:
    """The values to change an option to."""
    annotation = options()[name]
    every = [True, False] if annotation is bool else get_args(annotation) if get_origin(annotation) is Literal else []
    return [choice for choice in every if choice != base] or [value]
