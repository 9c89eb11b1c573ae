"""What an adapter drops: of what it reads, in training alone, from the step's seed; in GRPO nothing else drops."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import LLAMA, Twin, make_adapted
from close import require_close
from reference import Reference
from test_11_modes import LOOKS
from test_20_lora import adapter_config

from faisca.backend import Rollouts
from faisca.certificate import observe
from faisca.certificate.certify import units
from faisca.certificate.work import Work
from faisca.config import GRPOConfig
from faisca.parameters import in_adapter
from faisca.parity.cases import Case, completions
from faisca.parity.rungs import learner_parameters, train

CONFIG = GRPOConfig(epsilon=1e-6, kl_weight=0.0, micro_batch_size=4)


def test_dropout_is_of_what_the_adapter_reads(twin: Twin):
    """Of 400 ones that A averages half are dropped: every row comes near 1, and none is 0 or 2."""
    wide = {"dim": 400, "num_heads": 1, "hidden_dim": 4, "num_layers": 1, "lora_rank": 1, "lora_alpha": 1.0}
    case = make_adapted(lora_targets=("up",), lora_dropout=0.5, **wide)
    up = "transformer_blocks.0.feed_forward.up.lora.up"
    case.parameters[f"{up}.a"][...] = 1 / 400
    case.parameters[f"{up}.b"][...] = 1.0
    model, inside = case.make_model(twin.side), twin.inside
    linear, ones = model.transformer_blocks[0].feed_forward.up, inside.array(np.ones((64, 400), np.float32))
    adapter = lambda x, product: linear.lora(x, product, linear.weight, x)  # noqa: E731
    product = lambda x, weight: x @ weight.T  # noqa: E731
    assert np.allclose(inside.numpy(adapter(ones, product)), 1, atol=1e-5)
    model.train()
    inside.seed(3)
    found = inside.numpy(adapter(ones, product))
    assert np.array_equal(found, np.repeat(found[:, :1], 4, axis=1))
    assert 0.03 < found[:, 0].std() < 0.08 and abs(found.mean() - 1) < 0.03


def test_dropout_leaves_the_base_alone(twin: Twin):
    """With B at 0 a training step's loss is that of evaluation."""
    case = make_adapted(lora_dropout=0.9, **LLAMA)
    case.parameters.update({n: 0 * v for n, v in case.parameters.items() if in_adapter(n) and n.endswith(".b")})
    _, (metrics,) = train(twin.side, case, adapter_config(), steps=1)
    expected = Reference(case.model, case.parameters).losses(*case.batch()).mean()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)


# --- GRPO ---------------------------------------------------------------------------------------


def updates(twin: Twin, case: Case, *given: tuple[int, float]) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Metrics of updates with these seeds and rates on the case's completions, and the adapter after them."""
    learner, rollouts = policy(twin, case)
    return updated(twin, learner, rollouts, *given), learner_parameters(twin.side, learner)


def policy(twin: Twin, case: Case) -> tuple[Any, Rollouts[np.ndarray]]:
    """A learner, and completions with what its policy thought of them when they were sampled."""
    backend = twin.side.backend
    learner = backend.make_learner(model=case.make_model(twin.side), config=CONFIG)
    tokens, mask, advantages = completions(case)
    old = backend.token_log_probs(model=learner.model, tokens=tokens, temperature=1.0, places=None)
    return learner, Rollouts(tokens, mask, advantages, old, old, float(mask.sum()))


def updated(twin: Twin, learner: Any, rollouts: Rollouts[np.ndarray], *given: tuple[int, float]) -> Any:
    step = twin.side.backend.grpo_step
    return twin.side.backend.read_metrics(
        metrics=[
            step(learner=learner, rollouts=rollouts, config=CONFIG, learning_rate=rate, dropout_seed=seed)
            for seed, rate in given
        ]
    )


def dropping(rate: float = 0.5, **options: Any) -> Case:
    return make_adapted(lora_dropout=rate, **LLAMA | {"num_layers": 1} | options, rows=8, length=16)


def test_a_policys_adapter_drops_what_the_seed_says(stepped: Twin):
    """Without a rate the seed says nothing and the first ratio is 1; with one, the same seed does the same."""
    still, same = (updates(stepped, dropping(0.0), (seed, 1e-3), (9, 1e-3)) for seed in (1, 2))
    assert still[0] == same[0] and still[0][0]["ratio_max"] == pytest.approx(1, abs=1e-5)
    require_close(still[1], same[1], 0.0)
    one, again, other = (updates(stepped, dropping(), (seed, 1e-3), (9, 1e-3)) for seed in (1, 1, 2))
    assert one[0] == again[0]
    require_close(one[1], again[1], 0.0)
    first, second = one[0][0], other[0][0]
    assert first["log_ratio_max"] > 1e-2 and first["log_ratio_mean"] != second["log_ratio_mean"]
    assert first["log_ratio_max"] != still[0][0]["log_ratio_max"]
    assert all(not np.array_equal(value, other[1][name]) for name, value in one[1].items())


def test_every_micro_batch_drops_anew(twin: Twin):
    """Two micro-batches of the same rows: were their masks the same, each ratio would come twice."""
    learner, rollouts = policy(twin, dropping())
    halves = {name: np.concatenate([value[:4]] * 2) for name, value in vars(rollouts).items() if np.ndim(value)}
    (both,) = updated(twin, learner, dataclasses.replace(rollouts, **halves, step_tokens=1.0), (3, 0.0))
    first = {name: value[:4] for name, value in halves.items()}
    (one,) = updated(twin, learner, dataclasses.replace(rollouts, **first, step_tokens=1.0), (3, 0.0))
    assert one["log_ratio_mean"] > 1e-2
    assert both["log_ratio_mean"] != pytest.approx(2 * one["log_ratio_mean"], rel=1e-3)


def test_a_policys_own_dropout_stays_off(stepped: Twin):
    """With B at 0 the adapter's is without effect, and so is the model's: every ratio is 1."""
    case = dropping(0.5, dropout=0.5, attention_dropout=0.5)
    case.parameters.update({n: 0 * v for n, v in case.parameters.items() if in_adapter(n) and n.endswith(".b")})
    (first, second), _ = updates(stepped, case, (1, 1e-2), (2, 0.0))
    assert first["ratio_max"] == pytest.approx(1, abs=1e-5) and first["log_ratio_max"] < 1e-5
    assert second["log_ratio_max"] > 1e-3


@pytest.mark.parametrize("look", LOOKS)
def test_what_looks_at_a_policy_drops_nothing(stepped: Twin, look: str):
    """Sampling, old and reference log-probabilities: right after an update as in a model that never drops."""
    dropped, still = dropping(), dropping(0.0)
    learner, rollouts = policy(stepped, dropped)
    updated(stepped, learner, rollouts, (1, 0.0))
    fresh = still.make_model(stepped.side)
    expected, found = (np.asarray(LOOKS[look](stepped, model)) for model in (fresh, learner.model))
    require_close({look: expected}, {look: found}, 0.0)


def test_on_both_twins_a_rate_near_0_is_none(twin: Twin):
    """The path with dropout, in which nothing is dropped, is the one without."""
    (_, plain), (_, rare) = (updates(twin, dropping(rate), (1, 1e-3), (2, 1e-3)) for rate in (0.0, 1e-12))
    require_close(plain, rare, 1e-6)


def test_the_certificate_sees_that_a_policys_adapter_drops(twin: Twin):
    """The same seed the same loss, another seed another one; without a rate there is nothing to see."""
    parity = twin.side
    side = observe.Side(parity.backend, parity.config)
    for rate in (0.0, 0.5):
        case = dropping(rate)
        work = Work("grpo", case.model, case.parameters, rows=4, length=16, seed=0, grpo=GRPOConfig())
        found = [observation.arrays for observation in observe.observe_dropout(side, work)]
        assert len(found) == bool(rate) and units(work) == 2 * (1 + 3 * observe.STEPS) + 1 + bool(rate)
    assert found[0]["other losses with the same dropout"] == 0 == found[0]["equal losses with another dropout"]
