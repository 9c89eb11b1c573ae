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
from faisca.rewards.named import labels, load_reward
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
        ("football:2", "choose football"),
        ("regex:(", "is no regular expression"),
        ("regex:", "choose football"),
        ("exact:", "choose football"),
        ("length:90-20", "is no window of characters: write length:20-90"),
        ("length:20", "is no window"),
        ("length:0-0", "is no window"),
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


# --- ours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "completions", "wanted"),
    [
        ("regex:^\\d+$", ["12", "a1", "", " 1"], [1, 0, 0, 0]),
        ("regex:a:b", ["a:b", "ab"], [1, 0]),
        ("length:2-4", ["", "a", "ab", "abcd", " abcd\n", "abcdef", "a" * 9], [0, 0.5, 1, 1, 1, 0.5, 0]),
        ("length:0-3", ["", "abc", "abcd"], [1, 1, 2 / 3]),
        ("football", ["golo golo golo", "golo"], [1, 1]),
        ("distinct", ["a b", "a b", "c d", "c c"], [2 / 3, 2 / 3, 1, 0.5]),
        ("distinct", ["x x x x"], [0.25]),
        ("distinct", ["", "!"], [1, 1]),
    ],
)
def test_what_our_rewards_give(name, completions, wanted):
    assert score(name, completions).tolist() == pytest.approx(wanted)


def test_distinct_compares_completions_of_one_prompt():
    samples = Samples(["a", "a", "a", "b"], ["p", "q", "p", "q"], [[]] * 4)
    assert Judge(("distinct",)).score(samples).total.tolist() == [0, 1, 0, 1]


def test_exact_is_the_text_of_a_column():
    samples = Samples([" 4\n", "4", "5", "four"], ["2 + 2?"] * 4, [[]] * 4, {"answer": ["4", 4, 4, "Four"]})
    assert Judge(("exact:answer",)).score(samples).total.tolist() == [1, 1, 0, 0]


def test_a_keyword_again_and_again_counts_once_and_shows_as_a_share_of_words():
    assert load_reward("keywords:vento norte")(["vento norte vento norte"]) == [1.0]
    assert football.word_share("Golo! Golo do Porto") == 0.75 and football.word_share("") == 0


# --- what a function is told --------------------------------------------------------------------

CALLED = {
    "completions": "def f(completions): return [len(c) for c in completions]",
    "another name": "def f(texts): return [len(c) for c in texts]",
    "as TRL calls it": "def f(prompts, completions, **kwargs): return [len(c) for c in completions]",
    "by its column": "def f(completions, answer): return [a - 1 for a in answer]",
    "the rest": "def f(texts, **rest): return [a - 1 for a in rest['answer']]",
    "the rest alone": "def f(*, completions, **rest): return [len(c) for c in rest and completions]",
    "nothing but the rest": "def f(**rest): return [len(c) for c in rest['completions']]",
    "any place": "def f(*places, **rest): return [len(c) for c in places[0] if rest]",
    "token ids": "def f(completions, completion_ids): return [ids[0] for ids in completion_ids]",
    "prompts": "def f(completions, prompts): return [int(p) for p in prompts]",
    "a default": "def f(completions, level=2): return [len(c) for c in completions if level == 2]",
    "its column first": "def f(answer, completions): return [len(c) for c in completions if answer]",
    "a column under the first name": "def f(answer): return [len(c) for c in answer]",
    "a partial": (
        "import functools\ndef g(scale, texts): return [scale * len(c) for c in texts]\nf = functools.partial(g, 1)"
    ),
}


@pytest.mark.parametrize("body", CALLED.values(), ids=CALLED)
def test_a_function_takes_what_it_names(tmp_path, body):
    judge = Judge([f"{write(tmp_path, body)}:f"])
    judge.check(["answer"], "here")
    samples = Samples(["a", "bb", "ccc"], ["1", "2", "3"], [[1, 9], [2], [3]], {"answer": [2, 3, 4]})
    assert judge.score(samples).total.tolist() == [1, 2, 3]


def test_prompts_of_messages_make_completions_of_messages_for_functions_of_a_file(tmp_path):
    body = (
        "def f(completions, prompts):\n"
        "    return [len(c[0]['content'] + p[-1]['content']) for c, p in zip(completions, prompts)]\n"
    )
    messages = [{"role": "user", "content": "abc"}]
    samples = Samples(["x", "golo"], [messages, messages], [[], []])
    scores = Judge([f"{write(tmp_path, body)}:f", "football"]).score(samples)
    assert scores.parts["f"].tolist() == [4, 7] and scores.parts["football"].tolist() == [0, 1]


# --- several ------------------------------------------------------------------------------------


def test_the_sum_is_weighted_and_leaves_out_what_is_no_number(tmp_path):
    nan = "def f(t): return [None, 1, None]\ndef g(t): return [2, 3, None]"
    path = write(tmp_path, nan)
    scores = Judge([f"{path}:f", f"{path}:g"], [10, -0.5]).score(Samples.of_texts(["a", "b", "c"]))
    assert scores.total[:2].tolist() == [-1, 8.5] and np.isnan(scores.total[2])
    assert list(scores.parts) == ["f", "g"] and scores.parts["g"][:2].tolist() == [2, 3] and not scores.failed


def test_rewards_of_one_name_are_told_apart(tmp_path):
    path = write(tmp_path, "def keywords(t): return [0] * len(t)")
    names = ["keywords:a", "keywords:b", f"{path}:keywords", "regex:a"]
    scores = Judge(names).score(Samples.of_texts(["a", "b"]))
    assert {name: values.tolist() for name, values in scores.parts.items()} == {
        "keywords": [1, 0],
        "keywords_2": [0, 1],
        "keywords_3": [0, 0],
        "regex": [1, 0],
    }


def test_names_of_rewards_are_all_different():
    files = [f"r.py:{function}" for function in ("a_2", "a", "a", "a_2")]
    assert labels(files) == ["a_2", "a", "a_3", "a_2_2"]
    assert labels(["length:1-2", "exact:x", "length:3-4"]) == ["length", "exact", "length_2"]


def test_only_completions_that_a_function_fails_for_have_no_reward(tmp_path):
    path = write(tmp_path, "def f(t): return [1 / len(x) for x in t]")
    said: list[str] = []
    judge = Judge([f"{path}:f", "length:1-1"])
    judge.say = said.append
    scores = judge.score(Samples.of_texts(["a", "", "bb", ""]))
    assert np.isnan(scores.parts["f"]).tolist() == [False, True, False, True]
    assert scores.total.tolist() == [2, 0, 0.5, 0] and scores.failed == {"f": 2}
    assert said == [
        f"grpo.reward '{path}:f' has no number for 2 of 4 completions; the first: "
        "failed: ZeroDivisionError: division by zero"
    ]


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
