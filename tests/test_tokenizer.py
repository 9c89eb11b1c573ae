"""The tokenizers: tiktoken's engine against Hugging Face's, and files that are none."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from faisca.config import TokenizerConfig
from faisca.data.byte_level import END_OF_TEXT
from faisca.data.tokenizer import Tokenizer, load_tokenizer
from faisca.errors import FaiscaError

PLACES = ["Lisboa", "Braga", "Évora", "São Paulo", "Setúbal", "Viseu", "Luanda", "Maputo", "Aveiro", "Faro"]
EVENTS = [
    "abre o mercado",
    "espera chuva forte",
    "recebe o campeão",
    "fecha três ruas às 18h30",
    "não paga 1.250 €",
]
TITLES = [f"{place} {event}, diz {other}" for place in PLACES for event in EVENTS for other in PLACES]

HOSTILE = [
    "", " ", "  ", "   x", "x   ", "\t", "\n", "\r\n", "a\r\nb", "a\n\n\nb", " \t \n ", "\x00", "a\x00b", "\x7f",
    "\x85", "\u00a0", "a\u00a0b", "\u2003 \u3000", "\u200b", "\u180e", "\ufeffx", "\x1c\x1d\x1e\x1f",
    " " * 300, "a" + " " * 99 + "b", "don't", "I'LL we've you're he'd 'tis it's'", "’s", "'''",
    "d'água d'Ouro", "l'été", "can''t",
    "0", "007", "1.250,50 €", "20162017", "①②³", "١٢٣", "Ⅷ", "½", "1e-5", "3ª feira",
    "ação", "ac\u0327a\u0303o", "\u0301", "e\u0301\u0301\u0301", "Z\u0351\u036ba\u0340", "ß ẞ ſ", "ﬁ", "İı",
    "😀", "👩‍👩‍👧‍👦", "👍🏽👍🏿", "🇵🇹🇧🇷", "❤️", "1️⃣", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "\u200d\u200d", "a😀b 😀 c",
    "新闻标题", "日本語のニュース、2016年", "한국어 뉴스", "ข่าวไทย", "हिन्दी समाचार", "עברית",
    "خبر عاجل 2016", "a \u202eb\u202c",
    "\ud7ff", "\ue000", "\ufffd", "\uffff", "\U00010000", "\U0010ffff", "𝕬𝖇𝖈",
    END_OF_TEXT, f"a{END_OF_TEXT}b", f" {END_OF_TEXT} {END_OF_TEXT}", "<|endoftext", "<|fim_prefix|>", "Ġ Ċ Ġx", "Ā",
    "ab" * 5000, "a" * 10_000, "Título de jornal! " * 600, "!?" * 50, "____",
    "--- … —", "http://a.pt/b?c=d&e=%20", "\\n \\u0041",
]  # fmt: skip


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return Tokenizer.train(TITLES, 370)


@pytest.fixture(params=["gpt2", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    value = request.getfixturevalue(request.param)
    assert isinstance(value, Tokenizer)
    return value


@pytest.fixture(scope="session")
def hugging_face(bpe: Tokenizer, gpt2: Tokenizer) -> dict[str, tokenizers.Tokenizer]:
    """Hugging Face's engine on the JSON of each tokenizer, set to take special tokens as text."""
    engines = {ours.kind: tokenizers.Tokenizer.from_str(ours.json_text()) for ours in (bpe, gpt2)}
    for engine in engines.values():
        engine.encode_special_tokens = True
    return engines


def test_there_are_enough_hostile_texts() -> None:
    assert len(set(HOSTILE)) >= 80


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[1:25])
def test_both_engines_agree_and_texts_survive(
    tokenizer: Tokenizer, hugging_face: dict[str, tokenizers.Tokenizer], text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == hugging_face[tokenizer.kind].encode(text).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text not in ids
    assert tokenizer.bytes_per_token()[np.array(ids, int)].sum() == len(text.encode())


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text("ação lrst'0 \n\u0301é😀"))
def test_both_engines_agree_on_any_text(
    bpe: Tokenizer, gpt2: Tokenizer, hugging_face: dict[str, tokenizers.Tokenizer], text: str
) -> None:
    for ours in (bpe, gpt2):
        assert ours.encode(text) == hugging_face[ours.kind].encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_many_titles_at_once_have_the_same_ids(tokenizer: Tokenizer) -> None:
    titles = [text.replace("\ud83d", "") for text in HOSTILE]
    plain = [title for title in titles if "<|endoftext|>" not in title]
    assert 0 < len(plain) < len(titles)
    for chosen in (titles, plain, [""]):
        expected = [i for title in chosen for i in [*tokenizer.encode(title), tokenizer.end_of_text]]
        assert tokenizer.encode_titles(chosen).tolist() == expected


def test_a_lone_surrogate_is_no_text_but_does_no_harm(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud83d b")) == "a\ufffd b"


def test_end_of_text_is_the_last_token_and_stands_for_a_line_break(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.bytes_per_token()
    assert lengths.dtype == np.int64 and lengths.shape == (tokenizer.vocabulary_size,)
    assert tokenizer.end_of_text == tokenizer.vocabulary_size - 1
    assert lengths[tokenizer.end_of_text] == 1 and lengths.min() == 1


def test_decoding_drops_end_of_text_and_marks_what_is_no_text(tokenizer: Tokenizer) -> None:
    euro = tokenizer.token_bytes.index(b"\xe2")
    ids = [tokenizer.end_of_text, *tokenizer.encode("um"), tokenizer.end_of_text, euro]
    assert tokenizer.decode(ids) == "um\ufffd"
    assert tokenizer.decode(np.array(ids, np.int32)) == "um\ufffd"
    assert tokenizer.decode([tokenizer.vocabulary_size, -1, 10**12]) == "\ufffd" * 3


def test_gpt2_is_the_published_one(gpt2: Tokenizer) -> None:
    assert (gpt2.kind, gpt2.vocabulary_size, gpt2.end_of_text) == ("gpt2", 50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    state = json.loads(gpt2.json_text())
    assert state["model"]["merges"][0] == ["Ġ", "t"] and len(state["model"]["merges"]) == 50_000
    again = Tokenizer.from_json(gpt2.json_text(), "test")
    assert again.fingerprint == gpt2.fingerprint and again.end_of_text == 50256


def test_gpt2_without_a_network_names_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ConnectionError("no route"), ValueError("Hash mismatch")):

        def refuse(name: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(tiktoken, "get_encoding", refuse)
        with pytest.raises(FaiscaError, match=r"TIKTOKEN_CACHE_DIR .*--tokenizer.kind bpe"):
            load_tokenizer(TokenizerConfig("gpt2"), pa.array([], pa.string()))
        with pytest.raises(FaiscaError, match=r"TIKTOKEN_CACHE_DIR .*go online once$"):  # where no option of ours helps
            Tokenizer.gpt2()


# --- training ---


def test_training_learns_the_asked_number_of_tokens_and_is_reproducible(bpe: Tokenizer) -> None:
    assert (bpe.kind, bpe.vocabulary_size, bpe.end_of_text) == ("bpe", 370, 369)
    again = Tokenizer.train(iter(TITLES), 370)
    assert again.fingerprint == bpe.fingerprint and again.json_text() == bpe.json_text()
    assert Tokenizer.train(TITLES, 369).fingerprint != bpe.fingerprint
    assert len(bpe.encode(TITLES[7])) < len(TITLES[7]) / 2


@pytest.mark.parametrize("titles", [[], [""], ["a"], ["ação"], [END_OF_TEXT] * 50, ["\x00\x00\x00"] * 9])
def test_a_corpus_too_small_gives_what_can_be_learnt(titles: list[str]) -> None:
    tokenizer = Tokenizer.train(titles, 4096)
    assert 257 <= tokenizer.vocabulary_size < 300
    assert tokenizer.end_of_text == tokenizer.vocabulary_size - 1 == len(tokenizer.bytes_per_token()) - 1
    for text in (*titles, *HOSTILE[:40]):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_smallest_vocabulary_is_bytes() -> None:
    tokenizer = Tokenizer.train(TITLES, 257)
    assert tokenizer.vocabulary_size == 257 and len(tokenizer.encode("ação")) == 6


def test_training_notices_engines_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: [0])
    with pytest.raises(AssertionError, match="the engines differ on"):
        Tokenizer.train(TITLES, 300)


def test_the_configuration_chooses(gpt2: Tokenizer) -> None:
    titles = pa.array(TITLES)
    trained = load_tokenizer(TokenizerConfig(kind="bpe", vocabulary_size=300), titles)
    assert (trained.kind, trained.vocabulary_size) == ("bpe", 300)
    assert load_tokenizer(TokenizerConfig(kind="gpt2"), titles).fingerprint == gpt2.fingerprint


# --- stored tokenizers ---


def test_a_stored_tokenizer_is_the_same(bpe: Tokenizer) -> None:
    compact = json.dumps(json.loads(bpe.json_text()))
    again = Tokenizer.from_json(compact, "test")
    assert again.fingerprint == bpe.fingerprint and again.json_text() == compact
    assert [again.encode(text) for text in HOSTILE] == [bpe.encode(text) for text in HOSTILE]


def word_level(state: dict[str, Any]) -> None:
    state["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


def swapped_ids(state: dict[str, Any]) -> None:
    vocabulary = state["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def missing_byte(state: dict[str, Any]) -> None:
    state["model"]["vocab"]["??"] = state["model"]["vocab"].pop("!")


def doubled_id(state: dict[str, Any]) -> None:
    state["model"]["vocab"]["!"] = state["model"]["vocab"]["#"]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a WordLevel model": word_level,
    "a normalizer": lambda state: state.update(normalizer={"type": "Lowercase"}),
    "model options": lambda state: state["model"].update(dropout=0.1),
    "options of its own": lambda state: state["model"].update(byte_fallback=True),
    "split": lambda state: state.update(pre_tokenizer={"type": "Whitespace"}),
    "not split": lambda state: state.update(pre_tokenizer=None),
    "as GPT-2 splits": lambda state: state["pre_tokenizer"].update(add_prefix_space=True),
    "words": lambda state: state["pre_tokenizer"].update(use_regex=False),
    "tokens other": swapped_ids,
    "other than": lambda state: state["model"]["merges"].reverse(),
    "256 bytes": missing_byte,
    "bytes": doubled_id,
    "endoftext": lambda state: state.update(added_tokens=[]),
    "and <": lambda state: state["added_tokens"].append({**state["added_tokens"][0], "content": "<pad>", "id": 370}),
    "no tokenizer.json": lambda state: state.pop("model"),
    "out of vocabulary": lambda state: state["model"]["merges"].append(["a", "??"]),
}


@pytest.mark.parametrize("complaint", CHANGES)
def test_a_tokenizer_that_is_not_ours_is_named_and_refused(bpe: Tokenizer, complaint: str) -> None:
    state = json.loads(bpe.json_text())
    CHANGES[complaint](state)
    with pytest.raises(FaiscaError) as caught:
        Tokenizer.from_json(json.dumps(state), "runs/x/tokenizer.json")
    message = str(caught.value)
    assert message.startswith("runs/x/tokenizer.json ") and complaint in message and "\n" not in message


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"model": {}}', "\x00", "\ud800", "PK\x03\x04"])
def test_text_that_is_no_tokenizer_is_named_and_refused(text: str) -> None:
    with pytest.raises(FaiscaError, match=r"^x/tokenizer.json is no tokenizer.json that can be read: "):
        Tokenizer.from_json(text, "x/tokenizer.json")
