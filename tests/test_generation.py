"""Sampling on both twins, against a slow NumPy version that has no cache and one row at a time."""

from itertools import zip_longest

import numpy as np
import pytest
from setups import small_setup
from small_models import END, SMALL, TWINS, open_twin, small_model

from faisca.backend import Sampling
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.streams import uniforms
from faisca.training.generate import ROWS_AT_A_TIME, complete, encode_prompt, headline

FREE = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=10)
MIXED = [[END], [END, 1, END, 3, 4], [END, 5], [END, 6, 7, 8, 9, 10, 0, 1, 2], [END, 1, 2, 3, 4]]


@pytest.fixture(scope="module")
def model(twin):
    return small_model(twin)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["O vento sopra forte no norte", "Chove no sul e no norte"] * 5, 280)


def draws(rows: int, sampling: Sampling = FREE, seed: int = 0) -> np.ndarray:
    return uniforms(seed, "test", step=0, rows=rows, columns=sampling.max_new_tokens)


def columns(twin, model, prompts, sampling=FREE, numbers=None) -> np.ndarray:
    """What the twin yields, side by side: [B, columns]."""
    numbers = draws(len(prompts), sampling) if numbers is None else numbers
    found = twin.generate(
        model=model, prompts=prompts, uniforms=numbers, sampling=sampling, end_of_text=(END,), log_probs=None
    )
    return np.stack(list(found), axis=1)


def completions(*arguments, **more) -> list[list[int]]:
    return [[int(token) for token in row if token >= 0] for row in columns(*arguments, **more)]


def candidates(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities [V] after top-k, then top-p, zero where a token is filtered out."""
    scaled = logits.astype(np.float64) / sampling.temperature
    likeliest_first = np.argsort(-scaled)[: sampling.top_k or None]
    probs = np.zeros(len(logits))
    probs[likeliest_first] = np.exp(scaled[likeliest_first] - scaled.max())
    probs /= probs.sum()
    before = np.cumsum(probs[likeliest_first]) - probs[likeliest_first]
    probs[likeliest_first[before >= sampling.top_p]] = 0
    return probs / probs.sum()


def slow_completion(twin, model, prompt: list[int], sampling: Sampling, numbers: np.ndarray) -> list[int]:
    """One row, all logits computed anew for each token; the token by the inverse of the cumulative sum."""
    ids = list(prompt)
    for number in numbers:
        logits = twin.logits(model=model, tokens=np.array([ids]))[0, -1]
        if sampling.temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            ids.append(int((np.cumsum(candidates(logits, sampling)) <= number).sum()))
        if ids[-1] == END or len(ids) > SMALL.context:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (3.0, 0, 1.0),
        (1.0, 5, 1.0),
        (1.0, 12, 1.0),
        (1.0, 99, 1.0),
        (1.0, 0, 0.7),
        (2.0, 6, 0.6),
        (1.0, 1, 1.0),
        (1.0, 0, 1e-6),
        (0.0, 0, 1.0),
        (0.0, 5, 0.5),
    ],
)
def test_the_cache_and_the_batch_change_no_token(twin, model, temperature, top_k, top_p):
    sampling = Sampling(temperature, top_k, top_p, max_new_tokens=10)
    numbers = draws(len(MIXED), sampling)
    slow = [slow_completion(twin, model, *row) for row in zip(MIXED, [sampling] * 5, numbers, strict=True)]
    assert completions(twin, model, MIXED, sampling, numbers) == slow


def test_the_slow_version_is_not_the_same_whatever_the_sampling(twin, model):
    """The comparison above can fail: other settings give other tokens."""
    numbers = draws(len(MIXED))
    settings = [FREE, Sampling(0.5, 0, 1.0, 10), Sampling(1.0, 3, 1.0, 10), Sampling(1.0, 0, 0.5, 10)]
    found = [completions(twin, model, MIXED, sampling, numbers) for sampling in settings]
    assert all(a != b for i, a in enumerate(found) for b in found[i + 1 :])


def test_rows_stop_at_their_own_end_of_text(twin, model):
    table = columns(twin, model, [[END]] * 40)
    rows = [[int(token) for token in row if token >= 0] for row in table]
    lengths = [len(row) for row in rows]
    assert all(END not in row[:-1] for row in rows)
    assert all(row[-1] == END or len(row) == 10 for row in rows)
    assert len(set(lengths)) > 3 and any(row[-1] != END for row in rows), "not every way to end was met"
    for row, length in zip(table, lengths, strict=True):
        assert (row[:length] >= 0).all() and (row[length:] == -1).all()
    assert table.shape[1] == max(lengths)  # no column after the last token


def test_rows_stop_at_whichever_end_comes_first(twin, model):
    numbers, prompts = draws(40), [[END]] * 40
    given = {"model": model, "prompts": prompts, "uniforms": numbers, "sampling": FREE}
    never = np.stack(list(twin.generate(**given, end_of_text=(-5,), log_probs=None)), axis=1)
    frequent = [int(i) for i in np.bincount(never[never >= 0]).argsort()[-3:]]
    found = np.stack(list(twin.generate(**given, end_of_text=tuple(frequent), log_probs=None)), axis=1)
    met = set()
    for free, row in zip(never.tolist(), found.tolist(), strict=True):
        first = next((n for n, token in enumerate(free) if token in frequent), len(free) - 1)
        assert [token for token in row if token >= 0] == free[: first + 1]
        met |= {free[first]} & set(frequent)
    assert met == set(frequent), "not every end was met"


def test_mixed_prompts_give_what_each_gives_alone(twin, model):
    numbers = draws(len(MIXED))
    alone = [completions(twin, model, [prompt], FREE, numbers[i : i + 1])[0] for i, prompt in enumerate(MIXED)]
    assert completions(twin, model, MIXED, FREE, numbers) == alone
    assert len({len(row) for row in alone}) > 1


def test_temperature_zero_is_the_likeliest_token_whatever_the_draws(twin, model):
    greedy = Sampling(0.0, 0, 1.0, 10)
    found = [completions(twin, model, MIXED, greedy, draws(len(MIXED), seed=seed)) for seed in (0, 1)]
    assert found[0] == found[1]
    for prompt, completion in zip(MIXED, found[0], strict=True):
        ids = np.array([prompt + completion])
        likeliest = twin.logits(model=model, tokens=ids[:, :-1])[0].argmax(1)
        assert completion == likeliest[len(prompt) - 1 :].tolist()


@pytest.mark.parametrize("number", [0.0, np.nextafter(np.float32(1), np.float32(0))])
@pytest.mark.parametrize("sampling", [FREE, Sampling(1.0, 4, 1.0, 10), Sampling(1.0, 0, 0.4, 10)])
def test_extreme_draws_pick_the_first_and_the_last_candidate(twin, model, sampling, number):
    prompt = [END, 1, 2]
    first = completions(twin, model, [prompt], sampling, np.full((1, 10), number, np.float32))[0][0]
    kept = np.flatnonzero(candidates(twin.logits(model=model, tokens=np.array([prompt]))[0, -1], sampling))
    assert first == (kept[0] if number == 0 else kept[-1])


@pytest.mark.parametrize("others", [[], [[END]], [[END, 1], [END, 2, 3]]])
def test_a_prompt_that_fills_the_context_gets_exactly_one_token(twin, model, others):
    full = [END, *range(11), 1, 2, 3, 4]
    assert len(full) == SMALL.context
    rows = completions(twin, model, [*others, full])
    assert len(rows[-1]) == 1
    assert rows[-1] == slow_completion(twin, model, full, FREE, draws(len(rows))[-1])


def test_rows_end_where_the_context_is_full(twin, model):
    long = Sampling(1.0, 0, 1.0, max_new_tokens=100)
    rows = completions(twin, model, [[END, 1, 2]] * 20, long)
    longest = max(map(len, rows))
    assert longest == SMALL.context - 3 + 1  # the last position of the context still predicts a token
    assert all(row[-1] == END or len(row) == longest for row in rows)


def test_one_token_at_most(twin, model):
    assert columns(twin, model, MIXED[:1], Sampling(1.0, 0, 1.0, 1)).shape == (1, 1)
    assert [len(row) for row in completions(twin, model, MIXED, Sampling(1.0, 0, 1.0, 1))] == [1] * 5


def test_a_sequence_beyond_the_context_is_an_error_not_garbage(twin, model):
    with pytest.raises(ValueError, match="17 positions do not fit the context of 16"):
        twin.logits(model=model, tokens=np.zeros((1, 17), np.int64))


def test_generation_leaves_the_model_in_evaluation_mode_and_its_weights_alone(twin):
    model = small_model(twin)
    before = twin.get_parameters(model=model)
    columns(twin, model, MIXED)
    assert not model.training
    assert all(np.array_equal(value, before[name]) for name, value in twin.get_parameters(model=model).items())


# --- the core's part ----------------------------------------------------------------------------


def test_a_row_does_not_depend_on_the_rows_beside_it(twin, model):
    def rows(count: int) -> list[list[int]]:
        prompts = [MIXED[i % len(MIXED)] for i in range(count)]
        return list(complete(small_setup(twin), model, prompts, FREE, numbers[:count]))

    numbers = uniforms(3, "rows", step=0, rows=ROWS_AT_A_TIME + 7, columns=FREE.max_new_tokens)
    many = rows(ROWS_AT_A_TIME + 7)
    assert rows(3) == many[:3] and len(many) == ROWS_AT_A_TIME + 7
    assert many == completions(twin, model, [MIXED[i % len(MIXED)] for i in range(len(many))], FREE, numbers)
    assert len({tuple(row) for row in many}) > ROWS_AT_A_TIME / 2


def test_seed_purpose_and_step_change_the_completions(twin, model):
    def rows(**other) -> list[list[int]]:
        chosen = {"seed": 3, "purpose": "rows", "step": 0} | other
        numbers = uniforms(**chosen, rows=8, columns=FREE.max_new_tokens)
        return list(complete(small_setup(twin), model, [[END]] * 8, FREE, numbers))

    assert rows() == rows()
    assert all(rows() != rows(**other) for other in ({"seed": 4}, {"purpose": "others"}, {"step": 1}))


def test_both_twins_write_the_same():
    found = []
    for name in TWINS:
        twin = open_twin(name)
        found.append(completions(twin, small_model(twin), MIXED * 8, FREE))
    longest = max(len(row) for rows in found for row in rows)
    assert longest > 5
    assert all(a == b for a, b in zip_longest(*found)), "near-equal probabilities may differ; so few rows should not"


def test_prompts_begin_with_end_of_text(tokenizer):
    assert encode_prompt(tokenizer, "", 8) == [tokenizer.end_of_text]
    ids = encode_prompt(tokenizer, "no norte", 8)
    assert ids[0] == tokenizer.end_of_text and tokenizer.decode(ids) == "no norte"


def test_a_prompt_may_fill_the_context_but_not_exceed_it(tokenizer):
    ids = encode_prompt(tokenizer, "xyzxyz", 7)
    assert len(ids) == 7
    with pytest.raises(FaiscaError, match="has 7 tokens, but the model's context is 6: shorten it"):
        encode_prompt(tokenizer, "xyzxyz", 6)


def test_end_of_text_in_a_prompt_is_text_like_any_other(tokenizer):
    ids = encode_prompt(tokenizer, "<|endoftext|>", 64)
    assert ids.count(tokenizer.end_of_text) == 1 and len(ids) > 2


def test_a_headline_is_one_line(tokenizer):
    completion = [*tokenizer.encode("  sopra\n\nforte "), tokenizer.end_of_text]
    assert headline(tokenizer, "O vento", completion) == "O vento sopra forte"


def test_a_space_at_the_end_of_a_prompt_is_left_out():
    """With it the model would go on inside of a word: no token after it begins with a space."""
    tokenizer = Tokenizer.train(["O vento sopra", "O Porto vence"] * 5, 270)
    assert encode_prompt(tokenizer, "O vento ", 16) == encode_prompt(tokenizer, "O vento", 16)
    assert encode_prompt(tokenizer, " ", 16) == [tokenizer.end_of_text]
    assert headline(tokenizer, "O ", tokenizer.encode("s ventos")) == "Os ventos"  # as the model meant it
