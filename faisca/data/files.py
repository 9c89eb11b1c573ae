"""Files of headlines as Arrow tables: Parquet, JSON, plain text, CSV and TSV, text also compressed.

Text does not say its encoding: it is told from the file, noted where it is unusual, and refused where none fits.
"""

import codecs
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.json

from faisca.config import DataConfig
from faisca.data.delimited import BLOCK, HEAD, SEPARATORS, header, read_delimited, separator_of, wanted, with_others
from faisca.errors import FaiscaError

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".txt", ".json")
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def format_of(path: Path) -> str:
    """The suffix that says how a file is read, .csv for news.csv.gz; "" where it is not."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS and ".parquet" not in suffixes:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def open_file(part: Path, config: DataConfig) -> tuple[pyarrow.dataset.Dataset, list[str]]:
    """A file as a data set, and notes on what had to be guessed; columns that nobody wants may be empty.

    Errors are those of Arrow, the system, Unicode and json, and a FaiscaError with its own remedy.
    """
    suffix = format_of(part)
    if suffix == ".parquet":
        return pyarrow.dataset.dataset(part), []
    data, notes = _read_text(part)
    if suffix == ".txt":
        table = _lines(part, data, config)
    elif suffix in (".json", ".jsonl"):
        table = _objects(part, data if suffix == ".jsonl" else _without_array(data), config)
    else:
        table, doubts = read_delimited(part.name, data, config, tabs=suffix == ".tsv")
        notes += doubts
    return pyarrow.dataset.dataset(table), notes


def _read_text(path: Path) -> tuple[pa.Buffer, list[str]]:
    """A file's text, unpacked, as UTF-8 without a mark; mapped into memory where it is stored so."""
    packed = path.suffix.lower() in COMPRESSIONS
    with pa.input_stream(str(path)) if packed else pa.memory_map(str(path)) as file:
        data = file.read_buffer()
    encoding = _encoding(data)
    if encoding != "utf-8":
        return pa.py_buffer(str(data, encoding).encode()), [f"is not UTF-8: read as {encoding}"]
    marked = data[: len(codecs.BOM_UTF8)].to_pybytes() == codecs.BOM_UTF8
    return data[len(codecs.BOM_UTF8) :] if marked else data, []


def _encoding(data: pa.Buffer) -> str:
    """utf-8, what a mark says, or cp1252 (Latin-1 as Windows has it) where hardly a character is valid UTF-8."""
    head = data[:HEAD].to_pybytes()
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    if head.count(0) > len(head) // 4:
        raise UnicodeError("it is no text, or UTF-16 without its mark")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for begin in range(0, len(data), HEAD):
            decoder.decode(data[begin : begin + HEAD].to_pybytes(), final=begin + HEAD >= len(data))
    except UnicodeDecodeError as error:
        text = str(data, "utf-8", "replace")
        wrong, right = text.count("\ufffd"), len(re.findall(r"[^\x00-\x7f\ufffd]", text))
        if 20 * right > wrong or "\0" in text:
            raise UnicodeError("it is neither UTF-8 throughout nor cp1252") from error
        return "cp1252"
    return "utf-8"


def _lines(part: Path, data: pa.Buffer, config: DataConfig) -> pa.Table:
    """Plain text, a title a line, all in the language that is asked for."""
    text = io.TextIOWrapper(pa.BufferReader(data), "utf-8").read()
    lines = text.removesuffix("\n").split("\n")
    if separator := _table_separator(data, lines, config):
        suffix = ".tsv" if separator == "\t" else ".csv"
        raise FaiscaError(
            f"{part.name} is a table separated by {separator!r}, not a headline a line: "
            f"name it {part.name.lower().replace('.txt', suffix)}"
        )
    return pa.table({config.title_column: lines, config.language_column: pa.repeat(config.language, len(lines))})


def _table_separator(data: pa.Buffer, lines: list[str], config: DataConfig) -> str:
    """What separates the columns of a table in plain text; "" where it is none.

    Its first line names the title's column, or all lines have the same number of tabs, semicolons or bars.
    """
    separator = separator_of(data, config)
    names = header(data, separator)
    if config.title_column in names and len(names) > 1:
        return separator
    some = list(filter(None, lines[:1000]))
    if len(some) < 3:
        return ""
    counts = {one: {line.count(one) for line in some} for one in SEPARATORS if one != ","}
    return next((one for one, count in counts.items() if len(count) == 1 and count != {0}), "")


def _without_array(data: pa.Buffer) -> pa.Buffer:
    """A JSON array of objects as objects one a line; what is no array is that already."""
    if not re.match(rb"\s*\[", data):
        return data
    return pa.py_buffer("\n".join(json.dumps(row) for row in json.loads(str(data, "utf-8"))).encode())


def _objects(part: Path, data: pa.Buffer, config: DataConfig) -> pa.Table:
    """JSON objects one a line: the wanted keys must hold text or nothing, others may hold anything."""
    schema = pa.schema([(name, pa.string()) for name in wanted(config)])
    reading = pyarrow.json.ReadOptions(block_size=BLOCK)
    parsing = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pyarrow.json.read_json(pa.BufferReader(data), reading, parsing)
    except pa.ArrowInvalid as error:
        if other := re.search(r"Column\(/(.*)\) changed from string to (\w+)", str(error)):
            columns = {getattr(config, f"{kind}_column"): kind for kind in ("title", "language", "url")}
            raise FaiscaError(
                f"column {other[1]!r} of {part.name} holds a value that is no text but {other[2]}: "
                "write it as text or null, or name another column with "
                f"--data.{columns[other[1]]}-column"
            ) from error
        raise
    first = re.search(rb"\S[^\r\n]*", data)
    row = json.JSONDecoder().raw_decode(first[0].decode())[0] if first else {}
    late = [name for name in schema.names if name not in row and table[name].null_count < table.num_rows]
    return with_others(table, [*row, *late])
