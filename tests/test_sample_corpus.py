"""The embedded corpus: what it promises to runs and tests, and the grammar that writes it."""

import hashlib
import re

import numpy as np
import pyarrow as pa
import pytest

from faisca.data.sample import HOSTS, SUBJECTS, sample_headlines
from faisca.data.sample.grammar import FORMS, SLOT, Grammar, read_sections
from faisca.rewards.built_in import football, share, words

EUROPEAN_ONLY = """
autocarro autocarros comboio comboios equipa telemóvel telemóveis golo golos factos contacto ecrã ecrãs treinador
camião camiões camionista autarca autarquia utente utentes utilizadores deteta receção ténis prémio bebé académico
económico eletrónico polémica oxigénio cancro sismo desalojados talho portagens propinas adeptos relvado penálti
camisola jornada moscovo irão polónia roménia portugueses euros gasóleo cimeira nato trotineta condutor aplicação
ficheiros investigadores antónio jerónimo mónica coimbra braga alentejo gnr psp inem
""".split()
BRAZILIAN_ONLY = """
ônibus trem trens time celular celulares gol gols fatos contato tela telas técnico goleiro caminhão caminhões
caminhoneiros prefeito prefeitura usuários registra detecta recepção tênis prêmio bebê acadêmico econômico
polêmica câncer infarto terremoto desabrigados açougue pedágio réu golpe torcida gramado pênalti rodada moscou irã
polônia romênia brasileiros reais diesel cúpula otan patinete pedestre aplicativo senha pesquisadores antônio
jerônimo mônica recife curitiba paraná pm samu icms
""".split()


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    return sample_headlines()


@pytest.fixture(scope="module")
def titles(tables: tuple[pa.Table, pa.Table]) -> dict[str, list[str]]:
    """Titles by variant, told apart as a run does: by what the address contains."""
    rows = pa.concat_tables(tables).to_pylist()
    ends = {"european": ".pt/", "brazilian": ".com.br/"}
    return {variant: [row["title"] for row in rows if end in row["requested_url"]] for variant, end in ends.items()}


def digest(table: pa.Table) -> str:
    return hashlib.sha256("\n".join(table["title"].to_pylist()).encode()).hexdigest()


def test_the_tables_have_the_columns_and_sizes_that_runs_count_on(tables: tuple[pa.Table, pa.Table]) -> None:
    train, validation = tables
    for table in tables:
        assert table.column_names == ["title", "language", "requested_url"]
        assert all(field.type == pa.string() for field in table.schema)
        assert all(column.null_count == 0 for column in table.columns)
        assert set(table["language"].to_pylist()) == {"pt"}
    assert 20_000 <= train.num_rows <= 25_000
    assert 1_300 <= validation.num_rows <= 1_700


def test_titles_are_distinct_and_none_is_in_both_tables(tables: tuple[pa.Table, pa.Table]) -> None:
    train, validation = (table["title"].to_pylist() for table in tables)
    assert len(set(train)) == len(train)
    assert len(set(validation)) == len(validation)
    assert set(train).isdisjoint(validation)


def test_the_corpus_is_always_the_same(tables: tuple[pa.Table, pa.Table]) -> None:
    np.random.seed(1)  # the global generator must not matter
    again = sample_headlines()
    assert [digest(table) for table in again] == [digest(table) for table in tables]


def test_every_address_belongs_to_one_variant_and_is_distinct(
    tables: tuple[pa.Table, pa.Table], titles: dict[str, list[str]]
) -> None:
    addresses = pa.concat_tables(tables)["requested_url"].to_pylist()
    assert len(set(addresses)) == len(addresses)
    pattern = re.compile(r"https://[a-z]+\.exemplo\.(pt|com\.br)/[a-z/]+/[a-z0-9-]+-\d+")
    assert [address for address in addresses if not pattern.fullmatch(address)] == []
    european, brazilian = len(titles["european"]), len(titles["brazilian"])
    assert european + brazilian == len(addresses)
    assert abs(european - brazilian) < 0.02 * len(addresses)


def test_each_variant_has_all_subjects(tables: tuple[pa.Table, pa.Table]) -> None:
    addresses = pa.concat_tables(tables)["requested_url"].to_pylist()
    for end in (".pt/", ".com.br/"):
        paths = {address.split(end)[1].rsplit("/", 1)[0] for address in addresses if end in address}
        assert len(paths) == len(SUBJECTS) >= 10


def test_about_a_tenth_of_the_titles_are_about_football(
    tables: tuple[pa.Table, pa.Table], titles: dict[str, list[str]]
) -> None:
    assert 0.08 <= share(football(titles["european"])) <= 0.12
    assert 0.08 <= share(football(titles["european"] + titles["brazilian"])) <= 0.12
    others = [row["title"] for row in pa.concat_tables(tables).to_pylist() if "/futebol/" not in row["requested_url"]]
    assert share(football(others)) < 0.001


def test_both_variants_have_titles_for_the_prompts_of_the_presets(titles: dict[str, list[str]]) -> None:
    for variant in HOSTS:
        starts = [title.split()[0] for title in titles[variant]]
        assert 0.02 <= starts.count("Presidente") / len(starts) <= 0.04
        assert starts.count("Alerta") + starts.count("Alerta:") >= 50


@pytest.mark.parametrize(
    ("own", "other", "markers"),
    [("european", "brazilian", EUROPEAN_ONLY), ("brazilian", "european", BRAZILIAN_ONLY)],
)
def test_the_variants_keep_their_words_apart(
    titles: dict[str, list[str]], own: str, other: str, markers: list[str]
) -> None:
    vocabulary = {variant: {word for title in titles[variant] for word in words(title)} for variant in HOSTS}
    assert [marker for marker in markers if marker not in vocabulary[own]] == []
    assert [marker for marker in markers if marker in vocabulary[other]] == []


def test_european_and_brazilian_constructions_do_not_mix(titles: dict[str, list[str]]) -> None:
    gerund = re.compile(r"\best(á|ão) \w+ndo\b")
    infinitive = re.compile(r"\best(á|ão) a \w+r\b")
    enclitic = re.compile(r"\w-se\b")
    assert sum(bool(gerund.search(title)) for title in titles["brazilian"]) > 100
    assert sum(bool(infinitive.search(title)) for title in titles["european"]) > 100
    assert sum(bool(enclitic.search(title)) for title in titles["european"]) > 50
    assert [title for title in titles["european"] if gerund.search(title)] == []
    assert [title for title in titles["brazilian"] if infinitive.search(title) or enclitic.search(title)] == []


def test_titles_look_like_headlines(titles: dict[str, list[str]]) -> None:
    everything = titles["european"] + titles["brazilian"]
    leftover = re.compile(r"[{}\[\]|=_]|\s\s|^\s|\s$|\s[,:;?]|(?<!Jr)\.$")
    assert [title for title in everything if leftover.search(title)] == []
    assert [title for title in everything if title.count('"') % 2] == []
    assert [title for title in everything if not re.match(r'["0-9A-ZÁÂÉÍÓÔÚ]', title)] == []
    lengths = sorted(len(title.split()) for title in everything)
    assert lengths[0] >= 3 and lengths[-1] <= 22
    assert lengths[len(lengths) // 20] >= 5 and 8 <= lengths[len(lengths) // 2] <= 12


def test_no_preposition_is_left_before_an_article(titles: dict[str, list[str]]) -> None:
    uncontracted = re.compile(r"\b(de|em|por|a) (o|os|as)\b|\b(de|em|por) a\b(?! \d)", re.IGNORECASE)
    everything = titles["european"] + titles["brazilian"]
    assert [title for title in everything if uncontracted.search(title)] == []


@pytest.mark.parametrize("variant", HOSTS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_slot_is_defined_and_every_filler_reachable(subject: str, variant: str) -> None:
    lexicon = read_sections("lexicon")
    sections = read_sections(subject)
    grammar = Grammar(sections, lexicon, variant, np.random.default_rng(0))
    texts, reached = list(grammar.templates), set[str]()
    while texts:
        for prefix, name, *_ in SLOT.findall(texts.pop()):
            assert prefix.strip() in {"", "=", *FORMS}
            if name and name not in reached:
                assert name in grammar.slots, f"slot {name} has no fillers"
                reached.add(name)
                texts += grammar.slots[name]
    own = {*sections["both"]["slots"], *sections[variant]["slots"]}
    assert own - reached == set()


def write(template: str, **slots: str) -> str:
    """A headline of a grammar that has one template."""
    subject = {"both": {"templates": template, "slots": slots}, "european": {"slots": {}}}
    lexicon = {"both": {"slots": {}}, "european": {"slots": {}}}
    return Grammar(subject, lexicon, "european", np.random.default_rng(0)).write()


@pytest.mark.parametrize(
    ("template", "noun", "expected"),
    [
        ("{x} vence", "o Benfica", "Benfica vence"),
        ("{o x} vence", "a equipa", "A equipa vence"),
        ("golo {de x}", "os Açores", "Golo dos Açores"),
        ("golo {em x}", "Lisboa", "Golo em Lisboa"),
        ("golo {em x}", "as Caldas", "Golo nas Caldas"),
        ("vai {a x}", "a Guarda", "Vai à Guarda"),
        ("vai {a x}", "Braga", "Vai a Braga"),
        ("passa {por x}", "o Douro", "Passa pelo Douro"),
        ("preso {num x}", "a loja", "Preso numa loja"),
        ("vê {um x}", "o lince", "Vê um lince"),
        ('"{O x} e o mar"', "a casa", '"A casa e o mar"'),
        ("{x} detid{=x}", "as irmãs", "Irmãs detidas"),
    ],
)
def test_articles_contract_and_endings_agree(template: str, noun: str, expected: str) -> None:
    assert write(template, x=noun) == expected


def test_slots_nest_and_keep_the_article_of_the_inner_noun() -> None:
    assert write("{em x}", x="{o y}", y="a Guarda") == "Na Guarda"
    assert write("{x}", x="o presidente {de y}", y="o Sporting") == "Presidente do Sporting"


def test_a_filler_occurs_once_in_a_headline() -> None:
    names = ["benfica", "braga", "chaves", "sporting"]
    assert sorted(write("{x} {x} {x} {x}", x="; ".join(names)).lower().split()) == names


def test_numbers_keep_their_bounds_and_steps() -> None:
    numbers = set(map(int, write(" ".join(["{10-30:5}"] * 200)).split()))
    assert numbers == {10, 15, 20, 25, 30}
    assert set(map(int, write(" ".join(["{2-4}"] * 100)).split())) == {2, 3, 4}


def test_choices_include_the_empty_one() -> None:
    assert set(write(" ".join(["[sim|não|]"] * 100)).lower().split()) == {"sim", "não"}
    assert len(write(" ".join(["[sim|não|]"] * 100)).split()) < 100
