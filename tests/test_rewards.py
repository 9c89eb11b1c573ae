"""Rewards: which words count, what a user's function may do wrong, and advantages by hand."""

import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faisca.errors import FaiscaError
from faisca.rewards.advantages import group_advantages
from faisca.rewards.built_in import Phrases, football, share, words
from faisca.rewards.judge import Judge
from faisca.rewards.named import load_reward
from faisca.rewards.samples import Samples

# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Porto, vence",
        "o 'Porto' vence",
        "«Porto» vence",
        "(porto)",
        "PORTO!",
        "Porto-Braga adiado",
        "campeão nacional",
        "CAMPEÃO",
        unicodedata.normalize("NFD", "campeão nacional"),
        unicodedata.normalize("NFD", "TAÇA de Portugal"),
        "final da taça: hoje",
    ],
)
def test_football_words_are_found_whatever_their_spelling(text):
    assert football([text]) == [1.0]


@pytest.mark.parametrize("text", ["", "   ", "aeroporto", "Portos", "golos", "campea\u0303", "eurodeputado", "🎉"])
def test_parts_of_words_do_not_count(text):
    assert football([text]) == [0.0]


def test_words_are_composed_folded_and_without_punctuation():
    assert words("«É GOLO!», disse-o à Straße") == ["é", "golo", "disse", "o", "à", "strasse"]
    assert words("a\N{COMBINING TILDE}") == ["ã"]


def test_keyword_reward_is_one_number_a_completion():
    assert Phrases({"vento"})(["Vento forte", "chuva", ""]) == [1.0, 0.0, 0.0]


def test_keywords_of_a_name_are_matched_as_words_are():
    decomposed = unicodedata.normalize("NFD", "Pão")
    assert load_reward(f"keywords: Vento,{decomposed}")(["VENTO", "pão", "ventos"]) == [1.0, 1.0, 0.0]
    assert load_reward("football") is football


@pytest.mark.parametrize(
    ("name", "hits", "misses"),
    [
        ("25 de Abril", ["O 25 de abril", "25 DE ABRIL!"], ["fim de dia", "Abril de 25", "1925 de Abril"]),
        ("primeiro-ministro", ["O Primeiro-Ministro", "primeiro ministro"], ["Primeiro jogo", "ministro, primeiro"]),
        ("d'água,vento", ["falta d'Água", "Vento"], ["água", "d"]),
        ("São João , vento", ["noite de são joão", "vento"], ["São Pedro", "João"]),
        ("vento,", ["vento"], ["chuva"]),
    ],
)  # fmt: skip
def test_a_keyword_of_several_words_is_a_phrase(name: str, hits: list[str], misses: list[str]) -> None:
    assert load_reward(f"keywords:{name}")([*hits, *misses]) == [1.0] * len(hits) + [0.0] * len(misses)


WORDS = st.text(st.characters(codec="latin-1", categories=("Lu", "Ll", "Nd")), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=3), st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=3))
def test_a_phrase_is_found_in_any_text_that_has_it(phrase: list[str], before: list[str], after: list[str]) -> None:
    reward = load_reward("keywords:" + "-".join(phrase))
    assert reward([" ".join([*before, *phrase, *after])]) == [1.0]
    others = [word for word in [*before, *after] if words(word) != words(phrase[0])]
    assert reward([" ".join(others)]) == [0.0]


def test_share_of_nothing_is_unknown():
    assert share([1.0, 0.0, 0.0, 1.0]) == 0.5 and math.isnan(share([]))


# --- the user's own reward ----------------------------------------------------------------------


def write(folder, body: str, name: str = "mine.py"):
    path = folder / name
    path.write_text(body, encoding="utf-8")
    return path


def score(name: str, completions: list[str]) -> np.ndarray:
    return Judge((name,)).score(Samples.of_texts(completions)).total


def complaint(name: str, completions: list[str] | None = None) -> str:
    with pytest.raises(FaiscaError) as caught:
        score(name, completions or ["a", "b", "c"])
    return str(caught.value)


GOOD = {
    "list": "def f(texts): return [len(text) for text in texts]",
    "generator": "def f(texts): return (len(text) for text in texts)",
    "array": "import numpy as np\ndef f(texts): return np.array([len(text) for text in texts])",
    "booleans": "def f(texts): return [len(text) == 1 for text in texts]",
    "callable object": "class F:\n  def __call__(self, texts): return [len(text) for text in texts]\nf = F()",
    "dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass C:\n  n: int\ndef f(texts): return [C(len(text)).n for text in texts]"
    ),
    "takes the list apart": "def f(texts):\n  r = [len(text) for text in texts]\n  texts.clear()\n  return r",
}


@pytest.mark.parametrize("body", GOOD.values(), ids=GOOD)
def test_a_function_in_a_file(tmp_path, body):
    name = f"{write(tmp_path, body)}:f"
    completions = ["a", "bb", "ccc"]
    rewards = score(name, completions)
    assert rewards.dtype == np.float64
    assert rewards.tolist() == ([1, 0, 0] if "== 1" in body else [1, 2, 3])
    assert completions == ["a", "bb", "ccc"]


def test_nan_and_none_pass_a_completion(tmp_path):
    path = write(tmp_path, "def f(texts): return [1, float('nan'), None]")
    name = f"{path}:f"
    assert np.isnan(score(name, ["a", "b", "c"])).tolist() == [False, True, True]


HOSTILE = {
    "raises": ("def f(texts): raise KeyError('x')", "failed: KeyError: 'x'"),
    "raises on one": ("def f(texts): return [1 / (len(t) - 1) for t in texts]", "failed: ZeroDivisionError"),
    "too few": ("def f(texts): return [1.0]", "(1,) numbers for 3 completions"),
    "too many": ("def f(texts): return [1.0] * 4", "(4,) numbers for 3 completions"),
    "nested": ("def f(texts): return [[1.0]] * 3", "(3, 1) numbers for 3 completions"),
    "ragged": ("def f(texts): return [[1.0], [], 2]", "failed: ValueError"),
    "one number": ("def f(texts): return 1.0", "failed: TypeError"),
    "nothing": ("def f(texts): pass", "failed: TypeError"),
    "words": ("def f(texts): return ['good'] * 3", "failed: ValueError"),
    "infinite": ("def f(texts): return [1.0, float('inf'), 0.0]", "an infinite number"),
    "minus infinite": ("def f(texts): return [1.0, -1e999, 0.0]", "an infinite number"),
    "wrong parameters": ("def f(): return []", "failed: TypeError"),
    "leaves the program": ("import sys\ndef f(texts): sys.exit(0)", "failed: SystemExit"),
    "syntax error": ("def f(texts) return []", "cannot be run: SyntaxError"),
    "fails on import": ("import no_such_module_at_all", "cannot be run: ModuleNotFoundError"),
    "leaves on import": ("raise SystemExit('bye')", "cannot be run: SystemExit"),
    "another function": ("def g(texts): return []\ndef _h(): pass", "no function 'f': it has g"),
    "no function": ("f = 3", "no function 'f': it has none"),
}


@pytest.mark.parametrize(("body", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_bad_reward_is_one_line_that_names_it(tmp_path, body, words):
    path = write(tmp_path, body)
    line = complaint(f"{path}:f")
    assert str(path) in line and words in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fotball", "choose football, keywords:WORD,SOME PHRASE, regex:PATTERN, length:LEAST-MOST, distinct"),
        ("", "choose football"),
        ("keywords:", "names no words: write keywords:WORD,SOME PHRASE, with commas between keywords"),
        ("keywords:, ,", "names no words"),
        ("keywords:vento,!!", "names a keyword without words"),
        ("no_such_file.py:f", "no_such_file.py does not exist"),
        ("mine.py", "choose football"),
        ("mine.txt:f", "choose football"),
    ],
)
def test_a_bad_name_says_what_to_write(name, words):
    assert words in complaint(name)


def test_a_folder_is_no_reward_file(tmp_path):
    (tmp_path / "mine.py").mkdir()
    assert "does not exist" in complaint(f"{tmp_path}/mine.py:f")


def test_a_file_that_is_no_text_cannot_be_run(tmp_path):
    (tmp_path / "mine.py").write_bytes(b"\xff\xfe\x00bad")
    assert "cannot be run: " in complaint(f"{tmp_path}/mine.py:f")


# --- advantages ---------------------------------------------------------------------------------

ONE_HIT = np.array([1.0, 0, 0, 0, 0, 0, 0, 0])


def test_golden_advantage_of_one_hit_in_eight():
    advantages = group_advantages(ONE_HIT, 8, "group")
    assert advantages[0] == pytest.approx(2.474173932086831, rel=1e-14)
    assert advantages.sum() == pytest.approx(0, abs=1e-14) and advantages.dtype == np.float64


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e9 + 0.1, -3.3])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_groups_are_exactly_zero(value, scale):
    rewards = np.concatenate([np.full(7, value), np.arange(7.0)])
    advantages = group_advantages(rewards, 7, scale)
    assert advantages[:7].tolist() == [0.0] * 7
    assert (advantages[[7, -1]] != 0).all()


def test_groups_do_not_leak():
    together = group_advantages(np.concatenate([ONE_HIT, 100 * ONE_HIT + 5]), 8, "group")
    apart = [group_advantages(rewards, 8, "group") for rewards in (ONE_HIT, 100 * ONE_HIT + 5)]
    assert np.array_equal(together, np.concatenate(apart))


def test_scaling_by_the_batch_and_not_at_all():
    rewards = np.array([0.0, 2.0, 10.0, 30.0])
    centred = np.array([-1.0, 1.0, -10.0, 10.0])
    assert group_advantages(rewards, 2, "none") == pytest.approx(centred, rel=1e-15)
    assert group_advantages(rewards, 2, "batch") == pytest.approx(centred / (rewards.std(ddof=1) + 1e-4), rel=1e-14)
    by_group = centred / (np.array([2.0, 2.0, 20.0, 20.0]) / math.sqrt(2) + 1e-4)
    assert group_advantages(rewards, 2, "group") == pytest.approx(by_group, rel=1e-14)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_completion_that_cannot_be_scored_has_no_say(scale):
    rewards = np.array([1.0, np.nan, 0.0, 0.5])
    advantages = group_advantages(rewards, 4, scale)
    assert advantages[1] == 0
    assert np.array_equal(np.delete(advantages, 1), group_advantages(np.delete(rewards, 1), 3, scale))


@pytest.mark.parametrize("rewards", [[np.nan] * 4, [1.0, np.nan, np.nan, np.nan], [1.0, 1.0, np.nan, 1.0]])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_fewer_than_two_different_rewards_give_zeros(rewards, scale):
    assert group_advantages(np.array(rewards), 4, scale).tolist() == [0.0] * 4
