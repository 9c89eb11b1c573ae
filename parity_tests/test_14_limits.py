"""Rung 14: the edges. Logits of ±100, gradients that overflow, rows without tokens, shapes of one."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import GPT2, Twin, make_case, option_id
from close import require_close
from reference import Reference, log_softmax

from faisca.backend import Learner, Rollouts, Sampling
from faisca.config import GRPOConfig, OptimizerConfig
from faisca.parity.cases import Case
from faisca.parity.rungs import learner_parameters
from faisca.parity.sampling import draw
from faisca.streams import uniforms

COLD = 0.3
"""a temperature that makes ±100 a third of a thousand: exp overflows a float32 at 88.7"""
GIVEN = 0.01
"""the margin of a tie where both sides have the same logits: only the sampler's own arithmetic rounds (9e-4 seen)"""


# --- logits of ±100 -----------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (20, 1.0), (0, 0.9), (30, 0.8)])
def test_sampling_from_large_logits(twin: Twin, top_k: int, top_p: float, offset: float):
    random, sampling = np.random.default_rng(0), Sampling(COLD, top_k, top_p, 1)
    logits = random.uniform(-100, 100, (200, 101)).astype(np.float32)
    likely = np.argsort(-logits, axis=1)[:, :6]
    np.put_along_axis(logits, likely, 100 - random.random(likely.shape).astype(np.float32), axis=1)
    logits, draws = logits + np.float32(offset), random.random(200, np.float32)
    found = twin.inside.sample(logits, draws, sampling)
    for row, uniform, token in zip(logits, draws, found, strict=True):
        wanted, margin = draw(row, float(uniform), sampling)
        assert token == wanted or margin < GIVEN
    probs, _ = twin.inside.candidates(logits, sampling)
    assert np.isfinite(probs).all() and (probs.sum(1) > 0.7).all()


def far_apart(rows: int = 40, width: int = 12, vocabulary: int = 53) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, head and targets: logits of ±30 about a middle that is another in each row, from -300 to 300."""
    random = np.random.default_rng(1)
    hidden = (3 * random.standard_normal((rows, width))).astype(np.float32)
    head = (3 * random.standard_normal((vocabulary, width))).astype(np.float32)
    hidden[:, 0], head[:, 0] = random.permutation(np.linspace(-100, 100, rows)), 3
    return hidden, head, random.integers(vocabulary, size=rows)


@pytest.mark.parametrize("chunk", [7, 40, 100])
def test_losses_of_large_logits(either: Twin, chunk: int):
    """Each row has its own largest logit: that of the chunk, or none, would overflow or leave nothing."""
    hidden, head, targets = far_apart()
    log_p = log_softmax(hidden.astype(np.float64) @ head.T.astype(np.float64))
    d_logits = np.exp(log_p)
    d_logits[np.arange(len(targets)), targets] -= 1
    expected = {"loss": -log_p[np.arange(len(targets)), targets].sum(), "d hidden": d_logits @ head}
    expected["d head"] = d_logits.T @ hidden
    found = dict(zip(expected, either.inside.cross_entropy(hidden, head, targets, chunk), strict=True))
    require_close(expected, found, 1e-4)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize("chunk", [7, 100])
def test_log_probabilities_of_large_logits(twin: Twin, chunk: int, kept: bool, monkeypatch: pytest.MonkeyPatch):
    """Exponentials are kept up to a number, and computed again beyond: here with exactly as many, and one more."""
    hidden, head, targets = far_apart()
    monkeypatch.setattr(f"faisca_{twin.name}.log_probs.KEPT_EXPONENTIALS", len(hidden) * len(head) - (not kept))
    log_p = log_softmax(hidden.astype(np.float64) @ head.T.astype(np.float64) / COLD)
    upstream = np.linspace(-1, 2, len(targets)).astype(np.float32)
    d_logits = -np.exp(log_p)
    d_logits[np.arange(len(targets)), targets] += 1
    d_logits *= upstream[:, None] / COLD
    expected = {
        "log p": log_p[np.arange(len(targets)), targets],
        "entropy": -(np.exp(log_p) * np.where(log_p > -700, log_p, 0)).sum(1),
        "d hidden": d_logits @ head,
        "d head": d_logits.T @ hidden,
    }
    found = dict(zip(expected, twin.inside.log_probs(hidden, head, targets, COLD, chunk, upstream), strict=True))
    require_close(expected, found, 3e-4)


@pytest.mark.parametrize("options", [{}, GPT2], ids=option_id)
def test_a_model_of_large_logits(either: Twin, options: dict[str, Any]):
    """Through the boundary: evaluation, log-probabilities, a training step and samples."""
    case = make_case(**options)
    inputs, targets = case.batch()
    factor = 120 / np.abs(Reference(case.model, case.parameters).logits(inputs)).max()
    for name in ("weight", "bias"):
        case.parameters[f"final_layer_norm.{name}"][...] *= factor
    reference = Reference(case.model, case.parameters)
    assert np.abs(reference.logits(inputs)).max() > 100
    backend, model = either.side.backend, case.make_model(either.side)
    losses = reference.losses(inputs, targets)
    assert backend.evaluate(model=model, inputs=inputs, targets=targets) == pytest.approx(losses.sum(), rel=1e-5)
    found = backend.token_log_probs(model=model, tokens=inputs, temperature=COLD, places=None)
    require_close({"log p": reference.token_log_probs(inputs, COLD)}, {"log p": found}, 1e-5)
    learner = backend.make_learner(model=model, config=OptimizerConfig())
    (metrics,) = train_steps(either, learner, [(inputs, targets, 0.0)])
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5) and metrics["skipped"] == 0


# --- steps that are not finite ------------------------------------------------------------------


def train_steps(twin: Twin, learner: Learner, steps: list[Any], micro_batch_size: int = 0) -> list[dict[str, float]]:
    """The metrics of training steps: inputs, targets and rate of each."""
    backend, found = twin.side.backend, []
    for inputs, targets, rate in steps:
        common = {"learning_rate": rate, "micro_batch_size": micro_batch_size, "dropout_seed": 0}
        found.append(backend.train_step(learner=learner, inputs=inputs, targets=targets, **common))
    return backend.read_metrics(metrics=found)


def overflowing() -> tuple[Case, np.ndarray]:
    """A model and tokens whose loss is finite, and whose gradient of the head is beyond float32.

    Hidden states of 1e37 and a head of 1e-37: the logits are small, but a sum of as many hidden
    states as there are tokens overflows.
    """
    case = make_case(rows=4, length=20)
    case.parameters["final_layer_norm.weight"][...] = 3e37
    case.parameters["final_layer_norm.bias"][...] = 1e37
    case.parameters["out_head.weight"][...] *= 1e-37
    return case, np.full((4, 20), 7, np.int32)


def policy_rollouts(tokens: np.ndarray, advantages: np.ndarray, mask: np.ndarray | None = None) -> Rollouts:
    ones = np.ones(tokens[:, 1:].shape, np.float32)
    mask = ones if mask is None else mask
    return Rollouts(tokens, mask, np.float32(advantages), -4 * ones, -4 * ones, float(mask.sum()))


def state_of(case: Case) -> dict[str, np.ndarray]:
    """An optimiser state whose moments are not zero."""
    random = np.random.default_rng(2)
    state = {f"first_moment.{n}": 1e-3 * random.standard_normal(v.shape) for n, v in case.parameters.items()}
    state |= {f"second_moment.{n}": 1e-3 * random.random(v.shape) for n, v in case.parameters.items()}
    return {name: value.astype(np.float32) for name, value in state.items()} | {"step": np.array(3, np.int64)}


@pytest.mark.parametrize("kind", ["train", "grpo"])
def test_a_finite_loss_with_an_infinite_gradient_changes_nothing(stepped: Twin, kind: str):
    """Weights, moments and count stay; and the step after is as if this one had not been."""
    backend, (case, tokens) = stepped.side.backend, overflowing()
    config, state, results = GRPOConfig(weight_decay=0.1, kl_weight=0.0), state_of(case), []
    for bad in (True, False):
        learner = backend.make_learner(model=case.make_model(stepped.side), config=config)
        backend.set_optimizer_state(learner=learner, state=state)
        if bad and kind == "train":
            (metrics,) = train_steps(stepped, learner, [(tokens, tokens, 1e-2)])
        elif bad:
            rollouts = policy_rollouts(tokens, np.array([1e4, 1e4, 1e4, 1e4]))
            step = backend.grpo_step(
                learner=learner, rollouts=rollouts, config=config, learning_rate=1e-2, dropout_seed=0
            )
            (metrics,) = backend.read_metrics(metrics=[step])
        if bad:
            assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"]) and metrics["skipped"] == 1
            require_close(dict(case.parameters), learner_parameters(stepped.side, learner), 0.0)
            require_close(state, backend.get_optimizer_state(learner=learner), 0.0)
        (good,) = train_steps(stepped, learner, [(tokens, np.full_like(tokens, -1), 1e-2)])
        assert good["skipped"] == 0
        after = learner_parameters(stepped.side, learner)
        results.append(after | backend.get_optimizer_state(learner=learner))
    require_close(*results, 0.0)
    assert results[0]["step"] == 4
    assert not np.array_equal(results[0]["positional_embedding.weight"], case.parameters["positional_embedding.weight"])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_policy_step_whose_loss_is_not_finite_changes_nothing(stepped: Twin, poison: float):
    backend, case, config = stepped.side.backend, make_case(), GRPOConfig(weight_decay=0.1)
    learner, state = backend.make_learner(model=case.make_model(stepped.side), config=config), state_of(case)
    backend.set_optimizer_state(learner=learner, state=state)
    rollouts = policy_rollouts(case.batch()[0], np.array([1.0, poison, 0.0, -1.0]))
    step = backend.grpo_step(learner=learner, rollouts=rollouts, config=config, learning_rate=1e-2, dropout_seed=0)
    assert backend.read_metrics(metrics=[step])[0]["skipped"] == 1
    require_close(dict(case.parameters), learner_parameters(stepped.side, learner), 0.0)
    require_close(state, backend.get_optimizer_state(learner=learner), 0.0)


# --- rows and micro-batches without tokens ------------------------------------------------------


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_a_row_without_tokens_has_no_say(twin: Twin, loss: Any, importance: Any):
    """Whatever its advantage and its tokens are, as when a truncated completion is masked."""
    case, results = make_case(), []
    config = GRPOConfig(epsilon=1e-4, loss=loss, importance=importance, max_new_tokens=19)
    mask = np.ones((4, 19), np.float32)
    mask[1], mask[2, 5:] = 0, 0
    for advantage, shift in ((0.0, 0), (1e6, 0), (-3.0, 5)):
        tokens = case.batch()[0].copy()
        tokens[1, 3:] = (tokens[1, 3:] + shift) % case.model.vocabulary_size
        learner = twin.side.backend.make_learner(model=case.make_model(twin.side), config=config)
        rollouts = policy_rollouts(tokens, np.array([1.0, advantage, -1.0, 0.5]), mask)
        step = twin.side.backend.grpo_step(
            learner=learner, rollouts=rollouts, config=config, learning_rate=1e-3, dropout_seed=0
        )
        (metrics,) = twin.side.backend.read_metrics(metrics=[step])
        assert all(np.isfinite(value) for value in metrics.values()) and metrics["grad_norm"] > 0
        results.append((metrics, learner_parameters(twin.side, learner)))
    for metrics, weights in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-6)
        require_close(results[0][1], weights, 1e-6, "absolute")


@pytest.mark.parametrize("micro_batch_size", [0, 1, 2])
def test_a_micro_batch_of_targets_that_are_left_out(either: Twin, micro_batch_size: int):
    """The loss is the mean over the others, in the whole batch, whatever stands together."""
    case = make_case()
    inputs, targets = case.batch()
    targets = targets.copy()
    targets[:2], targets[2, ::3] = -1, -1
    reference = Reference(case.model, case.parameters)
    counted = int((targets >= 0).sum())
    gradient = reference.backward(inputs, targets, np.full(targets.shape, -1 / counted))
    config = OptimizerConfig(beta1=0.0, clip_norm=0.0)
    learner = either.side.backend.make_learner(model=case.make_model(either.side), config=config)
    (metrics,) = train_steps(either, learner, [(inputs, targets, 1e-3)], micro_batch_size)
    assert metrics["loss"] == pytest.approx(reference.losses(inputs, targets).sum() / counted, rel=1e-6)
    state = either.side.backend.get_optimizer_state(learner=learner)
    found = {name: state[f"first_moment.{name}"] for name in gradient}
    require_close(gradient, found, 1e-5, "norm")
    nothing = np.full_like(targets, -1)
    (metrics,) = train_steps(either, learner, [(inputs, nothing, 0.0)], micro_batch_size)
    assert metrics == {"loss": 0.0, "grad_norm": 0.0, "skipped": 0.0}


# --- shapes of one, and shapes that are full ----------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 10**6])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 2), (3, 1), (1, 32), (2, 32)])
def test_smallest_and_fullest_batches(either: Twin, rows: int, length: int, chunk: int):
    """One row, one position, the whole context; the loss in chunks of one row, and in one chunk."""
    case = make_case(rows=rows, length=length)
    reference, (inputs, targets) = Reference(case.model, case.parameters), case.batch()
    backend, model = either.side.backend, case.make_model(either.side, loss_chunk=chunk)
    require_close({"logits": reference.logits(inputs)}, {"logits": backend.logits(model=model, tokens=inputs)}, 1e-5)
    losses = reference.losses(inputs, targets)
    assert backend.evaluate(model=model, inputs=inputs, targets=targets) == pytest.approx(losses.sum(), rel=1e-5)
    found = backend.token_log_probs(model=model, tokens=inputs, temperature=0.8, places=None)
    assert found.shape == (rows, length - 1) and found.dtype == np.float32
    if length > 1:
        require_close({"log p": reference.token_log_probs(inputs, 0.8)}, {"log p": found}, 1e-5)
    learner = backend.make_learner(model=model, config=OptimizerConfig(beta1=0.0, clip_norm=0.0))
    (metrics,) = train_steps(either, learner, [(inputs, targets, 1e-3)])
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    gradient = reference.backward(inputs, targets, np.full(targets.shape, -1 / targets.size))
    norm = np.sqrt(sum((value**2).sum() for value in gradient.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (2, 0)])
def test_where_nothing_is_predicted_there_are_no_log_probabilities(twin: Twin, shape: tuple[int, int]):
    case, tokens = make_case(), np.zeros(shape, np.int32)
    model = case.make_model(twin.side)
    found = twin.side.backend.token_log_probs(model=model, tokens=tokens, temperature=1.0, places=None)
    assert found.shape == tokens[:, 1:].shape and found.dtype == np.float32
    assert twin.side.backend.logits(model=model, tokens=tokens).shape == (*shape, 101)


@pytest.mark.parametrize("top_k", [1, 100, 101, 102, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.999999, 0.5, 1e-6])
def test_top_k_up_to_and_beyond_the_vocabulary(twin: Twin, top_k: int, top_p: float):
    random, sampling = np.random.default_rng(3), Sampling(1.0, top_k, top_p, 1)
    logits, draws = random.standard_normal((300, 101)).astype(np.float32) / 4, random.random(300, np.float32)
    logits[:, -1] = -1.0  # unlikely, and drawn all the same
    found = twin.inside.sample(logits, draws, sampling)
    for row, uniform, token in zip(logits, draws, found, strict=True):
        wanted, margin = draw(row, float(uniform), dataclasses.replace(sampling, top_k=0 if top_k > 101 else top_k))
        assert token == wanted or (top_k > 1 and margin < GIVEN)


@pytest.mark.parametrize("recomputed", [False, True], ids=["plain", "recomputed"])
def test_one_row_to_the_end_of_the_context(twin: Twin, recomputed: bool):
    """Token by token with a cache, against logits of the whole row; the last position predicts one token more."""
    case = make_case(context=12)
    model = case.make_model(twin.side, gradient_checkpointing=recomputed)
    for prompt in ([5], list(range(1, 12)), list(range(1, 13))):
        draws = uniforms(0, "limits", step=0, rows=1, columns=40)
        columns = twin.side.backend.generate(
            model=model,
            prompts=[prompt],
            uniforms=draws,
            sampling=Sampling(1.0, 0, 1.0, 40),
            end_of_text=(-5,),
            log_probs=None,
        )
        row = [int(column[0]) for column in columns]
        assert len(row) == 13 - len(prompt)
        logits = Reference(case.model, case.parameters).logits(np.array([(prompt + row)[:12]]))[0]
        for n, token in enumerate(row):
            wanted, margin = draw(logits[len(prompt) - 1 + n], float(draws[0, n]), Sampling(1.0, 0, 1.0, 40))
            assert token == wanted or margin < 1
