"""Files of headlines as Arrow data sets: Parquet, JSON, plain text, and CSV as spreadsheets write it.

A CSV file says neither what separates its columns nor its encoding: both are told from its beginning.
"""

import codecs
import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json

from faisca.config import DataConfig

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".txt", ".json")
SEPARATORS = ",;\t|"
HEAD = 2**20
"""bytes of a file from which its encoding is told"""


def open_file(part: Path, config: DataConfig) -> tuple[pyarrow.dataset.Dataset, list[str]]:
    """A file as a data set, and notes on what had to be guessed; errors are those of Arrow, the system and json."""
    suffix = part.suffix.lower()
    if suffix in (".parquet", ".jsonl"):
        return pyarrow.dataset.dataset(part, format={".parquet": "parquet", ".jsonl": "json"}[suffix]), []
    if suffix == ".json":
        return pyarrow.dataset.dataset(_read_json(part)), []
    encoding = _encoding(part)
    notes = [] if encoding == "utf-8" else [f"not UTF-8: read as {encoding}"]
    if suffix == ".txt":
        text = part.read_text("utf-8-sig" if encoding == "utf-8" else encoding)
        lines = pa.array(text.removesuffix("\n").split("\n"))
        languages = pa.repeat(config.language, len(lines))
        table = pa.table({config.title_column: lines, config.language_column: languages})
        return pyarrow.dataset.dataset(table), notes
    separator = "\t" if suffix == ".tsv" else _separator(part, encoding)
    if separator != "," and suffix == ".csv":
        notes.append(f"separated by {separator!r}")
    columns = (config.title_column, config.language_column, config.url_column)
    delimited = pyarrow.dataset.CsvFileFormat(
        pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        read_options=pyarrow.csv.ReadOptions(encoding="utf8" if encoding == "utf-8" else encoding),
    )
    return pyarrow.dataset.dataset(part, format=delimited), notes


def _read_json(path: Path) -> pa.Table:
    """A JSON array of objects, or objects one a line."""
    text = path.read_text("utf-8-sig")
    if text.lstrip().startswith("["):
        text = "\n".join(json.dumps(row) for row in json.loads(text))
    return pyarrow.json.read_json(io.BytesIO(text.encode()))


def _encoding(path: Path) -> str:
    """utf-8, utf-16 by its mark, or cp1252 (Latin-1 as Windows has it) where no character is valid UTF-8.

    A file with some valid characters is damaged UTF-8: its reader refuses it.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return "cp1252" if head.decode("utf-8", "ignore").isascii() else "utf-8"
    return "utf-8"


def _separator(path: Path, encoding: str) -> str:
    """What makes the most columns of a CSV file's first line; the comma where there is one column."""
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        header = [file.readline(HEAD)]
    try:
        widths = {separator: len(next(csv.reader(header, delimiter=separator), [])) for separator in SEPARATORS}
    except csv.Error:  # no text: Arrow says what is wrong with it
        return ","
    return max(widths, key=lambda separator: widths[separator])
