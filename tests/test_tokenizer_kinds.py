"""Tokenizers of SentencePiece's kinds: ids and text are transformers', and text goes on without a space lost or new."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
import small_sentencepiece as small
from hypothesis import given, settings
from hypothesis import strategies as st
from small_ports import transformers
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from faisca.data.chat import ChatTemplate
from faisca.data.conversations import Row, answers
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.training.generate import encode_prompt, headline

TEXTS = [
    *("", "a", " a", "  a  b ", " ", "   ", "Governo anuncia  medidas", "\n\na\tb\r\n", "</s> não é <s>", "<unk>"),
    *(
        "漢字 😀👩‍👩‍👧‍👦🇵🇹",
        "\x00\x7f\ufffd\U0010ffff",
        "<0x41>",
        "▁",
        "a▁b",
        "ação AÇÃO ac\u0327a\u0303o",
        "\u00a0x\u200b",
    ),
    *("1.250,50 € (3.ª)", "é"),
]
LETTERS = st.text() | st.text("aéçã 漢😀▁ \n.,<s>/0")


@pytest.fixture(scope="module", params=small.STYLES)
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ours(style: str) -> Tokenizer:
    return small.tokenizer(style)


@pytest.fixture(scope="module")
def theirs(style: str):
    """transformers' fast tokenizer of the same file."""
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Engine.from_str(small.engine(style).to_str()))


def same(ours: Tokenizer, theirs, text: str) -> list[int]:
    """Ids and text are transformers'; returns the ids."""
    ids = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert ours.encode(text) == ids
    if not {*ours.ends, *ours.beginning}.intersection(ids):  # a Unigram finds "</s>" in a text
        assert ours.decode(ids) == theirs.decode(ids)
    return ids


def test_ids_and_text_are_those_of_transformers(ours, theirs, style):
    for text in (*TEXTS, *small.titles(300)):
        ids = same(ours, theirs, text)
        if style not in ("unigram", "mistral"):  # which normalise spaces and characters
            assert ours.decode(ids) == text.replace("▁", " ")
    if style != "unigram":
        assert any(len(ours.token_bytes[i]) == 1 and ours.token_bytes[i] > b"\x7f" for i in ours.encode("漢"))


@settings(max_examples=200, deadline=None)
@given(text=LETTERS)
def test_ids_and_text_of_any_text_are_those_of_transformers(ours, theirs, style, text):
    ids = same(ours, theirs, text)
    if style in ("llama 2", "tinyllama", "gemma"):
        assert ours.decode(ids) == text.replace("▁", " ")


@settings(max_examples=100, deadline=None)
@given(text=LETTERS, share=st.floats(0, 1))
def test_text_goes_on_from_what_is_before_it(ours, text, share):
    ids = [i for i in ours.encode(text) if i not in (*ours.ends, *ours.beginning)]
    cut = round(share * len(ids))
    begin, rest = ours.decode(ids[:cut]), ours.decode(ids[cut:], ids[:cut])
    if "\ufffd" not in begin + rest:  # not inside of a character
        assert begin + rest == ours.decode(ids)
    prompt = [*ours.beginning, *ids[:cut]]
    assert ours.decode(ids[cut:], prompt) == rest


def test_a_headline_has_the_space_that_the_model_wrote(ours, style):
    prompt = encode_prompt(ours, "Governo", 64)
    assert prompt == [*ours.beginning, *ours.encode("Governo")]
    whole = ours.encode("Governo anuncia")
    assert whole[: len(prompt) - 1] == prompt[1:]
    completion = [*whole[len(prompt) - 1 :], ours.end_of_text]
    assert headline(ours, "Governo ", completion) == "Governo anuncia"
    assert (
        ours.decode(completion, prompt) == " anuncia"
        and ours.decode(completion) == ("anuncia", " anuncia")[style == "gemma"]
    )
    *_, letter = [i for i, token in enumerate(ours.token_bytes) if token == b"s"]
    assert headline(ours, "Governo", [letter]) == "Governos"
    assert headline(ours, "", ours.encode("Porto")) == "Porto"


def test_a_character_of_several_tokens_is_whole_where_they_are(ours, style):
    if style == "unigram":
        assert ours.decode(ours.encode("漢")).endswith("<unk>")
        return
    ids = ours.encode("a漢")
    assert ours.decode(ids[-3:], ids[:-3]) == "漢" and ours.decode(ids[-3:-1], ids[:-3]) == "\ufffd"


def test_what_is_no_token_is_marked(ours):
    for strange in (ours.vocabulary_size, -1, 10**12):
        assert ours.decode([strange]) == ours.decode([strange], [3]) == "\ufffd"
    assert ours.decode(np.array([ours.end_of_text], np.int32)) == "" == ours.decode([])


def test_a_text_begins_as_the_models_own_tokenizer_begins_it(ours, style, tmp_path):
    plain = transformers.AutoTokenizer.from_pretrained(small.write(tmp_path / "own", small.files(style)))
    begun = plain("a").input_ids[: -len(plain("a", add_special_tokens=False).input_ids)]
    assert ours.beginning == tuple(begun or [2]) == ((2,) if style == "unigram" else (1,))
    stated = small.files(style) | {
        "tokenizer_config.json": json.dumps(small.CONFIG | {"add_bos_token": False}).encode()
    }
    assert Tokenizer.from_files(stated, "x").beginning == (2,)
    del stated["tokenizer_config.json"]  # special_tokens_map.json names the end, tokenizer.json begins a text
    assert Tokenizer.from_files(stated, "x").beginning == ours.beginning


def test_titles_are_as_many_bytes_as_they_are(ours, style):
    chosen = [title for title in small.titles(200) if title.isascii()]
    ids = ours.encode_titles(chosen)
    assert ids.tolist() == [i for t in chosen for i in [*ours.beginning[: style != "unigram"], *ours.encode(t), 2]]
    sizes = ours.bytes_per_token()
    assert sizes[ids].sum() == sum(len(title) + 1 for title in chosen) and len(chosen) > 20
    assert sizes.shape == (ours.vocabulary_size,) and sizes.min() >= 0 and np.all(sizes[3:] > 0)


def test_it_is_stored_as_it_came(ours, style):
    again = Tokenizer.from_files(ours.files(), "again")
    assert ours.files() == small.files(style) and again.fingerprint == ours.fingerprint and again.kind == "json"


def test_a_run_from_before_goes_on_as_it_began(ours, style):
    before = hashlib.sha256(small.files(style)["tokenizer.json"]).hexdigest()
    again = ours.as_saved(before)
    assert again.beginning == (2,) and again.fingerprint == before
    assert again.encode_titles(["Porto"]).tolist() == [*ours.encode("Porto"), 2]
    for known in (None, ours.fingerprint):
        assert ours.as_saved(known).beginning == ours.beginning
    assert (before == ours.fingerprint) == (style == "unigram")


def test_titles_with_another_end_are_not_taken_from_the_cache(tmp_path):
    contents, titles = small.files("unigram"), pa.array(["Porto", "Braga"])
    for end, token in (("</s>", 2), ("<s>", 1)):
        contents["tokenizer_config.json"] = json.dumps(
            small.CONFIG | {"add_bos_token": False, "eos_token": end}
        ).encode()
        ids = tokenise(titles, Tokenizer.from_files(contents, "x"), cache=tmp_path)
        assert ids[-1] == token and (ids == token).sum() == 2


@pytest.mark.parametrize("name", ["llama 2", "tinyllama"])
def test_ids_are_those_of_sentencepiece_itself(name):
    own = small.sentencepiece.SentencePieceProcessor(model_proto=small.trained("bpe"))
    found = small.tokenizer(name)
    for text in (*small.titles(300), "漢 😀", " a", "a  b"):
        assert found.encode(text) == own.encode(text) and found.decode(own.encode(text)) == text


@pytest.mark.parametrize("name", ["llama 2", "tinyllama", "mistral"])
def test_conversations_have_the_ids_of_transformers(name, tmp_path):
    contents = small.files(name)
    plain = {**json.loads(contents["tokenizer_config.json"]), "tokenizer_class": "PreTrainedTokenizerFast"}
    write = small.write(tmp_path / "own", contents | {"tokenizer_config.json": json.dumps(plain).encode()})
    other, template = transformers.AutoTokenizer.from_pretrained(write), ChatTemplate(small.tokenizer(name))
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": r, "content": c} for r, c in zip(roles, ("Olá", "Bom dia!", "E tu? 漢", "Bem"), strict=True)]
    for count in range(1, 5):
        for answer in (False, True):
            asked = {"add_generation_prompt": answer, "return_dict": False}
            assert template.ids(messages[:count], answer) == other.apply_chat_template(messages[:count], **asked)
    _, targets = answers(Row("x", messages, 0), template)
    learnt = [i for i in targets if i >= 0]
    assert learnt.count(2) == 2
    assert [text.strip() for text in (template.tokenizer.decode(learnt[: learnt.index(2)], [3]),)] == ["Bom dia!"]


def word_piece(titles: list[str]) -> Engine:
    found = Engine(models.WordPiece(unk_token="[UNK]"))
    found.normalizer, found.pre_tokenizer = normalizers.NFC(), pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    letters = [*" 'abdnotAB-,.()?!15"]
    found.train_from_iterator(
        titles, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "</s>"], initial_alphabet=letters)
    )
    return found


def lower_case(titles: list[str]) -> Engine:
    found = Engine.from_str(small.engine("llama 2").to_str())
    found.normalizer = normalizers.Sequence([normalizers.Lowercase(), found.normalizer])
    return found


@pytest.mark.parametrize(("make", "kind"), [(word_piece, "WordPiece"), (lower_case, "BPE")])
def test_what_does_not_give_text_back_is_refused_in_one_line(make, kind):
    contents = {
        "tokenizer.json": make(small.titles(500)).to_str().encode(),
        "tokenizer_config.json": b'{"eos_token": "</s>"}',
    }
    with pytest.raises(FaiscaError, match=f"^x does not give text back: .* comes back from its {kind} as") as raised:
        Tokenizer.from_files(contents, "x")
    assert "\n" not in str(raised.value)
