"""Files of headlines as Arrow tables: Parquet, JSON, plain text, CSV and TSV, text also compressed.

Text says neither its encoding nor, in CSV, what separates columns or whether a quotation mark is a
letter: all are told from the file, noted where they are unusual, and refused where they do not fit.
"""

import codecs
import csv
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json

from faisca.config import DataConfig
from faisca.errors import FaiscaError
from faisca.text import one_line

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".txt", ".json")
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SEPARATORS = ",;\t|"
HEAD = 2**16
"""bytes in which a header ends, and that are decoded at once"""
BLOCK = 2**26
"""bytes that are parsed at once: no row may be larger"""
ODD = r"[\t\n\r\\]"
"""what hardly a title holds, unless quotation marks are missing or escaped in another way"""


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
        table = _delimited(part, data, config, notes)
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
    separator = _separator(data, config)
    header = _header(data, separator)
    if config.title_column in header and len(header) > 1:
        other = part.name.lower().replace(".txt", ".tsv" if separator == "\t" else ".csv")
        raise FaiscaError(f"{part.name} is a table separated by {separator!r}, not a headline a line: name it {other}")
    text = io.TextIOWrapper(pa.BufferReader(data), "utf-8").read()
    lines = pa.array(text.removesuffix("\n").split("\n"))
    return pa.table({config.title_column: lines, config.language_column: pa.repeat(config.language, len(lines))})


def _wanted(config: DataConfig) -> list[str]:
    language = [config.language_column] if config.language else []
    return list(dict.fromkeys((config.title_column, *language, config.url_column)))


def _with_others(table: pa.Table, names: list[str]) -> pa.Table:
    """A table's columns among all that its file has; those that were not read are empty."""
    return pa.table({name: table[name] if name in table.column_names else pa.nulls(table.num_rows) for name in names})


def _without_array(data: pa.Buffer) -> pa.Buffer:
    """A JSON array of objects as objects one a line; what is no array is that already."""
    if not re.match(rb"\s*\[", data):
        return data
    return pa.py_buffer("\n".join(json.dumps(row) for row in json.loads(str(data, "utf-8"))).encode())


def _objects(part: Path, data: pa.Buffer, config: DataConfig) -> pa.Table:
    """JSON objects one a line: the wanted keys must hold text or nothing, others may hold anything."""
    schema = pa.schema([(name, pa.string()) for name in _wanted(config)])
    reading = pyarrow.json.ReadOptions(block_size=BLOCK)
    parsing = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pyarrow.json.read_json(pa.BufferReader(data), reading, parsing)
    except pa.ArrowInvalid as error:
        if other := re.search(r"Column\(/(.*)\) changed from string to (\w+)", str(error)):
            raise FaiscaError(
                f"column {other[1]!r} of {part.name} holds a value that is no text but {other[2]}: "
                "write it as text or null, or name another column"
            ) from error
        raise
    first = re.search(rb"\S[^\r\n]*", data)
    row = json.JSONDecoder().raw_decode(first[0].decode())[0] if first else {}
    late = [name for name in schema.names if name not in row and table[name].null_count < table.num_rows]
    return _with_others(table, [*row, *late])


def _delimited(part: Path, data: pa.Buffer, config: DataConfig, notes: list[str]) -> pa.Table:
    """CSV or TSV: every row has the header's columns, and everything in it is text."""
    tabs = format_of(part) == ".tsv"
    named = re.match(rb"sep=([,;\t|])\r?\n", data)  # a line that Excel understands
    data = data[named.end() :] if named else data
    separator = "\t" if tabs else named[1].decode() if named else _separator(data, config)
    if separator != "," and not tabs:
        notes.append(f"is separated by {separator!r}")
    encloses = not tabs or _encloses(data)
    if encloses:
        _check_quotation(part, data, separator)
    names = _header(data, separator)
    found = [name for name in _wanted(config) if name in names]
    if repeated := [name for name in found if names.count(name) > 1]:
        raise FaiscaError(f"{part.name} has multiple columns named {repeated[0]}: rename all but one")
    if config.title_column not in names and len(data):
        return _with_others(pa.table({}), names)
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        pyarrow.csv.ReadOptions(block_size=BLOCK),
        pyarrow.csv.ParseOptions(
            delimiter=separator, quote_char='"' if encloses else False, newlines_in_values=encloses
        ),
        pyarrow.csv.ConvertOptions(include_columns=found, column_types=dict.fromkeys(found, pa.string())),
    )
    notes += _doubts(table[config.title_column], encloses)
    return _with_others(table, names)


def _doubts(titles: pa.ChunkedArray, encloses: bool) -> list[str]:
    """Notes on titles that may show that quotation marks are meant otherwise than they were read."""
    kinds = {ODD: ("line breaks, tabs or backslashes in", "look whether a stray quotation mark joins rows")}
    if not encloses:
        kinds['^"'] = ("quotation marks at the start of", "in TSV they are letters")
    notes = []
    for pattern, (what, words) in kinds.items():
        some = titles.filter(pc.match_substring_regex(titles, pattern))
        if len(some):
            notes.append(f"has {what} titles ({len(some):,}, as {one_line(some[0].as_py())!r}): {words}")
    return notes


def _separator(data: pa.Buffer, config: DataConfig) -> str:
    """What separates the columns of a header: it has the title's, and else the most; the comma where there is one."""
    headers = {separator: _header(data, separator) for separator in SEPARATORS}
    return max(SEPARATORS, key=lambda one: (config.title_column in headers[one], len(headers[one])))


def _header(data: pa.Buffer, separator: str) -> list[str]:
    text = io.StringIO(str(data[:HEAD], "utf-8", "ignore"), newline="")
    try:
        return next(filter(None, csv.reader(text, delimiter=separator)), [])
    except csv.Error:  # a field without an end, which is no header with this separator
        return []


def _field(separator: str) -> str:
    """A pattern of fields that quotation marks enclose; the mark inside is doubled."""
    return rf'"(?<![^{separator}\r\n]")[^"]*+(?:""[^"]*+)*+"(?=[{separator}\r\n]|\Z)'


def _stray_mark(data: pa.Buffer, separator: str) -> int:
    """Where the first quotation mark is that opens a field and does not close it; the end where there is none."""
    pattern = rf'[^"]*+(?:(?:{_field(separator)}|(?<=[^{separator}\r\n])")[^"]*+)*+'.encode()
    match = re.match(pattern, data)
    assert match is not None, "it matches every text"
    return match.end()


def _check_quotation(part: Path, data: pa.Buffer, separator: str) -> None:
    if (place := _stray_mark(data, separator)) < len(data):
        line = data[:place].to_pybytes().count(b"\n") + 1
        raise FaiscaError(
            f"{part.name} opens a field with a quotation mark on line {line:,} and does not close it before "
            f"{separator!r} or the line's end: double the marks inside fields, or save it as Parquet"
        )


def _encloses(data: pa.Buffer) -> bool:
    """Whether quotation marks enclose fields of a TSV, as some programs write it; else they are letters.

    They do where the header has some, and where each field that begins with one also closes, and needed
    it: for marks inside, a tab or a line break. With both of these it may be lines that stray marks join.
    """
    header = re.match(rb"[^\r\n]*", data)
    assert header is not None, "it matches every text"
    if b'"' in header[0]:
        return True
    fields = [match[0][1:-1] for match in re.finditer(_field("\t").encode(), data)]
    lone = b"\t" not in header[0]

    def needed(field: bytes) -> bool:
        broken, tab = re.search(rb"[\r\n]", field), b"\t" in field
        return not field or (not (tab or lone) if broken else tab or b'""' in field)

    return bool(fields) and _stray_mark(data, "\t") == len(data) and all(map(needed, fields))
