"""Losses and shares: by hand, each target once, and without a trace on the training that goes on."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from setups import bare_tokenizer, small_setup
from small_models import SMALL, same_arrays, small_model
from stand_in import StandIn

from faisca.config import Config, GRPOConfig, SampleConfig, SFTConfig, TrainConfig
from faisca.data.headlines import Headlines, select_titles
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import Tokenizer
from faisca.rewards.built_in import football
from faisca.training.evaluate import (
    Yardstick,
    count_completions,
    kl_divergence,
    make_yardsticks,
    measure,
    measure_loss,
    show_samples,
)
from faisca.training.setup import Setup

TITLES = ["Chove no norte", "O vento é forte", "Golo do Porto", "Nada de novo no sul", "Ação em Évora"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TITLES * 5, 280)


@pytest.fixture(scope="module")
def config(tokenizer):
    return dataclasses.replace(SMALL, vocabulary_size=tokenizer.vocabulary_size)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return tokenise(pa.array(TITLES), tokenizer)


def setup_of(twin, tokenizer) -> Setup:
    sample = SampleConfig(count=3, counted=6, max_new_tokens=5, prompt="Ch")
    return small_setup(twin, tokenizer, {"sample": sample, "grpo": GRPOConfig(prompts=("", "O "), max_new_tokens=4)})


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def loss_by_hand(twin, model, tokens: np.ndarray, window: int) -> float:
    """Sum of -log p over every token but the first, window by window."""
    total = 0.0
    for start in range(0, len(tokens) - 1, window):
        stretch = tokens[start : start + window + 1].astype(np.int64)
        log_probs = log_softmax(twin.logits(model=model, tokens=stretch[None, :-1]))[0]
        total -= log_probs[np.arange(len(stretch) - 1), stretch[1:]].sum()
    return total


class Counting(StandIn):
    """A backend that notes its targets, with a loss of one nat each."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def evaluate(self, *, model, inputs, targets) -> float:
        assert inputs.shape == targets.shape == (4, 3)
        self.seen += targets[targets >= 0].tolist()
        return float((targets >= 0).sum())


@pytest.mark.parametrize("size", [2, 3, 4, 12, 13, 14, 24, 25, 26, 100])
def test_every_target_is_counted_once(size):
    tokens = np.arange(size) % 50
    lengths = np.arange(1, 51)
    backend = Counting()
    setup = small_setup(backend, bare_tokenizer([b"a" * length for length in lengths]))
    loss, bits = measure_loss(setup, None, Yardstick(tokens, window=3, batch_size=4))
    assert backend.seen == tokens[1:].tolist()
    assert loss == 1.0
    assert bits == pytest.approx((size - 1) / math.log(2) / lengths[tokens[1:]].sum(), rel=1e-14)


def test_the_first_batches_only():
    backend = Counting()
    setup = small_setup(backend, bare_tokenizer([bytes([i]) for i in range(100)]))
    measure_loss(setup, None, Yardstick(np.arange(100), 3, 4), 2)
    assert backend.seen == list(range(1, 25))


def test_loss_and_bits_per_byte_by_hand(twin, tokenizer, config, tokens):
    model = small_model(twin, config)
    loss, bits = measure_loss(setup_of(twin, tokenizer), model, Yardstick(tokens, window=8, batch_size=2))
    total = loss_by_hand(twin, model, tokens, 8)
    text = "".join(f"{title}\n" for title in TITLES)  # an end-of-text counts as the line break it stands for
    first = len(tokenizer.decode([int(tokens[0])]).encode())
    assert loss == pytest.approx(total / (len(tokens) - 1), rel=1e-5)
    assert bits == pytest.approx(total / math.log(2) / (len(text.encode()) - first), rel=1e-5)


def test_the_shape_of_batches_does_not_change_the_loss(twin, tokenizer, config, tokens):
    model, setup = small_model(twin, config), setup_of(twin, tokenizer)
    losses = [measure_loss(setup, model, Yardstick(tokens, 8, rows))[0] for rows in (1, 2, 5)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def train(twin, tokenizer, config, tokens, evaluating: bool):
    """Four steps with dropout; weights and optimiser state after them."""
    model = small_model(twin, dataclasses.replace(config, dropout=0.3, attention_dropout=0.2))
    learner = twin.make_learner(model=model, config=TrainConfig())
    setup = setup_of(twin, tokenizer)
    yardsticks = {name: Yardstick(tokens, 8, 2) for name in ("validation", "portugal")}
    batch = np.stack([tokens[start : start + 9] for start in range(4)]).astype(np.int32)
    for step in range(4):
        twin.train_step(
            learner=learner,
            inputs=batch[:, :-1],
            targets=batch[:, 1:],
            learning_rate=1e-2,
            micro_batch_size=2,
            dropout_seed=step,
        )
        if evaluating:
            measure(setup, model, yardsticks)
            twin.token_log_probs(model=model, tokens=batch, temperature=0.7, places=None)
    return twin.get_parameters(model=model), twin.get_optimizer_state(learner=learner)


def test_evaluation_does_not_disturb_training(twin, tokenizer, config, tokens):
    plain, evaluated = (train(twin, tokenizer, config, tokens, evaluating) for evaluating in (False, True))
    assert same_arrays(plain[0], evaluated[0])
    assert same_arrays(plain[1], evaluated[1])


def test_measures_of_a_model(twin, tokenizer, config, tokens):
    model, setup = small_model(twin, config), setup_of(twin, tokenizer)
    half = Yardstick(tokens[:20], 8, 2)
    measured = measure(setup, model, {"validation": Yardstick(tokens, 8, 2), "portugal": half})
    assert measured.portugal_validation_loss == measure_loss(setup, model, half)[0]
    assert measured.validation_loss != measured.portugal_validation_loss
    _, completions = count_completions(setup, model)
    texts = [tokenizer.decode(ids) for ids in completions]
    assert measured.distinct_share == len(set(texts)) / 6
    assert measured.football_share == sum(football(texts)) / 6
    assert measured.samples == show_samples(setup, model) and len(measured.samples) == 3
    assert all(sample.startswith("Ch") for sample in measured.samples)
    assert measure(setup, model, {"validation": Yardstick(tokens, 8, 2), "portugal": half}) == measured


def test_counted_completions_take_the_prompts_in_turn(twin, tokenizer, config):
    prompts, completions = count_completions(setup_of(twin, tokenizer), small_model(twin, config))
    assert [tokenizer.decode(ids) for ids in prompts] == ["", "O"] * 3  # its space is left out
    assert all(1 <= len(ids) <= 4 for ids in completions)


def test_yardsticks_are_validation_titles_and_those_of_portugal(tokenizer):
    urls = ["https://a.pt/1", "https://b.br/2", "https://c.pt/3", "https://d.br/4", "https://e.pt/5"]
    table = pa.table({"title": pa.chunked_array([TITLES]), "url": pa.chunked_array([urls])})
    config = Config(
        pretrain=TrainConfig(max_validation_titles=4, batch_size=6),
        sft=SFTConfig(url_contains=".pt/", batch_size=8, micro_batch_size=2),
    )
    asked = {}
    yardsticks = make_yardsticks(
        config,
        select_titles(Headlines(table, table, ""), config),
        lambda titles, label: asked.setdefault(label, titles.to_pylist()),
    )
    assert list(yardsticks) == ["validation", "portugal"]
    assert list(asked) == ["tokenising validation titles", "tokenising .pt validation titles"]
    assert yardsticks["validation"].tokens == TITLES[:4] and yardsticks["portugal"].tokens == TITLES[::2]
    assert [(yardsticks[name].window, yardsticks[name].batch_size) for name in yardsticks] == [(64, 6), (64, 2)]


def test_kl_divergence_is_a_masked_mean():
    policy, reference = np.array([[-1.0, -0.5, -2.0]]), np.array([[-1.1, -0.5, -1e4]])
    expected = (math.exp(-0.1) + 0.1 - 1) / 2
    assert kl_divergence(policy, reference, np.array([[1, 1, 0]])) == pytest.approx(expected, rel=1e-12)
    assert kl_divergence(policy, policy, np.ones((1, 3))) == 0
    assert kl_divergence(policy, reference, np.zeros((1, 3))) == 0
