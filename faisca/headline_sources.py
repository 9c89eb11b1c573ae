"""Where headlines come from: the embedded sample, the Hugging Face hub, or local files.

Whatever the source, the result is the same: splits as Arrow tables with the text columns title,
language and url, untouched otherwise. `headlines.py` filters and cleans them.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset

from faisca.config import DataConfig
from faisca.errors import FaiscaError, in_one_line

HUB_DATASET = "duarteocarmo/ccnews-titles-2016"
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".txt")


@dataclass(frozen=True)
class RawHeadlines:
    """Splits as read: tables with the text columns title, language and url, nulls included."""

    train: pa.Table
    validation: pa.Table | None
    columns: tuple[str, ...]
    notes: tuple[str, ...]


def read_headlines(config: DataConfig) -> RawHeadlines:
    source = config.source
    if source == "sample":
        from faisca.sample_corpus import sample_headlines

        return _raw(dict(zip(("train", "validation"), sample_headlines(), strict=True)), config)
    if source == "hub" or source.startswith("hub:"):
        return _raw(_hub_splits(HUB_DATASET if source == "hub" else source.removeprefix("hub:")), config)
    return _raw(_files(source), config)


def _files(source: str) -> dict[str, Path]:
    """Usable files by name: those of a folder, or the file itself."""
    path = Path(os.path.expanduser(source))
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    except OSError as error:
        raise FaiscaError(f"data.source {source!r} cannot be read: {error.strerror}") from error
    if not files and not path.is_dir():
        raise FaiscaError(
            f"data.source {source!r} does not exist: name a file or folder, or use sample, hub or hub:OWNER/NAME"
        )
    usable = [file for file in files if file.suffix.lower() in SUFFIXES and file.name[0] not in "._"]
    if not usable:
        raise FaiscaError(f"data.source {source!r} has no headlines: use files in {', '.join(SUFFIXES)}")
    return {file.name: file for file in usable}


def _raw(parts: Mapping[str, Path | pa.Table], config: DataConfig) -> RawHeadlines:
    """Parts whose names begin with train, and with test or valid, are the splits; else all are one."""
    training = [name for name in parts if name.lower().startswith("train")]
    validation = [name for name in parts if training and name.lower().startswith(("test", "valid"))]
    training = training or list(parts)
    notes = [f"{name} left out" for name in parts if name not in training + validation]
    plain = [name for name in training + validation if config.language and name.lower().endswith(".txt")]
    notes += [f"{name} is plain text, taken to be in language {config.language!r}" for name in plain]
    read = {name: _read_part(name, parts[name], config) for name in training + validation}
    return RawHeadlines(
        train=pa.concat_tables([read[name][0] for name in training]),
        validation=pa.concat_tables([read[name][0] for name in validation]) if validation else None,
        columns=read[training[0]][1],
        notes=tuple(notes),
    )


def _read_part(name: str, part: Path | pa.Table, config: DataConfig) -> tuple[pa.Table, tuple[str, ...]]:
    """Titles, languages and addresses of a part; and the columns that it has."""
    wanted = {"title": config.title_column, "url": config.url_column}
    if config.language:
        wanted["language"] = config.language_column
    try:
        dataset = _open(part, config)
        found = {role: column for role, column in wanted.items() if _has_text(name, role, column, dataset)}
        table = dataset.to_table(columns=list(found.values()))
        texts = {role: table[column].cast(pa.string()) for role, column in found.items()}
        nothing = pa.nulls(table.num_rows, pa.string())
        standard = pa.table({role: texts.get(role, nothing) for role in ("title", "language", "url")})
        standard.validate(full=True)  # a file may hold bytes that are no UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FaiscaError(
            f"{name} cannot be read ({_in_words(error)}): save it again, as Parquet or as UTF-8 text"
        ) from error
    return standard, tuple(dataset.schema.names)


def _open(part: Path | pa.Table, config: DataConfig) -> pyarrow.dataset.Dataset:
    if isinstance(part, pa.Table):
        return pyarrow.dataset.dataset(part)
    suffix = part.suffix.lower()
    if suffix == ".txt":
        lines = pa.array(part.read_text("utf-8-sig").removesuffix("\n").split("\n"))
        languages = pa.repeat(config.language, len(lines))
        return pyarrow.dataset.dataset(pa.table({config.title_column: lines, config.language_column: languages}))
    columns = (config.title_column, config.language_column, config.url_column)
    delimited = pyarrow.dataset.CsvFileFormat(
        pyarrow.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
    )
    formats = {".parquet": "parquet", ".jsonl": "json", ".csv": delimited, ".tsv": delimited}
    return pyarrow.dataset.dataset(part, format=formats[suffix])


def _has_text(part: str, role: str, column: str, dataset: pyarrow.dataset.Dataset) -> bool:
    """Whether the column is there; raises a FaiscaError where it must be, or is no text."""
    listing = ", ".join(dataset.schema.names)
    remedy = f"name one of {listing} with --data.{role}-column"
    if role == "language":
        remedy += ', or keep every language with --data.language ""'
    if column not in dataset.schema.names:
        if role == "url":  # only a stage that filters by address needs it, and complains there
            return False
        raise FaiscaError(f"{part} has no column {column!r}: {remedy}")
    kind = dataset.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
        raise FaiscaError(f"column {column!r} of {part} holds {kind}, not text: {remedy}")
    return True


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
