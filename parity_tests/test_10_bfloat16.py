"""Rung 10: bfloat16, and what stays float32 in it. Training in bfloat16 is in test_06_trajectories.py.

A bfloat16 has 8 bits of mantissa, so each rounding is up to 2^-9 = 2e-3 of the number. Factors of
products are rounded, and what lies between two products; sums are not. A sum that were kept in
bfloat16 would stand still once it is 256 times its next term, so sums are tested here at 16,384
tokens. Where only the factors are rounded, the exact result for the rounded factors is the judge.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
from cases import GPT2, LLAMA, Twin, make_case, option_id
from close import require_close
from reference import log_softmax

from faisca.backend import Learner, Rollouts, Sampling
from faisca.config import GRPOConfig, OptimizerConfig
from faisca.parity.cases import Arrays, Case, Side
from faisca.parity.command import in_bfloat16
from faisca.parity.rungs import (
    EPSILON,
    gradients,
    log_probabilities,
    logits,
    losses,
    reinforce,
    train,
    trajectory,
    weights,
)
from faisca.parity.sampling import sample_rows
from faisca.streams import generator

MODERN = LLAMA | {"qk_norm": True}
MODELS = [{}, GPT2, {"attention_dropout": 1e-9}, MODERN]
WAYS = [({}, 0), (GPT2, 0), (GPT2, 4), (MODERN, 0)]
TOKENS = 16_384
HEAD = 5e-3  # measured: at most 2.9e-3 in norm, whatever the chunks
GRADIENT = 1.5e-2  # measured: at most 7.7e-3 in norm for the worst parameter of each model


def short(twin: Twin) -> Side:
    return in_bfloat16(twin.side)


@pytest.mark.parametrize("options", MODELS, ids=option_id)
def test_forward_and_losses(yardstick: Side, either: Twin, options: dict[str, Any]):
    case = make_case(**options)
    found = require_close(logits(yardstick, case), logits(short(either), case), 3e-2)
    assert found[0].scaled > 1e-5, "something was computed in bfloat16"
    require_close(losses(yardstick, case), losses(short(either), case), 1e-2)
    require_close(log_probabilities(yardstick, case), log_probabilities(short(either), case), 3e-2)


def test_losses_are_summed_in_float32(either: Twin):
    """1,000 equal losses: summed in bfloat16, they would be off by percents."""
    case = make_case(rows=50, length=20)
    loss = either.side.backend.evaluate
    inputs, targets = case.batch()
    model = case.make_model(short(either))
    parts = sum(loss(model=model, inputs=inputs[i : i + 1], targets=targets[i : i + 1]) for i in range(50))
    assert loss(model=model, inputs=inputs, targets=targets) == pytest.approx(parts, rel=1e-5)


def test_norms_take_the_residual_stream_in_float32(twin: Twin):
    """Rounded to bfloat16, 100 and 100.2 are the same."""
    case = make_case()
    x = (100 + generator(0, "residual stream").standard_normal((2, 5, case.model.dim))).astype(np.float32)
    norm = case.make_model(short(twin)).transformer_blocks[0].norm1
    wide, name = x.astype(np.float64), "transformer_blocks.0.norm1"
    normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + case.model.norm_epsilon)
    expected = normed * case.parameters[f"{name}.weight"] + case.parameters[f"{name}.bias"]
    require_close({"normed": expected}, {"normed": twin.inside.normalise(norm, x)}, 4e-3)


# --- the head, against float64 on the rounded factors ------------------------------------------------


@functools.cache
def head_fixture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states and head as bfloat16 numbers, and targets drawn from the model's own distribution."""
    random = generator(0, "bfloat16 head")
    hidden, head = (rounded(random.standard_normal((rows, 24))) for rows in (TOKENS, 101))
    cumulative = np.exp(log_softmax((hidden @ head.T).astype(np.float64))).cumsum(1)
    return hidden, head, (cumulative < random.random((TOKENS, 1))).sum(1).clip(max=100)


def rounded(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, half to even, as float32."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def exact_head(temperature: float, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p of the targets in float64, and the gradients of Σ upstream · log p."""
    hidden, head, targets = (array.astype(np.float64) for array in head_fixture())
    targets = targets.astype(int)
    log_p = log_softmax(hidden @ head.T / temperature)
    d_logits, rows = -np.exp(log_p), np.arange(TOKENS)
    d_logits[rows, targets] += 1
    d_logits *= upstream[:, None] / temperature
    return log_p[rows, targets], d_logits @ head, d_logits.T @ hidden


@pytest.mark.parametrize("chunk", [64, 1000, TOKENS])
def test_cross_entropy_of_thousands_of_tokens(either: Twin, chunk: int):
    hidden, head, targets = head_fixture()
    loss, d_hidden, d_head = either.narrow.cross_entropy(hidden, head, targets, chunk)
    log_p, expected_hidden, expected_head = exact_head(1.0, -np.ones(TOKENS))
    assert loss == pytest.approx(-log_p.sum(), rel=1e-5)
    require_close(
        {"hidden": expected_hidden, "head": expected_head}, {"hidden": d_hidden, "head": d_head}, HEAD, "norm"
    )


def test_cross_entropy_of_single_tokens(either: Twin):
    """Neither logits nor exponentials are rounded: in bfloat16, each loss would be off by 1e-3."""
    hidden, head, targets = head_fixture()
    expected = -exact_head(1.0, np.ones(TOKENS))[0][:20]
    found = [either.narrow.cross_entropy(hidden[i : i + 1], head, targets[i : i + 1], 8)[0] for i in range(20)]
    assert np.array(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_of_thousands_of_tokens(
    twin: Twin, temperature: float, keep: bool, monkeypatch: pytest.MonkeyPatch
):
    hidden, head, targets = head_fixture()
    inside = twin.narrow
    if not keep:
        monkeypatch.setattr(inside.log_probabilities, "KEPT_EXPONENTIALS", 0)
    upstream = generator(0, "upstream").standard_normal(TOKENS).astype(np.float32)
    log_p, _, d_hidden, d_head = inside.log_probs(hidden, head, targets, temperature, 128, upstream)
    expected, expected_hidden, expected_head = exact_head(temperature, upstream)
    require_close({"log p": expected}, {"log p": log_p}, 2e-6)
    require_close(
        {"hidden": expected_hidden, "head": expected_head}, {"hidden": d_hidden, "head": d_head}, HEAD, "norm"
    )


# --- whole models -------------------------------------------------------------------------------------


def test_the_head_multiplies_bfloat16(twin: Twin):
    """A change of the head that bfloat16 cannot hold changes nothing: in no loss, no logit and no sample."""
    case = make_case()
    head = rounded(case.parameters["out_head.weight"])
    one, other = (
        dataclasses.replace(case, parameters=case.parameters | {"out_head.weight": values.astype(np.float32)})
        for values in (head, head * (1 + 2.0**-11))
    )
    assert not np.array_equal(one.parameters["out_head.weight"], other.parameters["out_head.weight"])
    for measure in (logits, losses, log_probabilities, next_tokens):
        require_close(measure(short(twin), one), measure(short(twin), other), 0.0)
        require_different(measure(twin.side, one), measure(twin.side, other))


def next_tokens(side: Side, case: Case) -> Arrays:
    """One token for each of many uniform numbers, so many that a small change of the logits shows."""
    rows, sampling = 4000, Sampling(1.0, 0, 1.0, 1)
    draws = (np.arange(rows, dtype=np.float32) / rows)[:, None]
    return {"tokens": sample_rows(side, case, [[1]] * rows, draws, sampling)}


def require_different(one: Arrays, other: Arrays) -> None:
    assert all(not np.array_equal(one[name], other[name]) for name in one)


def test_probabilities_are_float32(twin: Twin):
    """A head of zeros makes every token as likely: its log-probability, -log V, has more digits than a bfloat16."""
    case = make_case(tie_embeddings=False)
    head = np.zeros_like(case.parameters["out_head.weight"])
    case = dataclasses.replace(case, parameters={**case.parameters, "out_head.weight": head})
    for values in log_probabilities(short(twin), case).values():
        assert np.allclose(values[values != 0], -np.log(len(head)), rtol=1e-6)
    inputs, targets = case.batch()
    loss = twin.side.backend.evaluate(model=case.make_model(short(twin)), inputs=inputs, targets=targets)
    assert loss / targets.size == pytest.approx(np.log(len(head)), rel=1e-6)


@pytest.mark.parametrize("options", MODELS, ids=option_id)
def test_gradients(yardstick: Side, twin: Twin, options: dict[str, Any]):
    case = make_case(**options)
    both = [
        {"all": np.concatenate([gradient.ravel() for gradient in gradients(side, case).values()])}
        for side in (yardstick, short(twin))
    ]
    require_close(*both, 3e-2, "norm")


@functools.cache
def long_case(options: tuple[tuple[str, Any], ...]) -> Case:
    """So few tokens that each occurs more than a thousand times."""
    return make_case(rows=TOKENS // 32, length=32, num_layers=1, vocabulary_size=13, **dict(options))


@pytest.mark.parametrize(("options", "micro"), WAYS, ids=["plain", "GPT-2", "micro-batches", "Llama"])
def test_every_gradient_over_thousands_of_tokens(yardstick: Side, either: Twin, options: dict[str, Any], micro: int):
    case = long_case(tuple(options.items()))
    require_close(train_gradients(yardstick, case, 0), train_gradients(short(either), case, micro), GRADIENT, "norm")


@pytest.mark.parametrize("options", [{}, GPT2, MODERN], ids=option_id)
def test_every_policy_gradient_over_thousands_of_tokens(yardstick: Side, twin: Twin, options: dict[str, Any]):
    case = long_case(tuple(options.items()))
    require_close(policy_gradients(yardstick, case), policy_gradients(short(twin), case), GRADIENT, "norm")


@functools.cache
def train_gradients(side: Side, case: Case, micro: int) -> Arrays:
    """Gradients of one step by name, `micro` rows at a time (0: all)."""
    config = OptimizerConfig(epsilon=EPSILON, beta1=0.0, clip_norm=0.0)
    return first_moments(side, train(side, case, config, steps=1, micro_batch_size=micro)[0])


@functools.cache
def policy_gradients(side: Side, case: Case) -> Arrays:
    """Gradients of one policy update by name: Adam's first moment, with beta1 = 0."""
    config = GRPOConfig(epsilon=EPSILON, beta1=0.0, clip_norm=0.0, kl_weight=0.0)
    model, (tokens, _) = case.make_model(side), case.batch()
    ones, random = np.ones((len(tokens), tokens.shape[1] - 1), np.float32), generator(0, "advantages")
    old = side.backend.token_log_probs(model=model, tokens=tokens, temperature=config.temperature, places=None)
    advantages = (0.5 + random.standard_normal(len(tokens))).astype(np.float32)
    rollouts = Rollouts(tokens, ones, advantages, old, old, step_tokens=float(ones.sum()))
    learner = side.backend.make_learner(model=model, config=config)
    side.backend.grpo_step(learner=learner, rollouts=rollouts, config=config, learning_rate=0.0, dropout_seed=0)
    return first_moments(side, learner)


def first_moments(side: Side, learner: Learner) -> Arrays:
    """Adam's, by name: with beta1 = 0, the gradients of its last step."""
    state = side.backend.get_optimizer_state(learner=learner)
    return {name.removeprefix("first_moment."): value for name, value in state.items() if name.startswith("first")}


def test_weights_and_moments_stay_float32(twin: Twin):
    """What bfloat16 cannot hold survives in the weights."""
    case = make_case()
    require_close(dict(case.parameters), weights(short(twin), case), 0.0)


def test_training_and_grpo(yardstick: Side, twin: Twin):
    case = dataclasses.replace(make_case(), steps=20)
    require_close({"loss": trajectory(yardstick, case)["loss"]}, {"loss": trajectory(short(twin), case)["loss"]}, 1e-2)
    for a, b in zip(reinforce(yardstick, case)[1], reinforce(short(twin), case)[1], strict=True):
        for name in ("entropy", "ratio_mean"):
            assert a[name] == pytest.approx(b[name], rel=5e-2), name
