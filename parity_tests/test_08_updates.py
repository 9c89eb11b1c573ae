"""Rung 8: micro-batches against whole ones, and what the sampler says of its tokens against what the trainer says."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import LLAMA, Twin, make_case, setup_of
from close import require_close
from reference import Reference, log_softmax
from reference_steps import policy_loss, slope
from test_08_grpo import whole_steps

from faisca.backend import Rollouts, Sampling
from faisca.config import GRPOConfig
from faisca.parity.cases import Case, Side
from faisca.parity.rungs import learner_parameters, reinforce
from faisca.parity.sampling import make_prompts
from faisca.streams import uniforms
from faisca.training.generate import complete
from faisca.training.grpo import Completions, pack
from faisca.training.grpo_update import correction_of, rollout_mismatch, update_policy, with_log_probs

CASE = make_case(rows=6, length=12)
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")
STEEP = GRPOConfig(epsilon=1e-4, beta1=0.0, clip_norm=0.0, kl_weight=0.3, entropy_weight=0.2, clip_high=0.28)
"""beta1 0: the first moment is the gradient"""


def uneven_rollouts() -> Rollouts[np.ndarray]:
    """Six completions of many lengths, one of them masked; micro-batches of two have 13, 1 and 9 tokens."""
    tokens, random = CASE.batch()[0], np.random.default_rng(1)
    lp = Reference(CASE.model, CASE.parameters).token_log_probs(tokens, STEEP.temperature)
    lengths = np.array([2, 11, 1, 0, 2, 7])
    mask = (np.arange(11) < lengths[:, None]).astype(np.float32)
    old, ref = (np.float32(lp + 0.3 * random.standard_normal(lp.shape)) for _ in range(2))
    return Rollouts(tokens, mask, np.float32(random.standard_normal(6)), old, ref, float(mask.sum()))


def step(side: Side, config: GRPOConfig) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and gradients of one update."""
    learner = side.backend.make_learner(model=CASE.make_model(side), config=config)
    made = side.backend.grpo_step(
        learner=learner, rollouts=uneven_rollouts(), config=config, learning_rate=0.0, dropout_seed=0
    )
    (metrics,) = side.backend.read_metrics(metrics=[made])
    state = side.backend.get_optimizer_state(learner=learner)
    return metrics, {name: value for name, value in state.items() if name.startswith("first")}


@pytest.mark.parametrize("micro", [1, 2, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_that_add_up_are_those_of_the_whole(
    stepped: Twin, loss: Any, micro: int, monkeypatch: pytest.MonkeyPatch
):
    """Every average but bnpo's, which is a mean of means: of that, below."""
    monkeypatch.setattr("faisca.backend.PLACES_MULTIPLE", 4)  # else all positions are computed, counted or not
    config = dataclasses.replace(STEEP, loss=loss)
    whole, parts = (step(stepped.side, dataclasses.replace(config, micro_batch_size=rows)) for rows in (0, micro))
    gradients = [{"gradient": np.concatenate([g.ravel() for g in found[1].values()])} for found in (whole, parts)]
    watched = [
        {name: v for name, v in found[0].items() if name not in ("loss", "grad_norm")} for found in (whole, parts)
    ]
    assert watched[1] == pytest.approx(watched[0], rel=1e-5)
    if loss == "bnpo":
        difference = np.abs(gradients[0]["gradient"] - gradients[1]["gradient"]).max()
        assert difference > 0.05 * np.abs(gradients[0]["gradient"]).max()
    else:
        require_close(*gradients, 1e-5, "norm")
        assert parts[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)


def test_bnpo_of_micro_batches_is_the_mean_of_their_means(stepped: Twin):
    """Against the reference: loss, and gradient through the model."""
    config = dataclasses.replace(STEEP, loss="bnpo", micro_batch_size=2, entropy_weight=0.0)
    rollouts, reference = uneven_rollouts(), Reference(CASE.model, CASE.parameters)
    lp = reference.token_log_probs(rollouts.tokens, config.temperature)
    arrays = (rollouts.old_log_probs, rollouts.reference_log_probs, rollouts.advantages, rollouts.mask)

    def mean_of_means(moved: np.ndarray) -> float:
        parts = [[array[i : i + 2] for array in (moved, *arrays)] for i in range(0, 6, 2)]
        return float(np.mean([policy_loss(*part, config, 0.0) for part in parts]))

    metrics, gradients = step(stepped.side, config)
    assert metrics["loss"] == pytest.approx(mean_of_means(lp), rel=1e-4)
    expected = reference.backward(rollouts.tokens[:, :-1], rollouts.tokens[:, 1:], slope(mean_of_means, lp))
    require_close(
        {"gradient": np.concatenate([expected[name].ravel() for name in sorted(expected)])},
        {"gradient": np.concatenate([gradients[f"first_moment.{name}"].ravel() for name in sorted(expected)])},
        1e-4,
        "norm",
    )


@pytest.mark.parametrize("objective", ["clip", "sapo", "gmpo", "reinforce"])
def test_updates_in_micro_batches_between_twins(yardstick: Side, trained: Twin, objective: Any):
    config = GRPOConfig(epsilon=1e-6, temperature=0.9, micro_batch_size=1, loss="bnpo", entropy_weight=0.1)
    config = dataclasses.replace(config, objective=objective, kl_bias_correction=True)
    one, two = (reinforce(side, make_case(), config) for side in (yardstick, trained.side))
    for a, b in zip(one[1], two[1], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    require_close(learner_parameters(yardstick, one[0]), learner_parameters(trained.side, two[0]), 1e-5, "absolute")


def test_trajectories_in_micro_batches(yardstick: Side, trained: Twin):
    """Three steps of rollout and updates: the same on both twins, and the same as with whole minibatches."""
    case = make_case(context=24)
    config = GRPOConfig(epsilon=1e-6, group_size=16, minibatch_size=8, max_new_tokens=12, loss="dapo")
    small = dataclasses.replace(config, micro_batch_size=2)
    asked = ((yardstick, small), (trained.side, small), (trained.side, config))
    runs = [whole_steps(side, case, options, steps=3) for side, options in asked]
    for other in runs[1:]:
        assert other["completions"] == runs[0]["completions"]
        for a, b in zip(runs[0]["metrics"], other["metrics"], strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


# --- sampler and trainer ----------------------------------------------------------------------------


def drawn(side: Side, case: Case, sampling: Sampling, rows: int = 24) -> tuple[Any, Completions]:
    """Completions with what the sampler says of them, packed or not; many rows end early."""
    prompts = make_prompts(case, rows, 6)
    numbers = uniforms(case.seed, "sampler", step=0, rows=rows, columns=sampling.max_new_tokens)
    config = GRPOConfig(temperature=sampling.temperature, group_size=rows, minibatch_size=rows // 2, rollout_batch=7)
    setup, log_probs = setup_of(side, case, config), np.full_like(numbers, np.nan)
    completions = list(complete(setup, case.make_model(side), prompts, sampling, numbers, log_probs))
    return setup, Completions([], prompts, completions, log_probs)


@pytest.mark.parametrize("options", [{}, LLAMA, {"logit_soft_cap": 2.0}], ids=["gpt2", "llama", "capped"])
@pytest.mark.parametrize("sampling", [Sampling(0.7, 0, 1.0, 20), Sampling(1.2, 9, 0.8, 20)], ids=["free", "filtered"])
def test_the_samplers_log_probabilities_are_the_trainers(
    yardstick: Side, twin: Twin, sampling: Sampling, options: dict
):
    """Among all tokens, whatever top-k and top-p leave: of the whole forward pass, of the reference, of both twins."""
    case = make_case(seed=5, context=24, **options)
    case.parameters["out_head.weight"][0] *= 2  # an end-of-text in every tenth token or so
    setup, written = drawn(twin.side, case, sampling)
    packed = pack(setup, written, np.zeros(24))
    kept = packed.mask > 0
    lengths = kept.sum(1)
    assert lengths.min() < 10 < lengths.max()
    whole = setup.backend.token_log_probs(
        model=case.make_model(twin.side), tokens=packed.tokens, temperature=sampling.temperature, places=None
    )
    logits = Reference(case.model, case.parameters).logits(packed.tokens[:, :-1].astype(int))
    picked = packed.tokens[:, 1:, None].astype(int)
    exact = np.take_along_axis(log_softmax(logits / sampling.temperature), picked, 2)[..., 0]
    require_close({"log p": exact[kept]}, {"log p": packed.old_log_probs[kept]}, 1e-5)
    require_close({"log p": whole[kept]}, {"log p": packed.old_log_probs[kept]}, 1e-5)
    assert written.log_probs is not None
    for row, ids in enumerate(written.completions):  # nothing is written where no token is
        assert (
            np.isnan(written.log_probs[row, len(ids) :]).all() and np.isfinite(written.log_probs[row, : len(ids)]).all()
        )
    _, others = drawn(yardstick, case, sampling)
    assert others.completions == written.completions
    require_close({"log p": others.log_probs[kept_of(written)]}, {"log p": written.log_probs[kept_of(written)]}, 1e-5)


def kept_of(written: Completions) -> np.ndarray:
    return np.isfinite(written.log_probs)


class Counting:
    """A backend whose passes over a model are counted."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.passes = backend, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def token_log_probs(self, **given: Any) -> np.ndarray:
        self.passes += 1
        return self.backend.token_log_probs(**given)


def prepared(side: Side, noise: float = 0.0, **options: Any) -> tuple[Any, Any, Any, Any]:
    """A setup whose passes are counted, the model, and rollouts before and after their log-probabilities.

    `noise`: how far the sampler was off, in nats a token; on some devices bfloat16 alone makes no difference.
    """
    case = make_case(seed=5, context=24)
    setup, written = drawn(side, case, Sampling(0.7, 0, 1.0, 20))
    config = dataclasses.replace(setup.config.grpo, **options)
    setup = dataclasses.replace(
        setup, config=dataclasses.replace(setup.config, grpo=config), backend=Counting(setup.backend)
    )
    model, reference = case.make_model(side), make_case(seed=6, context=24).make_model(side)
    written.log_probs[...] += noise * np.random.default_rng(0).standard_normal(written.log_probs.shape)
    packed = pack(setup, written, np.linspace(-1, 1, 24))
    return setup, model, packed, with_log_probs(setup, packed, model, reference)


def short(twin: Twin) -> Side:
    return Side(twin.side.backend, dataclasses.replace(twin.side.config, dtype="bfloat16"))


def test_in_float32_the_sampler_spares_a_pass_and_the_first_ratio_is_one(twin: Twin):
    """What the first update finds is the mismatch that is told."""
    setup, model, packed, rollouts = prepared(twin.side, minibatch_size=24, epochs=1)
    assert correction_of(setup)[0] == "off" and setup.backend.passes == 1, "the reference alone"
    assert rollouts.old_log_probs is packed.old_log_probs and rollouts.advantages.shape == (24,)
    learner = setup.backend.make_learner(model=model, config=setup.config.grpo)
    updates = update_policy(setup, learner, rollouts, 0, 0.0)
    assert updates[0]["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert updates[0]["ratio_max"] == pytest.approx(1, abs=1e-5)
    told = rollout_mismatch(packed, rollouts, updates)
    assert told["rollout_mismatch_max"] == updates[0]["log_ratio_max"] < 1e-5
    assert 0 <= told["rollout_mismatch_mean"] == updates[0]["log_ratio_mean"] <= told["rollout_mismatch_max"]
    assert rollout_mismatch(packed, rollouts, []) == {"rollout_mismatch_mean": None, "rollout_mismatch_max": None}


@pytest.mark.parametrize("correction", ["auto", "token", "sequence", "off"])
def test_in_bfloat16_completions_are_weighed(twin: Twin, correction: Any):
    """By min(exp(trainer - sampler), cap) of a token, or of the whole completion; old ones are the trainer's."""
    setup, model, packed, rollouts = prepared(
        short(twin), 0.3, rollout_correction=correction, rollout_correction_cap=1.2, micro_batch_size=6
    )
    chosen = "token" if correction == "auto" else correction
    assert correction_of(setup)[0] == chosen
    assert setup.backend.passes == 2 * 4, "of policy and reference, in micro-batches"
    old = setup.backend.token_log_probs(model=model, tokens=packed.tokens, temperature=0.7, places=None)
    kept = packed.mask > 0
    require_close({"old": old[kept]}, {"old": rollouts.old_log_probs[kept]}, 1e-3)
    gaps = np.where(kept, rollouts.old_log_probs.astype(np.float64) - packed.old_log_probs, 0)
    told = rollout_mismatch(packed, rollouts, [])
    assert told["rollout_mismatch_mean"] == pytest.approx(np.abs(gaps[kept]).mean(), rel=1e-5)
    assert told["rollout_mismatch_max"] == pytest.approx(np.abs(gaps[kept]).max(), rel=1e-5)
    assert told["rollout_mismatch_max"] > 0.5
    weights = np.minimum(np.exp(gaps if chosen == "token" else gaps.sum(1, keepdims=True)), 1.2)
    assert (weights == 1.2).any() and (weights < 1).any()
    if chosen == "off":
        assert np.array_equal(rollouts.advantages, packed.advantages)
    else:
        assert np.allclose(rollouts.advantages, packed.advantages[:, None] * weights, rtol=1e-5)


def test_weighed_completions_are_learnt_from_by_their_weights(stepped: Twin):
    """An advantage a token, in whole updates: one weight for all is that advantage for the row."""
    rollouts = uneven_rollouts()
    config = dataclasses.replace(STEEP, loss="dapo")
    found = []
    for advantages in (rollouts.advantages * 2, np.broadcast_to(rollouts.advantages[:, None] * 2, (6, 11)).copy()):
        learner = stepped.side.backend.make_learner(model=CASE.make_model(stepped.side), config=config)
        given = dataclasses.replace(rollouts, advantages=advantages)
        stepped.side.backend.grpo_step(
            learner=learner, rollouts=given, config=config, learning_rate=1e-2, dropout_seed=0
        )
        found.append(learner_parameters(stepped.side, learner))
    require_close(*found, 1e-6, "absolute")
