"""Files as programs write them: what they hold is read as it was, named where it is left out, or refused in a line."""

import csv
import gzip
import io
import json
import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from faisca.config import DataConfig
from faisca.data.headlines import load_headlines
from faisca.data.sources import RawHeadlines, read_headlines
from faisca.errors import FaiscaError

HEADER = ("title", "language", "requested_url")
ROW = ("pt", "https://a.pt/x")


def read(path: Path, **options: Any) -> RawHeadlines:
    return read_headlines(DataConfig(source=str(path), **options))


def titles(path: Path, **options: Any) -> list[str | None]:
    raw = read(path, **options)
    assert set(raw.train["language"].to_pylist()) <= {"pt", None}
    return raw.train["title"].to_pylist()


def failure(path: Path, **options: Any) -> str:
    with pytest.raises(FaiscaError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and path.name in message
    return message


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(rows: list[str], delimiter: str = ",", **dialect: Any) -> str:
    """A file with these titles as Python's csv module writes it."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, **dialect)
    writer.writerows([HEADER, *((title, *ROW) for title in rows)])
    return text.getvalue()


# --- quotation marks ---


def test_a_quotation_mark_in_tsv_is_a_letter(tmp_path: Path) -> None:
    """400 titles of which every second begins with a mark that nothing closes, and some end with one."""
    wanted = [f'"Título {i}' if i % 2 else f'Título {i}"' if i % 4 else f'Diz "{i}" e sai' for i in range(400)]
    path = write(
        tmp_path / "a.tsv", "".join(f"{title}\tpt\n" for title in ["title", *wanted]).replace("pt", "language", 1)
    )
    assert titles(path) == wanted
    note = """a.tsv has quotation marks at the start of titles (200, as '"Título 1'): in TSV they are letters"""
    assert read(path).notes == (note,)


@pytest.mark.parametrize("title", ['"Sim"', '"Sim", diz ele', '"a" e "b"', '""', '"', "'"])
def test_marks_around_a_whole_title_stay_in_tsv(tmp_path: Path, title: str) -> None:
    wanted = [title, 'um "dois" três', '"quatro"']
    assert (
        titles(write(tmp_path / "a.tsv", "\n".join(["title\tlanguage", *(f"{one}\tpt" for one in wanted)]))) == wanted
    )


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tsv_whose_fields_are_enclosed_is_read_as_it_was_meant(tmp_path: Path, quoting: int) -> None:
    wanted = ['Diz "sim", e sai', "duas\nlinhas", "um\ttab", '"tudo"', "", "simples"]
    raw = read(write(tmp_path / "a.tsv", table(wanted, "\t", quoting=quoting)))
    assert raw.train["title"].to_pylist() == wanted
    assert "a.tsv has line breaks, tabs or backslashes in titles (2, as 'duas linhas')" in raw.notes[0]


STRAY = {
    "never closed": '"Benfica vence,pt,\num,pt,\n',
    "closed in another row": '"Benfica vence,pt,\nDiz "sim",pt,\n',
    "text after it": '"Sim" diz ministro,pt,\n',
    "another way to escape": '"diz \\"sim\\" e sai",pt,\n',
}


@pytest.mark.parametrize("rows", STRAY.values(), ids=STRAY)
def test_a_stray_mark_in_csv_is_refused_with_its_line(tmp_path: Path, rows: str) -> None:
    path = write(tmp_path / "a.csv", f"title,language,requested_url\nPrimeiro,pt,\n{rows}Último,pt,\n")
    assert "a.csv opens a field with a quotation mark on line 3 and does not close it" in failure(path)


def test_rows_that_stray_marks_may_have_joined_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'title,language\num,pt\n"Benfica vence,pt\noutra,pt\nUm ecrã de 15",pt\n')
    report = load_headlines(DataConfig(source=str(path)), 1).report
    assert "in titles (1, as 'Benfica vence,pt outra,pt Um ecrã de 15'): look whether a stray" in report


def test_a_mark_inside_a_field_is_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'title,language\nUm ecrã de 15",pt\nDiz "sim" e sai,pt\n')
    assert titles(path) == ['Um ecrã de 15"', 'Diz "sim" e sai'] and read(path).notes == ()


# --- separators and encodings ---


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "jsonl", "json"])
def test_encodings_of_text_are_told(tmp_path: Path, suffix: str, encoding: str) -> None:
    wanted = ["Ação em São João", "sem acento"]
    rows = [{"title": title, "language": "pt"} for title in wanted]
    text = {
        "csv": table(wanted),
        "tsv": table(wanted, "\t"),
        "txt": "\n".join(wanted),
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": json.dumps(rows, ensure_ascii=False, indent=2),
    }[suffix]
    raw = read(write(tmp_path / f"a.{suffix}", text.encode(encoding)))
    assert raw.train["title"].to_pylist() == wanted
    assert (f"a.{suffix} is not UTF-8: read as {encoding}" in raw.notes) == (not encoding.startswith("utf-8"))


def test_an_accent_far_into_a_file_tells_its_encoding(tmp_path: Path) -> None:
    wanted = [*["nada de especial"] * 100_000, "ação"]
    assert titles(write(tmp_path / "a.csv", table(wanted).encode("cp1252"))) == wanted
    assert titles(write(tmp_path / "b.csv", table(wanted).encode())) == wanted


NO_TEXT = {
    "UTF-16 without its mark": table(["um"]).encode("utf-16-le"),
    "an archive": gzip.compress(table(["um"] * 99).encode()),
    "two encodings": table(["ação"]).encode() + "ação,pt,\n".encode("cp1252"),
}


@pytest.mark.parametrize("content", NO_TEXT.values(), ids=NO_TEXT)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "a.csv cannot be read (it is " in failure(write(tmp_path / "a.csv", content))


def test_the_separator_is_the_one_that_finds_the_title(tmp_path: Path) -> None:
    assert titles(write(tmp_path / "a.csv", "title;language;a,b,c,d\num, dois;pt;x\n")) == ["um, dois"]
    assert titles(write(tmp_path / "b.csv", "sep=;\r\ntitle;language\r\num, dois;pt\r\n")) == ["um, dois"]
    message = failure(write(tmp_path / "c.csv", "title^language\num^pt\n"))
    assert "no column 'title', 'language'; it has title^language" in message


@pytest.mark.parametrize(("separator", "name"), [("\t", "a.tsv"), (";", "a.csv"), (",", "a.csv")])
def test_a_table_in_plain_text_is_not_trained_on_as_one_column(tmp_path: Path, separator: str, name: str) -> None:
    path = write(tmp_path / "a.txt", table(["um"], separator))
    assert failure(path).endswith(f"is a table separated by {separator!r}, not a headline a line: name it {name}")


@pytest.mark.parametrize(("separator", "name"), [("\t", "a.tsv"), (";", "a.csv"), ("|", "a.csv")])
def test_nor_is_one_whose_columns_have_other_names(tmp_path: Path, separator: str, name: str) -> None:
    rows = [("manchete", "língua"), ("um, dois", "pt"), ("três", "pt")]
    path = write(tmp_path / "a.txt", "\n".join(map(separator.join, rows)) + "\n")
    assert failure(path).endswith(f"name it {name}")
    write(path, "Um; dois\nTrês | quatro\nCinco\tseis; sete\n")
    assert titles(path) == ["Um; dois", "Três | quatro", "Cinco\tseis; sete"]


# --- what is valid is read ---

LOOK_LIKE_OTHERS = "2024-05-01 2024-05-01T10:00:00Z 001 1e5 NaN null NULL True N/A #N/A 12:30".split()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_titles_that_look_like_dates_numbers_or_nothing_stay_text(tmp_path: Path, suffix: str) -> None:
    rows = [{"title": title, "language": "pt"} for title in LOOK_LIKE_OTHERS]
    text = {
        "csv": table(LOOK_LIKE_OTHERS),
        "tsv": table(LOOK_LIKE_OTHERS, "\t"),
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
    }[suffix]
    assert titles(write(tmp_path / f"a.{suffix}", text)) == LOOK_LIKE_OTHERS


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_columns_that_nobody_asked_for_may_hold_anything(tmp_path: Path, suffix: str) -> None:
    """Thirty thousand rows, then other types, a row of megabytes, and keys that were not there before."""
    rows: list[dict[str, Any]] = [{"title": f"t{i}", "language": "pt", "n": i, "x": 1} for i in range(30_000)]
    rows += [{"title": "fim", "language": "pt", "n": "muito", "x": "y" * 5_000_000}]
    if suffix in ("jsonl", "json"):
        rows += [
            {"language": "pt", "n": {"a": [1, "b", None]}},
            {"title": None, "language": "pt", "requested_url": "u"},
        ]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter="\t" if suffix == "tsv" else ",", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    lines = {"jsonl": "\n".join(map(json.dumps, rows)), "json": json.dumps(rows)}
    path = write(tmp_path / f"a.{suffix}", lines.get(suffix, text.getvalue()))
    assert titles(path) == [row.get("title") for row in rows]
    assert ("u" in read(path).train["url"].to_pylist()) == (suffix in lines)  # a column that appears late


def test_json_nested_without_end_is_refused(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert "cannot be read" in failure(write(tmp_path / "a.jsonl", f'{{"title": "um", "language": "pt", "x": {deep}}}'))


def test_titles_that_are_null_are_counted(tmp_path: Path) -> None:
    rows = [{"title": title, "language": "pt"} for title in ["um", None, "dois", None]]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, [*rows, {"language": "pt"}])))
    assert "from 5 rows; dropped: 3 without a title" in load_headlines(DataConfig(source=str(path)), 1).report


def test_columns_of_one_name_matter_only_where_they_are_wanted(tmp_path: Path) -> None:
    assert titles(write(tmp_path / "a.csv", "title,x,language,x,\num,1,pt,2,3\n")) == ["um"]
    assert "multiple columns named language" in failure(
        write(tmp_path / "b.csv", "title,language,language\num,pt,en\n")
    )


# --- folders ---


def test_compressed_files_and_folders_inside_are_read_and_the_rest_is_named(tmp_path: Path) -> None:
    """600 rows, of which 200 lie plainly there."""
    rows = [f"título {i}" for i in range(600)]
    write(tmp_path / "a.csv", table(rows[:200]))
    write(tmp_path / "b.csv.gz", gzip.compress(table(rows[200:400]).encode()))
    write(
        tmp_path / "mais" / "2016" / "c.jsonl",
        "\n".join(json.dumps({"title": t, "language": "pt"}) for t in rows[400:]),
    )
    for name in (
        "README.txt",
        "LICENSE-CC.TXT",
        "leia-me.txt",
        "mais/NOTAS.txt",
        "x.xlsx",
        "y.csv.xz",
        "z.parquet.gz",
        "sem",
    ):
        write(tmp_path / name, "nada")
    (tmp_path / "mais" / "volta").symlink_to(tmp_path)
    (tmp_path / "nenhures.csv").symlink_to(tmp_path / "não existe")
    write(tmp_path / ".git" / "a.csv", "nada")
    report = load_headlines(DataConfig(source=str(tmp_path)), 1).report
    assert " from 600 rows; " in report and "dropped" not in report
    assert report.split("; ")[1:] == [
        "left out: .git (hidden)",
        "left out: LICENSE-CC.TXT, README.txt, leia-me.txt, mais/NOTAS.txt (describes the data)",
        "left out: mais/volta (a link to a folder that it is in)",
        "left out: nenhures.csv (no regular file, or a link to nothing)",
        "left out: sem (a name without a suffix is not read)",
        "left out: x.xlsx (.xlsx is not read)",
        "left out: y.csv.xz (.xz is not read)",
        "left out: z.parquet.gz (.gz is not read)",
    ]


@pytest.mark.parametrize("compression", ["gz", "bz2", "zst", "lz4"])
def test_every_compression_gives_the_same_titles(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.csv.{compression}"
    with pa.output_stream(str(path)) as file:
        file.write(table(["um", "dois"]).encode("utf-16"))
    assert titles(path) == ["um", "dois"]
    write(path, path.read_bytes()[:-12])
    assert "cannot be read (" in failure(path)


def test_many_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", table(["um"]))
    for i in range(20):
        write(tmp_path / f"{i:02}.png", b"")
    names = ", ".join(f"{i:02}.png" for i in range(8))
    assert read(tmp_path).notes == (f"left out: {names} and 12 more (.png is not read)",)


@pytest.mark.parametrize(
    "names", [("train/a.csv", "test/a.csv"), ("data/train-0.csv", "data/test-0.csv"), ("a.csv", "test.csv")]
)
def test_names_of_files_and_folders_say_the_split(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, title in zip(names, ("treino", "à parte"), strict=True):
        write(tmp_path / name, table([title]))
    raw = read(tmp_path)
    assert raw.validation is not None and raw.notes == ()
    assert [part["title"].to_pylist() for part in (raw.train, raw.validation)] == [["treino"], ["à parte"]]


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path) -> None:
    for name in ("README.txt", ".hidden.txt", "_test.txt"):
        assert titles(write(tmp_path / name, "um\ndois")) == ["um", "dois"]


@pytest.mark.parametrize("name", ["state_news.txt", "noticias.txt", "notes-2016.txt", "licensing.txt"])
def test_names_that_only_look_like_descriptions_are_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "um\ndois")
    write(tmp_path / "license.txt", "fora")
    raw = read(tmp_path)
    assert raw.train["title"].to_pylist() == ["um", "dois"]
    assert raw.notes[0] == "left out: license.txt (describes the data)"


# --- random dialects: the same titles, a doubt in the notes, or one clear line ---

LETTERS = st.text(st.sampled_from('ab çé""\'\\;,|\t\n\r'), max_size=6)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"])
DIALECTS = st.fixed_dictionaries(
    {
        "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE]),
        "doublequote": st.booleans(),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(LETTERS, min_size=1, max_size=5),
    dialect=DIALECTS,
    encoding=ENCODINGS,
    separator=st.sampled_from(",;\t|"),
    suffix=st.sampled_from(["csv", "tsv"]),
)
def test_tables_of_any_dialect(
    rows: list[str], dialect: dict[str, Any], encoding: str, separator: str, suffix: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    assume(suffix == "csv" or separator == "\t")
    path = tmp_path_factory.mktemp("dialect") / f"a.{suffix}"
    standard = dialect["doublequote"] and dialect["quoting"] != csv.QUOTE_NONE
    dialect |= {"delimiter": separator, "escapechar": None if standard else "\\"}
    text = table(rows, **dialect)
    again = list(csv.reader(io.StringIO(text, newline=""), **dialect))
    assume(again[1:] == [[title, *ROW] for title in rows])  # before Python 3.13 a lone \r was not quoted
    write(path, text.encode(encoding))
    try:
        raw = read(path)
    except FaiscaError as error:
        assert not (standard and suffix == "csv") and "\n" not in str(error) and "a." in str(error)
        return
    doubt = any("has line breaks" in note or "has quotation marks" in note for note in raw.notes)
    assert raw.train["title"].to_pylist() == rows or (doubt and not (standard and suffix == "csv"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
OBJECTS = st.dictionaries(st.sampled_from(["n", "título", "", "url"]), VALUES, max_size=3)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(OBJECTS, st.none() | TEXT, st.booleans()), min_size=1, max_size=5),
    ascii=st.booleans(),
    suffix=st.sampled_from(["jsonl", "json"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_json_of_any_kind(
    rows: list[tuple[dict[str, Any], str | None, bool]], ascii: bool, suffix: str, encoding: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    first = {"title": "um", "language": "pt"}
    objects = [first, *({**others, **({"title": title} if named else {})} for others, title, named in rows)]
    if suffix == "json":
        text = json.dumps(objects, ensure_ascii=ascii, indent=1)
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in objects)
    path = write(tmp_path_factory.mktemp("json") / f"a.{suffix}", text.encode(encoding))
    assert titles(path) == [row.get("title") for row in objects]


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.text(st.sampled_from("ab é\"',;\\"), max_size=6), max_size=5), encoding=ENCODINGS)
def test_plain_tsv_is_read_letter_by_letter(
    rows: list[str], encoding: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wanted = ['"aberto', *rows]
    lines = ["title\tlanguage", *(f"{title}\tpt" for title in wanted)]
    path = write(tmp_path_factory.mktemp("tsv") / "a.tsv", "\n".join(lines).encode(encoding))
    assert titles(path) == wanted


def test_parquet_is_read_whatever_else_it_holds(tmp_path: Path) -> None:
    columns = {"title": ["2024-05-01", None], "language": ["pt", "pt"], "x": [{"a": [1]}, None]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert titles(tmp_path / "a.parquet") == ["2024-05-01", None]
