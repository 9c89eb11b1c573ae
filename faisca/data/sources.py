"""Where headlines come from: the embedded sample, the Hugging Face hub, or local files.

Whatever the source, the result is the same: splits as Arrow tables with the text columns title,
language and url, untouched otherwise. `headlines.py` filters and cleans them.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset

from faisca.config import DataConfig
from faisca.data.files import COMPRESSIONS, SUFFIXES, format_of, open_file
from faisca.errors import FaiscaError
from faisca.text import in_one_line, one_line

HUB_DATASET = "duarteocarmo/ccnews-titles-2016"
Filters = Mapping[str, str]
"""what stages ask of addresses, by the stage"""
NO_FILTERS: Filters = {}
DESCRIPTIONS = re.compile(
    r"(readme|leia-?me|licen[cs]e|licen[çc]a|copying|notice|authors|changelog|citation|contributing)(?![^\W_])"
    r"|(requirements|notes|notas|config|state|dataset_dict|dataset_infos?)\."
)
"""names of text and JSON that stands beside data, and is none"""
MOST_NAMED = 8
"""files that a note names; it counts the others"""


@dataclass(frozen=True)
class RawHeadlines:
    """Splits as read: tables with the text columns title, language and url, nulls included."""

    train: pa.Table
    validation: pa.Table | None
    columns: tuple[str, ...]
    """of the first training part; none where it is plain text"""
    notes: tuple[str, ...]


def is_path(source: str) -> bool:
    """Whether a source is a file or folder, not the sample or the hub."""
    return source not in ("sample", "hub") and not source.startswith("hub:")


def read_headlines(config: DataConfig, filters: Filters = NO_FILTERS) -> RawHeadlines:
    """The headlines of `config.source`; `filters` are only for the message where columns are missing."""
    source = config.source
    if source == "sample":
        from faisca.data.sample import sample_headlines

        return _raw(dict(zip(("train", "validation"), sample_headlines(), strict=True)), config, filters)
    if source == "hub" or source.startswith("hub:"):
        return _raw(_hub_splits(HUB_DATASET if source == "hub" else source.removeprefix("hub:")), config, filters)
    files, left_out = _files(source)
    raw = _raw(files, config, filters)
    return replace(raw, notes=(*left_out, *raw.notes))


def _files(source: str) -> tuple[dict[str, Path], list[str]]:
    """Usable files by name, those of a folder and its folders or the file itself; and notes on the others."""
    path = Path(os.path.expanduser(source))
    try:
        files = list(_folder(path)) if path.is_dir() else [(path, "")] if path.exists() else []
    except OSError as error:
        raise FaiscaError(f"data.source {source!r} cannot be read: {error.strerror}") from error
    if not files and not path.is_dir():
        raise FaiscaError(
            f"data.source {source!r} does not exist: name a file or folder, or use sample, hub or hub:OWNER/NAME"
        )
    left_out = {file: reason or _unread(file) for file, reason in files if reason or not format_of(file)}
    usable = [file for file, _ in files if file not in left_out]
    if any(format_of(file) != ".json" for file in usable):
        left_out |= {file: "JSON beside other files describes them" for file in usable if format_of(file) == ".json"}
    names = {file: file.relative_to(path).as_posix() if file != path else file.name for file, _ in files}
    notes = _left_out({names[file]: reason for file, reason in left_out.items()})
    if not usable:
        raise FaiscaError(
            "; ".join([f"data.source {source!r} has no headlines", *notes])
            + f": use files in {', '.join(SUFFIXES)}, text also compressed ({', '.join(COMPRESSIONS)})"
        )
    return {names[file]: file for file in usable if file not in left_out}, notes


def _folder(folder: Path) -> Iterator[tuple[Path, str]]:
    """All files in a folder and its folders, in order, each with the reason if it is none of data."""
    for path in sorted(folder.iterdir()):
        described = format_of(path) in (".txt", ".json") and DESCRIPTIONS.match(path.name.lower())
        if path.name[0] in "._":
            yield path, "hidden"
        elif path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            yield path, "a link to a folder that it is in"
        elif path.is_dir():
            yield from _folder(path)
        elif not path.is_file():
            yield path, "no regular file, or a link to nothing"
        else:
            yield path, "describes the data" if described else ""


def _unread(file: Path) -> str:
    return f"{file.suffix or 'a name without a suffix'} is not read"


def _left_out(files: Mapping[str, str]) -> list[str]:
    """A note on the files that were left out, by the reason."""
    by_reason = defaultdict(list)
    for name, reason in files.items():
        by_reason[reason].append(name)
    return [f"left out: {_listing(names)} ({reason})" for reason, names in by_reason.items()]


def _listing(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(map(one_line, names[:MOST_NAMED])) + (f" and {more:,} more" if more > 0 else "")


def _split(name: str) -> str:
    """Which split a part is in, by how its name begins or else that of a folder it is in: train, held out, or ""."""
    for part in reversed(name.lower().split("/")):
        if part.startswith(("train", "test", "valid")):
            return "train" if part.startswith("train") else "held out"
    return ""


def _raw(parts: Mapping[str, Path | pa.Table], config: DataConfig, filters: Filters) -> RawHeadlines:
    """Parts named train, and test or valid, are the splits; else all are one, or all that are not held out."""
    held_out = [name for name in parts if _split(name) == "held out"]
    training = [name for name in parts if _split(name) == "train"] or [name for name in parts if name not in held_out]
    validation = held_out if training else []
    training = training or held_out
    notes = _left_out(
        {name: "neither train, test nor valid by its name" for name in parts if name not in training + validation}
    )
    plain = [name for name in training + validation if config.language and _is_plain(parts[name])]
    notes += [f"{name} is plain text, taken to be in language {config.language!r}" for name in plain]
    read = {name: _read_part(name, parts[name], config, filters) for name in training + validation}
    return RawHeadlines(
        train=pa.concat_tables([read[name].train for name in training]),
        validation=pa.concat_tables([read[name].train for name in validation]) if validation else None,
        columns=read[training[0]].columns,
        notes=(*notes, *(note for part in read.values() for note in part.notes)),
    )


def _is_plain(part: Path | pa.Table) -> bool:
    return isinstance(part, Path) and format_of(part) == ".txt"


def _read_part(name: str, part: Path | pa.Table, config: DataConfig, filters: Filters) -> RawHeadlines:
    """Titles, languages and addresses of a part, its columns, and what had to be guessed of it."""
    wanted = {"title": config.title_column, "language": config.language_column, "url": config.url_column}
    if not config.language:
        del wanted["language"]
    try:
        dataset, notes = open_file(part, config) if isinstance(part, Path) else (pyarrow.dataset.dataset(part), [])
        found = _text_columns(name, dataset.schema, wanted, filters)
        table = dataset.to_table(columns=list(found.values()))
        texts = {role: table[column].cast(pa.string()) for role, column in found.items()}
        nothing = pa.nulls(table.num_rows, pa.string())
        standard = pa.table({role: texts.get(role, nothing) for role in ("title", "language", "url")})
        standard.validate(full=True)  # a file may hold bytes that are no UTF-8
    except (pa.ArrowException, OSError, UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise FaiscaError(
            f"{name} cannot be read ({_in_words(error)}): save it again, as Parquet or as UTF-8 text"
        ) from error
    columns = () if _is_plain(part) else tuple(dataset.schema.names)
    return RawHeadlines(standard, None, columns, tuple(f"{name} {note}" for note in notes))


def _text_columns(part: str, schema: pa.Schema, wanted: Mapping[str, str], filters: Filters) -> dict[str, str]:
    """The wanted columns that are there, by role; a FaiscaError names all that must be there and are not."""
    missing = [role for role, column in wanted.items() if column not in schema.names]
    found = {role: column for role, column in wanted.items() if role not in missing}
    if missing not in ([], ["url"]):  # only a stage that filters by address needs it, and complains there
        raise FaiscaError(_missing_words(part, schema, {role: wanted[role] for role in missing}, filters))
    for role, column in found.items():
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
            listing = ", ".join(schema.names)
            raise FaiscaError(
                f"column {column!r} of {part} holds {kind}, not text: name one of {listing} with --data.{role}-column"
            )
    return found


def _missing_words(part: str, schema: pa.Schema, missing: Mapping[str, str], filters: Filters) -> str:
    remedies = {
        "title": "--data.title-column NAME",
        "language": '--data.language-column NAME (or --data.language "" keeps every language)',
        "url": "--data.url-column NAME",
    }
    if "url" in missing and filters:
        (stage, wanted), *_ = filters.items()
        remedies["url"] += f' (or --{stage}.url-contains "", now {wanted!r}, takes every address)'
    elif "url" in missing:
        missing = {role: column for role, column in missing.items() if role != "url"}
    names = ", ".join(map(repr, missing.values()))
    listing = ", ".join(schema.names)
    return f"{part} has no column {names}; it has {listing}: give " + ", ".join(remedies[role] for role in missing)


def _hub_splits(name: str) -> dict[str, pa.Table]:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FaiscaError(f"data.source 'hub:{name}' names no data set: write hub:OWNER/NAME")
    import datasets  # slow to import, and only the hub needs it

    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the network, the hub and each data set's files fail in ways of their own
        raise FaiscaError(
            f"data set {name} cannot be had from the hub ({_in_words(error)}): offline, use --data sample "
            "or --data PATH"
        ) from error
    return {split: part.data.table for split, part in splits.items()}


def _in_words(error: Exception) -> str:
    return in_one_line(error, without=r"^Error creating dataset.* input source '.*?': (Invalid: )?")
