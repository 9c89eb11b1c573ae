"""The rotation in config.json: its base and scaling stand in one, two or three places, which must agree.

transformers 4 and mlx-lm have `rope_theta` beside `rope_scaling`, transformers 5 has both in `rope_parameters`
(or in a `rope_scaling` with a `rope_theta`). Where two places contradict each other, libraries silently differ.
"""

from collections.abc import Mapping
from typing import Any

from faisca.config import ModelConfig
from faisca.errors import FaiscaError
from faisca.porting.layouts.layout import INSTEAD, required

KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"})
DEFAULT = 10_000.0
"""base of Llama and Mistral folders that name none: all libraries agree on it"""
SCALING = {
    "rope_factor": "factor",
    "rope_low_frequency": "low_freq_factor",
    "rope_high_frequency": "high_freq_factor",
    "rope_original_context": "original_max_position_embeddings",
}
"""our options of Llama 3's scaling, and what others call them"""
KNOWN = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}


def write_rope(model: ModelConfig) -> dict[str, Any]:
    """The base in both places, and the scaling in both where there is one."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_base}
    if model.rope_factor > 1:
        parameters |= {"rope_type": "llama3"} | {theirs: getattr(model, ours) for ours, theirs in SCALING.items()}
    values = {"rope_theta": model.rope_base, "rope_parameters": parameters}
    return values | ({"rope_scaling": parameters} if model.rope_factor > 1 else {})


def read_rope(config: Mapping[str, Any], source: str, has_default: bool) -> dict[str, Any]:
    """Our options of the rotation; a FaiscaError where places contradict each other, or where we compute another."""
    places = {"": config} | {f"{key}.": config[key] for key in ("rope_scaling", "rope_parameters") if config.get(key)}
    scalings = {place: _scaling(values, place, source) for place, values in places.items() if place}
    for place, values in places.items():
        if values.get("partial_rotary_factor") not in (None, 1):
            share = values["partial_rotary_factor"]
            raise FaiscaError(
                f"{source}: {place}partial_rotary_factor {share} is refused: our rotation turns whole heads; {INSTEAD}"
            )
    _agree({place[:-1]: scaling for place, scaling in scalings.items()}, source)
    bases = {f"{place}rope_theta": values["rope_theta"] for place, values in places.items() if values.get("rope_theta")}
    _agree(bases, source)
    base = next(iter(bases.values()), DEFAULT if has_default else None)
    scaling = next(iter(scalings.values()), {})
    return {"rope_base": base or required(config, "rope_theta", source), **scaling}


def _scaling(values: Mapping[str, Any], place: str, source: str) -> dict[str, Any]:
    """Llama 3's scaling as our options; none of the default type."""
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise FaiscaError(
            f"{source}: {place}rope_type {kind!r} is refused: our rotation is plain (default) or Llama 3's (llama3); "
            f"{INSTEAD}"
        )
    unknown = sorted(set(values) - KNOWN - (set(SCALING.values()) if kind == "llama3" else set()))
    if unknown:
        raise FaiscaError(
            f"{source}: {place}{unknown[0]} is refused with rope_type {kind!r}: nothing is known of it here"
        )
    if kind == "default":
        return {}
    return {ours: required(values, theirs, f"{source}: {place[:-1]}") for ours, theirs in SCALING.items()}


def _agree(found: Mapping[str, Any], source: str) -> None:
    """FaiscaError unless all values are the same one."""
    for place, value in found.items():
        first_place, first = next(iter(found.items()))
        if value != first:
            raise FaiscaError(
                f"{source}: {first_place} {first} and {place} {value} contradict each other: libraries read one or "
                "the other; correct the wrong one"
            )
