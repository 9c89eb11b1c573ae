"""CSV and TSV as Arrow tables: a row a line, columns with names, and everything in them text.

CSV says neither what separates columns nor how quotation marks are meant: both are told from the file,
noted where they are unusual, and refused where they do not fit, for a stray mark swallows rows.
"""

import csv
import io
import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from faisca.config import DataConfig
from faisca.errors import FaiscaError
from faisca.text import one_line

SEPARATORS = ",;\t|"
HEAD = 2**16
"""bytes in which a header ends, and that are decoded at once"""
BLOCK = 2**26
"""bytes that are parsed at once: no row may be larger"""
ODD = r"[\t\n\r\\]"
"""what hardly a title holds, unless quotation marks are missing or escaped in another way"""


def read_delimited(part: str, data: pa.Buffer, config: DataConfig, *, tabs: bool) -> tuple[pa.Table, list[str]]:
    """CSV, or TSV where `tabs`, as a table, and notes: every row has the header's columns, and all is text."""
    named = re.match(rb"sep=([,;\t|])\r?\n", data)  # a line that Excel understands
    data = data[named.end() :] if named else data
    separator = "\t" if tabs else named[1].decode() if named else separator_of(data, config)
    notes = [f"is separated by {separator!r}"] if separator not in (",", "\t" if tabs else ",") else []
    encloses = not tabs or _encloses(data)
    if encloses:
        _check_quotation(part, data, separator)
    names = header(data, separator)
    found = [name for name in wanted(config) if name in names]
    if repeated := [name for name in found if names.count(name) > 1]:
        raise FaiscaError(f"{part} has multiple columns named {repeated[0]}: rename all but one")
    if config.title_column not in names and len(data):
        return with_others(pa.table({}), names), notes
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        pyarrow.csv.ReadOptions(block_size=BLOCK),
        pyarrow.csv.ParseOptions(
            delimiter=separator, quote_char='"' if encloses else False, newlines_in_values=encloses
        ),
        pyarrow.csv.ConvertOptions(include_columns=found, column_types=dict.fromkeys(found, pa.string())),
    )
    return with_others(table, names), notes + _doubts(table[config.title_column], encloses)


def wanted(config: DataConfig) -> list[str]:
    """The columns that are asked for: the title, its language unless any will do, and its address."""
    language = [config.language_column] if config.language else []
    return list(dict.fromkeys((config.title_column, *language, config.url_column)))


def with_others(table: pa.Table, names: list[str]) -> pa.Table:
    """A table's columns among all that its file has; those that were not read are empty."""
    return pa.table({name: table[name] if name in table.column_names else pa.nulls(table.num_rows) for name in names})


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


def separator_of(data: pa.Buffer, config: DataConfig) -> str:
    """What separates the columns of a header: it has the title's, and else the most; the comma where there is one."""
    headers = {separator: header(data, separator) for separator in SEPARATORS}
    return max(SEPARATORS, key=lambda one: (config.title_column in headers[one], len(headers[one])))


def header(data: pa.Buffer, separator: str) -> list[str]:
    """The names of columns, if this is what separates them; none where the first row has no end."""
    text = io.StringIO(str(data[:HEAD], "utf-8", "ignore"), newline="")
    try:
        return next(filter(None, csv.reader(text, delimiter=separator)), [])
    except csv.Error:
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


def _check_quotation(part: str, data: pa.Buffer, separator: str) -> None:
    if (place := _stray_mark(data, separator)) < len(data):
        line = data[:place].to_pybytes().count(b"\n") + 1
        raise FaiscaError(
            f"{part} opens a field with a quotation mark on line {line:,} and does not close it before "
            f"{separator!r} or the line's end: double the marks inside fields, or save it as Parquet"
        )


def _encloses(data: pa.Buffer) -> bool:
    """Whether quotation marks enclose fields of a TSV, as some programs write it; else they are letters.

    They do where the header has some, and where each field that begins with one also closes, and needed
    it: for marks inside, a tab or a line break. With both of these it may be lines that stray marks join.
    """
    first = re.match(rb"[^\r\n]*", data)
    assert first is not None, "it matches every text"
    if b'"' in first[0]:
        return True
    fields = [match[0][1:-1] for match in re.finditer(_field("\t").encode(), data)]
    lone = b"\t" not in first[0]

    def needed(field: bytes) -> bool:
        broken, tab = re.search(rb"[\r\n]", field), b"\t" in field
        return not field or (not (tab or lone) if broken else tab or b'""' in field)

    return bool(fields) and _stray_mark(data, "\t") == len(data) and all(map(needed, fields))
