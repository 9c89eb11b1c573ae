"""Loading, filtering and cleaning of headlines, most of it on data that go wrong."""

import csv
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faisca import streams
from faisca.config import DataConfig, TrainConfig
from faisca.data.headlines import SEPARATORS, Headlines, load_headlines, normalise, stage_titles, text_buffers
from faisca.data.sample import sample_headlines
from faisca.errors import FaiscaError


def load(source: Path | str, seed: int = 1, **options: Any) -> Headlines:
    return load_headlines(DataConfig(source=str(source), **options), seed)


def rows(*titles: str | None, language: str | None = "pt", url: str | None = "https://a.pt/x") -> pa.Table:
    return pa.table(
        {
            "title": pa.array(titles, pa.string()),
            "language": pa.array([language] * len(titles), pa.string()),
            "requested_url": pa.array([url] * len(titles), pa.string()),
        }
    )


def save(path: Path, table: pa.Table) -> Path:
    pyarrow.parquet.write_table(table, path)
    return path


def titles(table: pa.Table) -> list[str]:
    return table["title"].to_pylist()


def splits(folder: Path, train: pa.Table, validation: pa.Table) -> Path:
    save(folder / "train.parquet", train)
    save(folder / "test.parquet", validation)
    return folder


def failure(source: Path | str, **options: Any) -> str:
    with pytest.raises(FaiscaError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


# --- cleaning ---


def test_every_flaw_is_repaired_or_counted(tmp_path: Path) -> None:
    train = pa.concat_tables(
        [
            rows(
                "  Chuva  no\u00a0\tNorte ",
                "Chuva no Norte",
                "A\x00B",
                "ac\u0327a\u0303o",
                "Golo 👩‍👩‍👧 hoje",
            ),
            rows("Sem endereço", url=None),
            rows("Rain in the north", language="en"),
            rows("Língua?", language=None),
            rows(None, "", " \r\n\u2028", "x" * 41, "x" * 40, "Na validação"),
        ]
    )
    headlines = load(splits(tmp_path, train, rows("Na  validação", "Outra", "Outra")), max_title_characters=40)
    assert titles(headlines.train) == [
        "Chuva no Norte", "A B", "ação", "Golo 👩‍👩‍👧 hoje", "Sem endereço", "x" * 40,
    ]  # fmt: skip
    assert headlines.train["url"].to_pylist() == ["https://a.pt/x"] * 4 + ["", "https://a.pt/x"]
    assert titles(headlines.validation) == ["Na validação", "Outra"]
    assert headlines.report == (
        "6 training and 2 validation titles from 14 training and 3 validation rows; dropped: 2 in another "
        "language, 1 without a title, 2 empty, 1 longer than 40 characters, 2 repeated, 1 also in validation"
    )
    assert headlines.columns == ("title", "language", "requested_url")


def test_clean_data_are_reported_without_drops(tmp_path: Path) -> None:
    report = load(splits(tmp_path, rows("a", "b"), rows("c"))).report
    assert report == "2 training and 1 validation titles from 2 training and 1 validation rows"


def test_many_titles_keep_their_order_and_their_first_address(tmp_path: Path) -> None:
    train = pa.concat_tables([numbered(150_000), rows("Título número 7", url="later"), numbered(50_000)])
    headlines = load(splits(tmp_path, train, rows("x")))
    assert titles(headlines.train) == titles(numbered(150_000))
    assert "later" not in set(headlines.train["url"].to_pylist())


KNOWN_CHARACTERS = st.characters(exclude_categories=("Cs", "Cn", "Co"))


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.none() | st.text(KNOWN_CHARACTERS | st.sampled_from(" \x00\t\u0301é"), max_size=12)))
def test_cleaning_is_what_plain_python_does(texts: list[str | None], tmp_path_factory: pytest.TempPathFactory) -> None:
    def separator(character: str) -> bool:
        return unicodedata.category(character) in ("Cc", "Zs", "Zl", "Zp")

    spaced = ["".join(" " if separator(c) else c for c in text) for text in texts if text is not None]
    cleaned = [unicodedata.normalize("NFC", " ".join(text.split(" ")).strip()) for text in spaced]
    expected = [text for text in dict.fromkeys(re.sub(" +", " ", text) for text in cleaned) if 0 < len(text) <= 9]
    folder = splits(tmp_path_factory.mktemp("clean"), rows("certo 1", *texts), rows("certo 2"))
    kept = titles(load(folder, max_title_characters=9).train)
    assert kept == ["certo 1", *(text for text in expected if text not in ("certo 1", "certo 2"))]


FLAWS: tuple[Callable[[str], str], ...] = (
    lambda title: title.replace(" ", "  ", 1),
    lambda title: title.replace(" ", "\u00a0\t"),
    lambda title: unicodedata.normalize("NFD", title),
    lambda title: f"\u2028 {title}\x00",
    lambda title: title * 20,
    lambda title: "",
)


def test_thousands_of_spoilt_headlines_are_cleaned_as_plain_python_does(tmp_path: Path) -> None:
    """The embedded corpus with a flaw in every third title, and titles that repeat because of it."""

    def spoil(table: pa.Table) -> pa.Table:
        texts = titles(table)
        spoilt = [FLAWS[i % len(FLAWS)](text) for i, text in enumerate(texts[::3])]
        return pa.concat_tables([rows(*texts), rows(*spoilt)])

    def plain(table: pa.Table) -> list[str]:
        texts = (re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text) for text in titles(table))
        cleaned = dict.fromkeys(unicodedata.normalize("NFC", text).strip() for text in texts)
        return [text for text in cleaned if text and len(text) <= 1000]

    train, validation = map(spoil, sample_headlines())
    headlines, kept = load(splits(tmp_path, train, validation)), plain(validation)
    assert titles(headlines.validation) == kept and 1000 < len(kept) < validation.num_rows
    seen = set(kept)
    assert titles(headlines.train) == [text for text in plain(train) if text not in seen]


# --- sources ---


def test_the_embedded_sample_has_two_splits_that_share_no_title() -> None:
    headlines = load("sample")
    assert headlines.train.num_rows > 1000 and headlines.validation.num_rows > 100
    assert not set(titles(headlines.train)) & set(titles(headlines.validation))
    assert headlines.train.schema.names == ["title", "url"]


def save_as(suffix: str, path: Path, table: pa.Table) -> None:
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), "utf-8")
    else:
        delimiter = "\t" if suffix == "tsv" else ","
        pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter=delimiter))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_file_formats_give_the_same_headlines(tmp_path: Path, suffix: str) -> None:
    awkward = rows('Diz "sim", e sai', "duas\nlinhas", "2016", "null", "vírgula, ponto; 😀", "007")
    save_as(suffix, tmp_path / f"Train-00.{suffix}", awkward)
    save_as(suffix, tmp_path / f"Train-01.{suffix}", rows("mais"))
    save_as(suffix, tmp_path / f"validation.{suffix}", rows("à parte"))
    headlines = load(tmp_path)
    assert titles(headlines.train) == [
        'Diz "sim", e sai', "duas linhas", "2016", "null", "vírgula, ponto; 😀", "007", "mais",
    ]  # fmt: skip
    assert titles(headlines.validation) == ["à parte"]
    assert headlines.train["url"].to_pylist() == ["https://a.pt/x"] * 7


def test_line_breaks_inside_quotes_survive_a_large_file(tmp_path: Path) -> None:
    wanted = [f"Título\nnúmero {i}" for i in range(160_000)]  # several of Arrow's blocks
    save_as("csv", tmp_path / "train.csv", rows(*wanted))
    save_as("csv", tmp_path / "test.csv", rows("x"))
    assert titles(load(tmp_path).train) == [title.replace("\n", " ") for title in wanted]


def test_plain_text_has_a_headline_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffPrimeiro\r\n\r\nSegundo 😀\nTerceiro\n".encode())
    headlines = load(tmp_path / "a.txt", validation_share=0.0)
    assert sorted(titles(headlines.train) + titles(headlines.validation)) == [
        "Primeiro",
        "Segundo 😀",
        "Terceiro",
    ]
    assert headlines.report == (
        "2 training and 1 held-out validation titles from 4 rows; dropped: 1 empty; "
        "a.txt is plain text, taken to be in language 'pt'"
    )


def test_a_spreadsheet_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes("\ufefftitle,language\r\nPrimeiro,pt\r\nSegundo,pt\r\n".encode())
    save(tmp_path / "test.parquet", rows("x"))
    assert titles(load(tmp_path).train) == ["Primeiro", "Segundo"]


AWKWARD = ('Diz "sim", e sai', "ação; São João", "duas palavras")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_spreadsheets_of_other_countries_are_read(tmp_path: Path, encoding: str, separator: str) -> None:
    with (tmp_path / "train.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows(
            [("title", "language", "requested_url"), *((title, "pt", "https://a.pt/x") for title in AWKWARD)]
        )
    save(tmp_path / "test.parquet", rows("x"))
    headlines = load(tmp_path)
    assert titles(headlines.train) == list(AWKWARD)
    assert ("train.csv is separated by" in headlines.report) == (separator != ",")
    assert (f"not UTF-8: read as {encoding}" in headlines.report) == (encoding in ("cp1252", "utf-16"))


def test_text_of_older_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes("ação\nSão João\n".encode("cp1252"))
    save(tmp_path / "test.parquet", rows("x"))
    assert titles(load(tmp_path).train) == ["ação", "São João"]


@pytest.mark.parametrize("lines", [False, True])
def test_json_may_be_an_array_or_lines(tmp_path: Path, lines: bool) -> None:
    table = rows(*(f"Notícia {i}" for i in range(50))).to_pylist()
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, table)) if lines else json.dumps(table, indent=1))
    assert load(tmp_path).train.num_rows + load(tmp_path).validation.num_rows == 50
    save(tmp_path / "b.parquet", rows(*"abcdefgh"))  # now the JSON describes it
    assert load(tmp_path).train.num_rows < 8


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_text_may_be_of_any_arrow_kind(tmp_path: Path, kind: pa.DataType) -> None:
    table = rows("um", None, "dois")
    folder = splits(tmp_path, table.set_column(0, "title", table["title"].cast(kind)), rows("x"))
    assert titles(load(folder).train) == ["um", "dois"]


def test_columns_may_have_other_names_and_no_language(tmp_path: Path) -> None:
    table = pa.table({"headline": ["um", "dois"], "n": [1, 2], "link": ["u", None]})
    folder = splits(tmp_path, table, pa.table({"headline": ["x"], "n": [1], "link": ["v"]}))
    headlines = load(folder, title_column="headline", url_column="link", language="")
    assert titles(headlines.train) == ["um", "dois"] and headlines.train["url"].to_pylist() == ["u", ""]


def test_all_that_a_folder_has_beside_its_headlines_is_named(tmp_path: Path) -> None:
    splits(tmp_path, rows("um"), rows("x"))
    save(tmp_path / "extra.parquet", rows("fora"))
    for name in ("notes.md", "a.json", "._train.parquet", ".hidden.csv", "_SUCCESS.txt"):
        (tmp_path / name).write_text("nada")
    headlines = load(tmp_path)
    assert titles(headlines.train) == ["um"]
    assert headlines.report.split("; ")[1:] == [
        "left out: ._train.parquet, .hidden.csv, _SUCCESS.txt (hidden)",
        "left out: notes.md (.md is not read)",
        "left out: a.json (JSON beside other files describes them)",
        "left out: extra.parquet (neither train, test nor valid by its name)",
    ]


def hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Any]) -> None:
    monkeypatch.setattr(datasets, "load_dataset", answer)


def test_the_hub_is_read_by_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(name: str) -> datasets.DatasetDict:
        asked.append(name)
        parts = {"train": rows("um", "dois", "x"), "test": rows("x")}
        return datasets.DatasetDict({name: datasets.Dataset(table) for name, table in parts.items()})

    hub(monkeypatch, answer)
    headlines = load("hub")
    assert titles(headlines.train) == ["um", "dois"] and titles(headlines.validation) == ["x"]
    load("hub:someone/news.2")
    assert asked == ["duarteocarmo/ccnews-titles-2016", "someone/news.2"]


def test_an_unreachable_hub_names_the_offline_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(name: str) -> None:
        raise ConnectionError(f"Couldn't reach {name}\nTraceback and more")

    hub(monkeypatch, answer)
    message = failure("hub")
    assert "duarteocarmo/ccnews-titles-2016" in message and "Couldn't reach" in message
    assert "--data sample" in message and "--data PATH" in message


@pytest.mark.parametrize("name", ["", "squad", "../x/y", "a/b/c", "a b/c"])
def test_names_that_the_hub_cannot_have(name: str) -> None:
    assert failure(f"hub:{name}").endswith("write hub:OWNER/NAME")


# --- bad input: one clear line each ---

BAD_FILES = {
    "empty.csv": (b"", "Empty CSV"),
    "ragged.csv": (b"title,language\num,pt\ndois\n", "Expected 2 columns, got 1"),
    "unclosed.csv": (b'title,language\n"um,pt\ndois,pt\n', "opens a field with a quotation mark on line 2"),
    "damaged.csv": ("title,language\nação,pt\n".encode() + b"a\xe7\xe3o,pt\n", "neither UTF-8"),
    "twice.csv": (b"title,title,language\na,b,pt\n", "multiple columns named title"),
    "damaged.txt": ("ação\n".encode() + b"a\xe7\xe3o\n", "neither UTF-8"),
    "damaged.json": (b'[{"title": "um"', "cannot be read"),
    "object.json": (b'{"data": [{"title": "um"}]}', "no column 'title', 'language'; it has data"),
    "corrupt.parquet": (b"PAR1 nonsense PAR1", "cannot be read"),
    "text.parquet": (b"title\num\n", "not a parquet file"),
    "broken.jsonl": (b'{"title": "um", "language"\n', "JSON parse error"),
    "array.jsonl": (b'[{"title": "um", "language": "pt"}]\n', "changed from object to array"),
    "mixed.jsonl": (
        b'{"title": "um", "language": "pt"}\n{"title": 2, "language": "pt"}\n',
        "no text but number",
    ),
    "surrogate.jsonl": (b'{"title": "\\ud83d x", "language": "pt"}\n', "surrogate"),
    "empty.jsonl": (b"", "Empty JSON"),
    "nested.jsonl": (b'{"title": {"pt": "um"}, "language": "pt"}\n', "no text but object"),
    "numbers.jsonl": (b'{"title": 3, "language": "pt"}\n', "no text but number"),
    "header.csv": (b"title,language\n", "no training title is left"),
    "empty.txt": (b"", "no training title is left"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, name: str) -> None:
    content, complaint = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    message = failure(tmp_path / name)
    assert name in message and complaint in message


def test_a_truncated_parquet_file_is_one_clear_line(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", rows(*(f"título {i}" for i in range(1000))))
    content = bytearray(path.read_bytes())
    content[10:200] = bytes(190)
    path.write_bytes(content)
    assert failure(path).startswith("a.parquet cannot be read (")


def test_bytes_that_are_no_text_inside_parquet_are_found(tmp_path: Path) -> None:
    table = rows("um", "dois")
    wrong = pa.array([b"a\xff", b"dois"]).view(pa.string())
    assert "Invalid UTF8" in failure(save(tmp_path / "a.parquet", table.set_column(0, "title", wrong)))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    for source in ("missing.csv", "~nobody-here/x.csv", "a" * 300, "sampel"):
        assert "does not exist" in failure(source) or "too long" in failure(source)
    for source in (tmp_path / "empty", tmp_path / "a.xlsx", tmp_path):
        assert "has no headlines" in failure(source)
        assert failure(source).endswith(
            ": use files in .parquet, .csv, .tsv, .jsonl, .txt, .json, text also compressed (.gz, .bz2, .zst, .lz4)"
        )
    assert "; left out: a.xlsx (.xlsx is not read): use" in failure(tmp_path)


def test_missing_columns_are_answered_with_those_that_exist(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", pa.table({"titulo": ["um"], "lang": ["pt"]}))
    assert failure(path) == (
        "a.parquet has no column 'title', 'language'; it has titulo, lang: give --data.title-column NAME, "
        '--data.language-column NAME (or --data.language "" keeps every language)'
    )
    with pytest.raises(
        FaiscaError, match=r"'title', 'language', 'requested_url'; .*--sft.url-contains \"\", now '.pt/',"
    ):
        load_headlines(DataConfig(source=str(path)), 1, {"sft": ".pt/"})
    message = failure(path, title_column="titulo")
    assert "no column 'language'" in message and "--data.language-column" in message and '--data.language ""' in message


def test_a_language_that_does_not_occur_is_answered_with_those_that_do(tmp_path: Path) -> None:
    table = pa.concat_tables([rows("a", "b", "c", language="en"), rows("d", language="pt")])
    message = failure(splits(tmp_path, table, rows("x")), language="português")
    assert "no training title" in message and "'português'" in message and message.endswith("(en, pt)")
    assert failure(splits(tmp_path, rows("d"), table.slice(0, 3))).startswith("no validation title")
    assert failure(splits(tmp_path, rows("d", language=None), rows("x"))).endswith("(none)")


def test_no_title_left_says_what_dropped_them(tmp_path: Path) -> None:
    message = failure(splits(tmp_path, rows("x", "", None), rows("x")))
    assert "no training title is left" in message and "1 also in validation" in message
    assert "no training title is left" in failure(save(tmp_path / "one.parquet", rows("sozinho")))


# --- hold-out ---


def numbered(count: int) -> pa.Table:
    return rows(*(f"Título número {i}" for i in range(count)))


def test_the_hold_out_is_a_share_that_seed_and_title_alone_decide(tmp_path: Path) -> None:
    small, large = (
        save(tmp_path / "s.parquet", numbered(2000)),
        save(tmp_path / "l.parquet", numbered(20_000)),
    )
    held_out = set(titles(load(large).validation))
    assert abs(len(held_out) - 1000) < 150
    assert set(titles(load(small).validation)) == held_out & {f"Título número {i}" for i in range(2000)}
    assert set(titles(load(large, seed=2).validation)) != held_out
    assert len(titles(load(large).train)) == 20_000 - len(held_out)
    assert abs(len(titles(load(large, validation_share=0.5).validation)) - 10_000) < 500


def test_at_least_one_title_is_held_out(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", rows("um", "dois", "três", "dois"))
    headlines = load(path, validation_share=0.0)
    assert headlines.validation.num_rows == 1 and headlines.train.num_rows == 2
    assert headlines.report == "2 training and 1 held-out validation titles from 4 rows; dropped: 1 repeated"


# --- stages ---


@pytest.fixture
def by_address() -> Headlines:
    train = pa.table({"title": [f"t{i}" for i in range(20)], "url": ["https://a.pt/", "https://b.br/"] * 10})
    validation = pa.table({"title": [f"v{i}" for i in range(6)], "url": ["https://a.pt/"] * 6})
    return Headlines(train, validation, "")


def test_a_stage_filters_then_cuts_then_shuffles(by_address: Headlines) -> None:
    config = TrainConfig(url_contains=".pt/", max_titles=8, max_validation_titles=4)
    train, validation = stage_titles(by_address, config, seed=3, stage="sft")
    order = streams.permutation(3, "order of sft titles", 8)
    assert train.to_pylist() == [f"t{2 * i}" for i in order]
    assert validation.to_pylist() == ["v0", "v1", "v2", "v3"]


def test_a_stage_takes_all_titles_unless_told_otherwise(by_address: Headlines) -> None:
    train, validation = stage_titles(by_address, TrainConfig(), seed=3, stage="pretrain")
    assert sorted(train.to_pylist()) == sorted(titles(by_address.train)) and len(validation) == 6
    again, _ = stage_titles(by_address, TrainConfig(), seed=3, stage="pretrain")
    other, _ = stage_titles(by_address, TrainConfig(), seed=3, stage="sft")
    assert train.equals(again) and not train.equals(other)


def test_an_address_filter_that_nothing_passes(by_address: Headlines, tmp_path: Path) -> None:
    with pytest.raises(
        FaiscaError, match=r"sft.url_contains '.es/' is in no address of the training titles: --sft.url-con"
    ):
        stage_titles(by_address, TrainConfig(url_contains=".es/"), seed=1, stage="sft")
    with pytest.raises(FaiscaError, match="in no address of the validation titles"):  # of the validation titles alone
        stage_titles(by_address, TrainConfig(url_contains=".br/"), seed=1, stage="sft")
    plain = load(splits(tmp_path, rows("um").drop_columns("requested_url"), rows("x")))
    with pytest.raises(FaiscaError, match=r"needs addresses.*--data.url-column \(among title, language\)"):
        stage_titles(plain, TrainConfig(url_contains=".pt/"), seed=1, stage="sft")
    (tmp_path / "a.txt").write_text("\n".join("abcdefghijkl"))
    with pytest.raises(
        FaiscaError, match=r"needs addresses, and plain text has none: --sft.url-contains \"\" takes all"
    ):
        stage_titles(load(tmp_path / "a.txt"), TrainConfig(url_contains=".pt/"), seed=1, stage="sft")


def test_a_language_and_an_address_that_do_not_occur_are_named_together(tmp_path: Path) -> None:
    folder = splits(tmp_path, rows("a", language="es", url="https://x.es/1"), rows("x", language="es"))
    with pytest.raises(
        FaiscaError, match=r"among those that occur \(es\); no address contains '.pt/' either: --sft.url-con"
    ):
        load_headlines(DataConfig(source=str(folder)), 1, {"sft": ".pt/"})


def test_text_buffers_do_not_see_how_an_array_was_cut() -> None:
    texts = ["um", "", "três 😀", "4"]
    for array in (pa.array(texts), pa.array(["fora", *texts, "fora"])[1:5]):
        data, starts = text_buffers(array)
        assert data.tobytes() == "".join(texts).encode() and starts.tolist() == [0, 2, 2, 12, 13]
    assert [part.tolist() for part in text_buffers(pa.array([], pa.string()))] == [[], [0]]
    assert np.array_equal(text_buffers(pa.array(texts)[4:])[1], [0])


def test_every_character_is_normalised_though_most_titles_are_left_alone() -> None:
    characters = [chr(code) for code in range(0x11_0000) if not 0xD800 <= code < 0xE000]
    titles = pa.chunked_array([[f" a{one}b  c{one} {one}d e\u0301" for one in characters]])
    slowly = pc.utf8_normalize(pc.replace_substring_regex(titles, SEPARATORS, " "), form="NFC")
    assert normalise(titles).equals(pc.utf8_trim_whitespace(slowly))
    plain = pa.chunked_array([[f"a{one}b" for one in characters]])
    slowly = pc.utf8_normalize(pc.replace_substring_regex(plain, SEPARATORS, " "), form="NFC")
    assert normalise(plain).equals(pc.utf8_trim_whitespace(slowly))
