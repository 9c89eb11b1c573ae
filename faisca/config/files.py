"""Configuration in files: the presets, a run's `config.toml`, and TOML files of the user's own.

A file has the sections and names of `config.py` and may leave out any of them. Files lie on one
another as sections that are not yet a `Config`: names, types and ranges are checked when a file is
read, the rules between values only when the `Config` is made, so that a later file or an option
on the command line can mend what an earlier one leaves impossible on its own.
"""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from faisca.config import Config
from faisca.config.ranges import check_value
from faisca.errors import FaiscaError
from faisca.text import suggest

PRESETS = Path(__file__).parent / "presets"

Sections = dict[str, Any]
"""The fields of a Config by name: `preset`, a text, and the sections, dataclasses."""
Adapt = Callable[[Sections], Sections]
REMOVED = {
    **{"model.residual_scales": False, "data.windows": "stream"},
    **{"pretrain.batch_ramp_steps": 0, "sft.batch_ramp_steps": 0},
}
"""options that did not pay (docs/recipes.md), and their values where they are off: older files have them"""


def _as_it_is(sections: Sections) -> Sections:
    return sections


def preset_names() -> list[str]:
    """The names of the presets, in alphabetical order."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset_summary(name: str) -> str:
    """The first line of a preset's file: what it is for."""
    return _read_text(_preset_path(name)).partition("\n")[0].lstrip("# ")


def load_preset(name: str) -> Config:
    """The configuration of a preset; raises FaiscaError for an unknown name."""
    return Config(**preset_sections(name))


def config_from_dict(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """The inverse of `config_to_dict`; what `values` leave out comes from `base` or the defaults."""
    return Config(**lay(sections_of(base or Config()), values))


def config_to_dict(config: Config) -> dict[str, Any]:
    """The whole configuration as nested dictionaries, `preset` first."""
    return dataclasses.asdict(config)


def config_text(config: Config) -> str:
    """The whole configuration as TOML; `read_sections` of it gives equal sections."""
    return tomli_w.dumps(config_to_dict(config))


def write_config(config: Config, path: Path) -> None:
    """Write `config_text(config)` to `path`."""
    path.write_text(config_text(config), encoding="utf-8", newline="\n")


def sections_of(config: Config) -> Sections:
    """The fields of a `Config` by name."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def preset_sections(name: str) -> Sections:
    """The sections of a preset; raises FaiscaError for an unknown name."""
    return read_sections(_preset_path(name), sections_of(Config(preset=name)))


def read_sections(
    path: Path, base: Sections | None = None, without_preset: Sections | None = None, adapt: Adapt = _as_it_is
) -> Sections:
    """`base` with the values of a TOML file laid on it; a FaiscaError names the file.

    Without `base`, they are laid on the preset that the file names (`preset = "…"`), else on
    `without_preset`, if given, else on `spark`. `adapt` changes what they are laid on.
    """
    values = _read_toml(path)
    try:
        if base is None and "preset" not in values:
            base = without_preset
        return lay(adapt(preset_sections(_preset_of(values)) if base is None else base), values)
    except FaiscaError as error:
        raise FaiscaError(f"{path}: {error}") from None


def layered_sections(
    preset: str | None, file: Path | None, otherwise: Sections | None = None, adapt: Adapt = _as_it_is
) -> Sections:
    """The layers below the command line: a preset, and a file laid over it.

    Without `preset` it is the one that the file names, else `otherwise`, else `spark`; `adapt` changes it
    before the file is laid on it. FaiscaError where the two disagree.
    """
    if file is None:
        return adapt(otherwise if otherwise and preset is None else preset_sections(preset or "spark"))
    sections = read_sections(file, preset_sections(preset) if preset else None, otherwise, adapt)
    if preset not in (None, sections["preset"]):
        raise FaiscaError(
            f"--preset {preset} disagrees with {file}, which builds on preset {sections['preset']}: leave --preset out"
        )
    return sections


def _preset_path(name: str) -> Path:
    if name not in preset_names():
        raise FaiscaError(f"preset {name!r} is unknown: {suggest(name, preset_names())}")
    return PRESETS / f"{name}.toml"


def _preset_of(values: Mapping[str, Any]) -> str:
    name = values.get("preset", "spark")
    check_value("preset", name, str)
    return str(name)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte-order mark
    except OSError as error:
        raise FaiscaError(f"cannot read {path} ({error.strerror}): name a TOML file") from None
    except UnicodeDecodeError as error:
        raise FaiscaError(f"{path} is not a text in UTF-8 (at byte {error.start}): save it as UTF-8") from None


def _read_toml(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FaiscaError(f"{path} is not valid TOML: {error}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, very deep nesting
        raise FaiscaError(f"{path} holds a value that cannot be read: {error}") from None


def lay(base: Sections, values: Mapping[str, Any]) -> Sections:
    """`base` with values by section and name laid on it, each checked; the rules between values wait for Config."""
    laid = dict(base)
    for name, value in values.items():
        if name == "preset":
            laid[name] = _preset_of(values)
        elif name in base:
            laid[name] = _lay_section(name, base[name], value)
        else:
            raise FaiscaError(f"section {name} is unknown: {_suggest_section(name, base)}")
    return laid


def _suggest_section(name: str, base: Sections) -> str:
    """The section meant, or the sections where an option stands that was given without one."""
    sections = {key: section for key, section in base.items() if key != "preset"}
    homes = [f"{key}.{name}" for key, section in sections.items() if hasattr(section, name)]
    return f"did you mean {' or '.join(homes)}?" if homes else suggest(name, sections)


def _lay_section(name: str, section: Any, values: Any) -> Any:
    """A copy of the dataclass `section` with `values`, each checked for its name, type and range."""
    if not isinstance(values, Mapping):
        raise FaiscaError(f"{name} {values!r} is not a section: write [{name}] and its options below it")
    hints = get_type_hints(type(section), include_extras=True)
    plain = get_type_hints(type(section))
    changes = {}
    for key, value in values.items():
        if f"{name}.{key}" in REMOVED:
            _check_off(f"{name}.{key}", value)
            continue
        if key not in hints:
            raise FaiscaError(f"{name}.{key} is unknown: {suggest(key, hints)}")
        changes[key] = _converted(value, plain[key])
        check_value(f"{name}.{key}", changes[key], hints[key])
    return dataclasses.replace(section, **changes)


def _check_off(option: str, value: Any) -> None:
    """Raise a FaiscaError where an option that was removed is on."""
    off = REMOVED[option]
    if (type(value), value) != (type(off), off):
        raise FaiscaError(f"{option} {value!r}: it was removed: train anew without it, or use an earlier version")


def _converted(value: Any, kind: Any) -> Any:
    """What TOML spells in another way: arrays are tuples here, a text is a list of one, `1` has a fraction too."""
    if isinstance(value, str) and kind == tuple[str, ...]:
        return (value,)
    if isinstance(value, (list, tuple)):
        return tuple(_converted(item, float if kind == tuple[float, ...] else str) for item in value)
    if kind is float and type(value) is int:
        return float(value) if abs(value) < 2**1023 else float("inf")  # refused as not finite
    return value
