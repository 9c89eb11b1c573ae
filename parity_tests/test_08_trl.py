"""Rung 8, against TRL 1.16.0 itself: its own code for losses, advantages, corrections and log-probabilities."""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import TWINS, Twin, make_case, setup_of
from test_08_grpo import CONFIG, in_float32, random_fixture

from faisca.backend import Rollouts
from faisca.config import GRPOConfig
from faisca.training.grpo import Completions, pack
from faisca.training.grpo_update import advantages_of, corrected

trl_side = pytest.importorskip("trl_side", reason="trl or torch is not installed", exc_type=ImportError)
LOSSES = [{"loss": loss} for loss in ("grpo", "bnpo", "dr_grpo", "dapo")]
OBJECTIVES = [
    *LOSSES,
    *(loss | {"delta": 2.5} for loss in LOSSES),
    {"objective": "cispo", "loss": "dapo"},
    {"objective": "sapo", "loss": "grpo", "sapo_temperature_pos": 0.7},
]
"""what TRL's loss types are here"""
PENALTIES = [
    {"kl_weight": 0.0},
    {"kl_weight": 0.04},
    {"kl_weight": 0.04, "kl_bias_correction": True},
    {"kl_weight": 0.04, "entropy_weight": 0.3},
]
CORRECTIONS = ["off", "token", "sequence"]


def option_id(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


def weighed(fixture: SimpleNamespace, weights: np.ndarray | None) -> SimpleNamespace:
    """The fixture as the core hands it to a twin: with the correction in its advantages."""
    if weights is None:
        return fixture
    return SimpleNamespace(**(vars(fixture) | {"advantages": fixture.advantages[:, None] * weights}))


def weights_of(fixture: SimpleNamespace, correction: str) -> np.ndarray | None:
    """Weights for a correction, some of them at the cap; what a sampler's log-probabilities make of them is below."""
    columns = {"off": 0, "token": fixture.mask.shape[1], "sequence": 1}[correction]
    noise = np.random.default_rng(8).standard_normal((len(fixture.mask), columns))
    return np.minimum(np.exp(noise), 1.5) if columns else None


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("importance", ["token", "sequence"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=option_id)
def test_loss_and_gradient_are_trls(twin: Twin, objective: dict, importance: Any, correction: Any):
    """With every penalty, near the policy that sampled and beyond every limit."""
    for penalty, spread in itertools.product(PENALTIES, (0.4, 2.0)):
        config = dataclasses.replace(
            CONFIG, importance=importance, rollout_correction=correction, cispo_cap=2.0, **objective, **penalty
        )
        fixture = random_fixture(spread)
        if config.entropy_weight:  # TRL's bonus is a mean over the tokens here, ours over those of the step
            fixture.step_tokens = fixture.mask.sum()
        weights = weights_of(fixture, correction)
        loss, gradient, metrics = trl_side.loss_and_gradient(config, fixture, weights)
        given = weighed(fixture, weights)
        found, watched, slope = twin.inside.policy_loss(in_float32(given), config)
        assert found == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert np.allclose(slope, gradient, rtol=1e-5, atol=1e-5)
        if twin.name == "torch":
            found, watched, slope = twin.inside.policy_loss(given, config)
            assert found == pytest.approx(loss, rel=1e-6, abs=1e-6)
            assert np.allclose(slope, gradient, rtol=1e-6, atol=1e-6)
        share = fixture.mask.sum() / fixture.step_tokens  # TRL's means are over the tokens here
        if config.kl_weight and not config.kl_bias_correction:
            assert watched["kl"] == pytest.approx(metrics["kl"] * share, rel=1e-4)
        assert watched["entropy"] == pytest.approx(metrics["entropy"] * share, rel=1e-4)
        if importance == "token" and config.objective == "clip":
            for side in ("low", "high"):
                expected = metrics[f"clip_ratio/{side}_mean"] * share
                assert watched[f"clip_{side}_share"] == pytest.approx(expected, rel=1e-4)


def test_the_limits_are_reached():
    """What the test above compares: without this, a delta or a cap that nothing reaches could be any number."""
    fixture = random_fixture(2.0)
    for objective, change in (({}, {"delta": 2.5}), ({"objective": "cispo", "loss": "dapo"}, {"cispo_cap": 2.0})):
        config = dataclasses.replace(CONFIG, cispo_cap=1e9, **objective)
        near, far = (trl_side.loss_and_gradient(dataclasses.replace(config, **c), fixture)[0] for c in (change, {}))
        assert abs(near - far) > 1e-2


@pytest.mark.parametrize("objective", OBJECTIVES, ids=option_id)
def test_micro_batches_add_up_as_trls_accumulation_does(twin: Twin, objective: dict):
    """Three micro-batches of two; the entropy bonus is not TRL's there: docs/grpo.md."""
    fixture = random_fixture(0.4)
    fixture.step_tokens = fixture.mask.sum()
    config = dataclasses.replace(CONFIG, **objective)
    whole, accumulated = (trl_side.loss_and_gradient(config, fixture, None, count) for count in (1, 3))
    assert abs(whole[0] - accumulated[0]) < 1e-6 or config.loss == "bnpo"
    parts = [
        SimpleNamespace(**{n: v[rows] if np.ndim(v) else v for n, v in vars(in_float32(fixture)).items()}, step_rows=6)
        for rows in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    found = [twin.inside.policy_loss(part, config) for part in parts]
    assert sum(loss for loss, _, _ in found) == pytest.approx(accumulated[0], abs=1e-5)
    assert np.allclose(np.concatenate([gradient for *_, gradient in found]), accumulated[1], atol=1e-5)


def test_bnpo_counts_the_tokens_of_each_micro_batch():
    """And dapo those of all: the two differ as soon as there is more than one."""
    fixture = random_fixture(0.4)
    fixture.step_tokens = fixture.mask.sum()
    losses = {
        (loss, count): trl_side.loss_and_gradient(dataclasses.replace(CONFIG, loss=loss), fixture, None, count)[0]
        for loss, count in itertools.product(("bnpo", "dapo"), (1, 3))
    }
    assert losses["bnpo", 1] == pytest.approx(losses["dapo", 1], abs=1e-12)
    assert losses["dapo", 3] == pytest.approx(losses["dapo", 1], abs=1e-12)
    assert abs(losses["bnpo", 3] - losses["dapo", 3]) > 1e-3


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_trls(scale: Any):
    """A group with all values, one of equal rewards, one with a completion that cannot be scored."""
    rewards = np.array([1.0, 0, 0, 3, 0.1, 0.1, 0.1, 0.1, np.nan, 2, 0, 5])
    config = GRPOConfig(group_size=4, scale_rewards=scale)
    output, metrics = trl_side.scored(config, [[1]] * 12, rewards)
    # TRL corrects its deviation by a float32 number, n / (n - 1)
    assert np.allclose(advantages_of(rewards, config), output["advantages"].numpy(), rtol=0, atol=1e-7)
    assert metrics["reward"] == pytest.approx(np.nanmean(rewards))


def test_leaving_one_out_is_trls():
    """RLOOTrainer's own, with a completion that cannot be scored, and a group with one that can."""
    rewards = np.array([1.0, 0, 0, 3, 0.1, 0.1, 0.1, 0.1, np.nan, 2, 0, 5, np.nan, np.nan, 7, np.nan])
    config = GRPOConfig(group_size=4, baseline="leave_one_out", scale_rewards="none")
    output, _ = trl_side.scored(config, [[1]] * 16, rewards, np.zeros((16, 1)), kind=trl_side.RLOOTrainer)
    assert np.allclose(advantages_of(rewards, config), output["advantages"].numpy(), rtol=0, atol=1e-12)
    by_hand = 3 - np.mean([1, 0, 0])
    assert advantages_of(rewards, config)[3] == pytest.approx(by_hand)


def written(mask: np.ndarray, log_probs: np.ndarray | None = None) -> Completions:
    """Completions as long as the rows of a mask; every other one ends."""
    lengths = mask.sum(1).astype(int)
    rows = [[3] * (n - 1) + [1 if i % 2 else 3] for i, n in enumerate(lengths)]
    return Completions([], [[7]] * len(rows), rows, log_probs)


LENGTHS = np.arange(7) < np.array([3, 7, 1, 4, 7, 2])[:, None]


def test_truncated_completions_are_masked_as_in_trl():
    made = written(LENGTHS)
    for masked in (False, True):
        config = GRPOConfig(group_size=6, minibatch_size=6, mask_truncated=masked)
        setup = setup_of(TWINS[0].side, make_case(context=9), config)
        ours = pack(dataclasses.replace(setup, tokenizer=SimpleNamespace(end_of_text=1, ends=(1,))), made, np.zeros(6))
        output, _ = trl_side.scored(config, made.completions, np.arange(6.0))
        assert np.array_equal(ours.mask[:, :7], output["completion_mask"].numpy())
        assert ours.step_tokens == output["num_items_in_batch"].item()


@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_weights_of_the_correction_are_trls(correction: Any):
    random = np.random.default_rng(3)
    old = -random.random((6, 7)) - 0.5
    sampled = old + 0.6 * random.standard_normal((6, 7))
    config = GRPOConfig(
        group_size=6, rollout_correction=correction, rollout_correction_cap=1.5, scale_rewards="none", minibatch_size=6
    )
    mask = LENGTHS.astype(np.float32)
    rows = [row[: int(n)].tolist() for row, n in zip(sampled, mask.sum(1), strict=True)]
    output, _ = trl_side.scored(config, written(LENGTHS).completions, np.arange(6.0), old, rows)
    advantages = output["advantages"].numpy()
    rollouts = Rollouts(np.zeros((6, 8), np.int32), mask, advantages, old, old, float(mask.sum()))
    found = corrected(rollouts, sampled, correction, config).advantages
    ratio = output["importance_sampling_ratio"].numpy()
    assert (ratio == 1.5).any() and (ratio < 1).any()
    assert np.allclose(found, advantages[:, None] * ratio, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_log_probabilities_and_entropies_are_trls_at_a_temperature(twin: Twin, temperature: float):
    """Its fused head on a small GPT-2 of the transformers library, and ours on the same hidden states."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=12, n_embd=16, n_layer=1, n_head=2)).eval()
    head = torch.nn.init.normal_(model.lm_head.weight, std=0.8)
    tokens = torch.randint(31, (3, 9))
    hidden = model.transformer(tokens).last_hidden_state[:, :-1].reshape(-1, 16).detach().numpy()
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    trainer = trl_side.make_trainer(CONFIG)
    trainer.accelerator.autocast = lambda: torch.no_grad()
    log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(
        model, tokens, torch.ones_like(tokens), 8, compute_entropy=True
    )
    targets = tokens[:, 1:].flatten().numpy()
    ours = twin.inside.log_probs(hidden, head.detach().numpy(), targets, temperature, 7, np.ones(24, np.float32))
    assert np.allclose(ours[0], log_probs.flatten().numpy(), rtol=1e-5, atol=1e-5)
    assert np.allclose(ours[1], entropies.flatten().numpy(), rtol=1e-5, atol=1e-5)
