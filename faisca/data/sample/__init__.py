"""The embedded corpus `sample`: Portuguese headlines written by a grammar, for runs without a network.

Every headline is invented. The grammar is data: one TOML file a subject, and `lexicon.toml` with
the words that all subjects share. A file has the sections `both`, `european` and `brazilian`; a
variant's grammar is `both` and its own section together. Templates stand one a line, the fillers
of a slot are separated by semicolons or line ends, and both may hold

    {club}               a filler of the slot `club`, without its article: Benfica
    {o club}             with its article: o Benfica (O: O Benfica; um: um Benfica)
    {de club}            after a preposition (de, em, a, por, num), contracted as grammar asks: do Benfica
    {=club}              the ending that agrees with the latest filler of `club`: o, a, os or as
    {2-40}, {10-90:5}    a number between the two, in steps of the third
    [vence|bate|]        one of the alternatives; the empty one leaves it out

A noun keeps its article in the data, as the filler's first word: that is how gender and number
reach contractions and endings. `grammar.py` expands templates; this file decides how many headlines
each subject has (`draws` in each variant), their addresses, and which are held out.
"""

import hashlib
import re
import unicodedata

import pyarrow as pa

from faisca.data.sample.grammar import Grammar, read_sections
from faisca.streams import generator, permutation

CORPUS_SEED = 2016
VALIDATION_SHARE = 0.064
HOSTS = {
    "european": ("www.exemplo.pt", "diario.exemplo.pt", "correio.exemplo.pt"),
    "brazilian": ("www.exemplo.com.br", "portal.exemplo.com.br", "gazeta.exemplo.com.br"),
}
SUBJECTS = (
    "politica economia justica internacional saude educacao meteorologia "
    "transportes cultura ciencia tecnologia modalidades futebol"
).split()


def sample_headlines() -> tuple[pa.Table, pa.Table]:
    """Training and validation headlines: columns `title`, `language` ("pt") and `requested_url`, all strings.

    Always the same rows in the same order: the seed is the corpus's own, not the run's. The hash of
    a title decides which table it belongs to, so none is in both. About half of the titles
    are European (`.pt/` in the address), the others Brazilian (`.com.br/`).
    """
    addresses = _write_all()
    titles = list(addresses)
    mixed = [titles[i] for i in permutation(CORPUS_SEED, "sample corpus: order", len(titles))]
    held_out = {title for title in titles if _digest(title) < VALIDATION_SHARE * 2**32}
    train = [title for title in mixed if title not in held_out]
    validation = [title for title in mixed if title in held_out]
    return _table(train, addresses), _table(validation, addresses)


def _write_all() -> dict[str, str]:
    """Distinct titles of all subjects and variants -> their addresses."""
    addresses: dict[str, str] = {}
    lexicon = read_sections("lexicon")
    for subject in SUBJECTS:
        sections = read_sections(subject)
        for variant in HOSTS:
            random = generator(CORPUS_SEED, f"sample corpus: {variant} {subject}")
            grammar = Grammar(sections, lexicon, variant, random)
            for _ in range(sections["draws"]):
                title = grammar.write()
                addresses.setdefault(title, _address(title, variant, sections[variant]["path"]))
    return addresses


def _address(title: str, variant: str, path: str) -> str:
    """An address as news sites make them: outlet, section, the title in plain letters, a number."""
    plain = unicodedata.normalize("NFKD", title.lower()).encode("ascii", "ignore").decode()
    slug = "-".join(re.findall("[a-z0-9]+", plain))
    number = _digest(title)
    host = HOSTS[variant][number % len(HOSTS[variant])]
    return f"https://{host}/{path}/{slug}-{number % 10**6}"


def _digest(title: str) -> int:
    """32 bits of the title's SHA-256."""
    return int.from_bytes(hashlib.sha256(title.encode()).digest()[:4], "big")


def _table(titles: list[str], addresses: dict[str, str]) -> pa.Table:
    columns = {
        "title": titles,
        "language": ["pt"] * len(titles),
        "requested_url": [addresses[title] for title in titles],
    }
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
