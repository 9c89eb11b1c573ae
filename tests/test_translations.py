"""The Portuguese documents are in step with the English ones, and a change of either is seen."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("translations", ROOT / "tools" / "translations.py")
translations = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = translations  # where dataclasses look for it
spec.loader.exec_module(translations)
PAIRS = list(translations.PAIRS.items())

BRAZILIAN = """você vocês arquivo arquivos tela usuário usuários treinamento mouse deletar salvar baixar time registro
celular aplicativo contato fato econômico acadêmico planejar gerenciar"""
"""words that European Portuguese says otherwise"""


@pytest.mark.parametrize(("original", "translation"), PAIRS)
def test_the_translation_is_in_step(original, translation):
    said = translations.differences(original, translation)
    assert said == [], "translate, then run: python tools/translations.py --update"


@pytest.mark.parametrize("translation", [translation for _, translation in PAIRS])
def test_it_is_european_portuguese(translation):
    prose = re.sub(r"^```.*?^```$|`[^`]*`", "", (ROOT / translation).read_text(), flags=re.DOTALL | re.MULTILINE)
    words = re.findall(r"\w+", prose.lower())
    assert set(BRAZILIAN.split()) & set(words) == set()
    assert {"não", "é", "de"} <= set(words), "is it Portuguese at all?"
    assert [line for line in prose.splitlines() if len(line) > 140 and not line.startswith(("|", "!"))] == []


@pytest.mark.parametrize("name", [name for pair in PAIRS for name in pair])
def test_links_lead_somewhere(name):
    """Files that exist, and headings by GitHub's rule for their anchors."""
    prose = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\[[^\]]*\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", prose)
    assert found
    for path, anchor in found:
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        headings = [section.heading for section in translations.sections(target.read_text())] if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{path}#{anchor}"


# --- the mechanism: each kind of change is seen ---------------------------------------------------

ENGLISH = """# Spark

See [the guide](guide.md) and ![a chart](run.png).

## Use it

<!-- tested -->
```bash
# no heading
faisca run
```

| a | b |
| --- | --- |
| 1 | 2 |
"""
PORTUGUESE = ENGLISH.replace("Spark\n", "Faísca\n<!-- from new -->\n").replace("Use it\n", "Usar\n<!-- from new -->\n")
PORTUGUESE = PORTUGUESE.replace("See", "Ver").replace("guide.md", "../guide.md").replace("run.png", "../run.png")
PAIR = ("en.md", "pt/pt.md")


@pytest.fixture
def pair(tmp_path):
    """A folder with a document and a translation that is in step."""
    (tmp_path / "pt").mkdir()
    (tmp_path / PAIR[0]).write_text(ENGLISH)
    (tmp_path / PAIR[1]).write_text(PORTUGUESE)
    assert len(translations.differences(*PAIR, tmp_path)) == 2
    translations.update(*PAIR, tmp_path)
    assert translations.differences(*PAIR, tmp_path) == []
    return tmp_path


def test_notes_stand_once_whenever_they_are_made(pair):
    before = (pair / PAIR[1]).read_text()
    translations.update(*PAIR, pair)
    assert (pair / PAIR[1]).read_text() == before and before.count("<!-- from ") == 2
    assert translations.NOTE.sub("<!-- from new -->", before) == PORTUGUESE


def test_a_change_of_the_original_names_its_section(pair):
    (pair / PAIR[0]).write_text(ENGLISH.replace("| a | b |", "| a | c |"))
    assert translations.differences(*PAIR, pair) == [
        "pt/pt.md: '## Use it' of en.md has changed since it became '## Usar'"
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("faisca run", "faisca plan", "'## Usar' has other code blocks"),
        ("# no heading", "# um comentário", "'## Usar' has other code blocks"),
        ("<!-- tested -->", "", "'## Usar' has other marks"),
        ("](../guide.md)", "](guide.md)", "'# Faísca' has other links"),
        ("run.png", "walk.png", "'# Faísca' has other pictures"),
        ("| a | b |", "| a |", "'## Usar' has other columns of tables"),
        ("| --- | --- |\n", "", "'## Usar' has other columns of tables"),
        ("| 1 | 2 |", "| 1 | 2,5 |", "'## Usar' has other numbers in tables"),
        ("## Usar", "### Usar", "its headings are not those of en.md"),
        ("## Usar\n", "", "its headings are not those of en.md"),
    ],
)
def test_a_change_of_the_translation_is_seen(pair, old, new, said):
    text = (pair / PAIR[1]).read_text()
    assert text.count(old) == 1
    (pair / PAIR[1]).write_text(text.replace(old, new))
    (line,) = translations.differences(*PAIR, pair)
    assert line.startswith("pt/pt.md: ") and said in line


def test_a_link_to_a_translation_counts_as_one_to_its_original():
    assert translations.targets(r"\[", "[a](README.md) [b](../python.md#x) [c](https://a.b/)", "docs/pt") == [
        "README.md",
        "docs/python.md",
        "https://a.b/",
    ]
