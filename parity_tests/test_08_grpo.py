"""Rung 8: GRPO's loss against golden numbers and its properties; then whole steps, from rollout to weights."""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import TWINS, Twin, make_case, setup_of
from close import require_close
from reference import Reference
from reference_steps import adamw, policy_loss, slope

from faisca.backend import Rollouts, Sampling
from faisca.config import GRPOConfig
from faisca.parity.cases import Case, Side
from faisca.parity.rungs import learner_parameters, reinforce
from faisca.rewards.advantages import group_advantages
from faisca.streams import uniforms
from faisca.training.generate import complete
from faisca.training.grpo import Completions, pack
from faisca.training.grpo_update import select_rows

FIXTURE = SimpleNamespace(
    log_probs=np.array([[-1, -0.5, -2, -0.7], [-0.3, -1.2, -0.9, -1.5]]),
    old=np.array([[-1.3, -0.5, -1.6, -0.7], [-0.3, -1, -1.3, -1.5]]),
    reference=np.array([[-1.1, -0.6, -1.9, -0.7], [-0.4, -1.2, -1, -1.5]]),
    mask=np.array([[1.0, 1, 1, 0], [1, 1, 1, 1]]),
    advantages=np.array([1.5, -0.5]),
    step_tokens=7.0,
)
CONFIG = GRPOConfig(clip_low=0.2, clip_high=0.28, kl_weight=0.04, max_new_tokens=8, cispo_cap=5.0)
GOLDEN = {
    ("grpo", "token"): -0.4680229499642798,
    ("bnpo", "token"): -0.3241745028692932,
    ("dapo", "token"): -0.3241745028692932,
    ("dr_grpo", "token"): -0.1418263450053158,
    ("grpo", "sequence"): -0.4624469553928217,
    ("bnpo", "sequence"): -0.3212784908297427,
    ("dapo", "sequence"): -0.3212784908297427,
    ("dr_grpo", "sequence"): -0.1405593397380124,
}
GOLDEN_GRADIENT = np.array(
    [[0.000634417213, -0.249365582787, -0.168281150963, 0], [0.062975812910, 0.051170672067, 0.093714856512, 0.0625]]
)
CISPO = dataclasses.replace(CONFIG, objective="cispo", loss="dapo")
VARIANTS = [
    dataclasses.replace(CONFIG, loss=loss, importance=importance, objective=objective)
    for loss, importance, objective in itertools.product(
        ("grpo", "bnpo", "dr_grpo", "dapo"), ("token", "sequence"), ("clip", "cispo", "sapo", "gmpo", "reinforce")
    )
    if importance == "token" or objective not in ("gmpo", "reinforce")
]
VARIANTS += [
    dataclasses.replace(VARIANTS[i], **more)
    for i in (0, 5)
    for more in ({"delta": 2.5}, {"kl_bias_correction": True, "kl_weight": 0.3})
]


def variant_id(config: GRPOConfig) -> str:
    more = "-delta" * (config.delta > 0) + "-corrected" * config.kl_bias_correction
    return f"{config.loss}-{config.importance}-{config.objective}{more}"


def arguments(fixture: SimpleNamespace) -> tuple[np.ndarray, ...]:
    return fixture.log_probs, fixture.old, fixture.reference, fixture.advantages, fixture.mask


def expected(fixture: SimpleNamespace, config: GRPOConfig) -> tuple[float, np.ndarray]:
    """The reference's loss, and its gradient by finite differences."""
    log_probs, *others = arguments(fixture)
    value = policy_loss(log_probs, *others, config, fixture.step_tokens)

    def at(moved: np.ndarray) -> float:
        return policy_loss(moved, *others, config, fixture.step_tokens, weighing=log_probs)

    return value, slope(at, log_probs)


def with_changes(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**(vars(FIXTURE) | changes))


def in_float32(fixture: SimpleNamespace) -> SimpleNamespace:
    values = vars(fixture).items()
    return SimpleNamespace(**{name: v if name.startswith("step_") else np.float32(v) for name, v in values})


@pytest.mark.parametrize(("loss", "importance"), GOLDEN)
def test_golden_losses(twin: Twin, loss: str, importance: str):
    config, golden = dataclasses.replace(CONFIG, loss=loss, importance=importance), GOLDEN[loss, importance]
    assert policy_loss(*arguments(FIXTURE), config, FIXTURE.step_tokens) == pytest.approx(golden, abs=1e-12)
    assert twin.inside.policy_loss(in_float32(FIXTURE), config)[0] == pytest.approx(golden, rel=1e-5, abs=1e-6)


def test_golden_gradient_and_watched_numbers(twin: Twin):
    assert np.allclose(expected(FIXTURE, CONFIG)[1], GOLDEN_GRADIENT, rtol=0, atol=1e-9)
    _, watched, gradient = twin.inside.policy_loss(in_float32(FIXTURE), CONFIG)
    assert np.allclose(gradient, GOLDEN_GRADIENT, rtol=1e-4, atol=1e-6)
    assert watched["kl"] == pytest.approx(0.0035029414599265785, rel=1e-4)
    assert watched["clip_low_share"] + watched["clip_high_share"] == pytest.approx(1 / 7)
    ratios = np.exp(FIXTURE.log_probs - FIXTURE.old)[FIXTURE.mask > 0]
    assert watched["ratio_mean"] == pytest.approx(ratios.mean(), rel=1e-5)
    assert watched["ratio_max"] == pytest.approx(ratios.max(), rel=1e-5)


def test_golden_cispo_and_advantages(twin: Twin):
    assert policy_loss(*arguments(FIXTURE), CISPO, 7.0) == pytest.approx(0.38916708675633455, abs=1e-12)
    assert twin.inside.policy_loss(in_float32(FIXTURE), CISPO)[0] == pytest.approx(0.38916708675633455, rel=1e-5)
    hit = np.eye(8)[0]
    assert group_advantages(hit, 8, "group")[0] == pytest.approx(2.474173932086831, abs=1e-12)


def random_fixture(spread: float) -> SimpleNamespace:
    """Log-probabilities whose logarithm of the ratio deviates by `spread`; one row has no token."""
    random = np.random.default_rng(4)
    shape = (6, 7)
    old = -random.random(shape) * 3
    fixture = with_changes(
        log_probs=old + spread * random.standard_normal(shape),
        old=old,
        reference=old + 0.3 * random.standard_normal(shape),
        mask=(random.random(shape) < 0.7).astype(float),
        advantages=random.standard_normal(6),
        entropies=3 * random.random(shape),
        step_tokens=61.0,
    )
    fixture.mask[3] = 0
    return SimpleNamespace(**{name: np.float32(v).astype(float) for name, v in vars(fixture).items()})


@pytest.mark.parametrize("spread", [0.4, 2.0], ids=["near", "beyond every limit"])
@pytest.mark.parametrize("config", VARIANTS, ids=variant_id)
def test_every_variant_against_the_reference(twin: Twin, config: GRPOConfig, spread: float):
    """Near the policy that sampled, and where ratios pass the clips and CISPO's cap on both sides."""
    fixture = random_fixture(spread)
    loss, gradient = expected(fixture, config)
    found = twin.inside.policy_loss(in_float32(fixture), config)
    assert found[0] == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert np.allclose(found[2], gradient, rtol=1e-4, atol=1e-6)
    if twin.name == "torch":
        assert twin.inside.policy_loss(fixture, config)[0] == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_the_limits_are_reached(importance: Any):
    """What the test above compares: without this, a cap that nothing reaches could be any number."""
    config = dataclasses.replace(CONFIG, importance=importance, objective="cispo", loss="bnpo")
    fixture = random_fixture(2.0)
    log_probs, *others = arguments(fixture)
    capped, free, clipped, wide = (
        policy_loss(log_probs, *others, dataclasses.replace(config, **changes), 61.0)
        for changes in (
            {},
            {"cispo_cap": 1e9},
            {"objective": "clip"},
            {"objective": "clip", "clip_low": 1.0, "clip_high": 1e9},
        )
    )
    assert abs(clipped - wide) > 1e-2
    assert abs(capped - free) > 1e-2 or importance == "sequence"  # the mean over a row does not go so far


@pytest.mark.parametrize("spread", [0.4, 2.0])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_watched_numbers_are_what_they_say(twin: Twin, spread: float, shift: float):
    """Each by hand, over the mask alone; with the shift, every ratio is below the 1 of a masked place."""
    fixture = random_fixture(spread)
    fixture.log_probs = np.minimum(fixture.log_probs, fixture.old - 0.5 if shift else np.inf) + shift
    fixture.reference = fixture.reference + shift
    fixture.step_tokens = fixture.mask.sum()
    kept = fixture.mask > 0
    ratio, A = np.exp(fixture.log_probs - fixture.old), np.broadcast_to(fixture.advantages[:, None], kept.shape)
    log_rho = (fixture.reference - fixture.log_probs)[kept]
    wanted = {
        "kl": (np.exp(log_rho) - log_rho - 1).mean(),
        "ratio_mean": ratio[kept].mean(),
        "ratio_max": ratio[kept].max(),
        "log_ratio_mean": np.abs(np.log(ratio))[kept].mean(),
        "log_ratio_max": np.abs(np.log(ratio))[kept].max(),
        "entropy": fixture.entropies[kept].mean(),
        "clip_low_share": ((ratio < 0.8) & (A < 0))[kept].mean(),
        "clip_high_share": ((ratio > 1.6) & (A > 0))[kept].mean(),
    }
    assert shift or spread > 1 or ((ratio > 1.2) & (ratio < 1.6) & (A > 0))[kept].any(), "the clips can be told apart"
    assert (ratio[kept].max() < 1) == (shift < 0)
    assert wanted["clip_low_share"] > 0
    assert spread < 1 or wanted["clip_low_share"] != wanted["clip_high_share"]
    found = twin.inside.policy_loss(in_float32(fixture), dataclasses.replace(CONFIG, clip_high=0.6))[1]
    assert {name: float(value) for name, value in found.items()} == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_truth_table_of_clipping(twin: Twin, advantage: float, ratio: float):
    """The gradient is -A · ratio, or 0 where the ratio is clipped on the side that would be gained."""
    config = dataclasses.replace(CONFIG, kl_weight=0.0)
    one, log_probs = np.ones((1, 1)), np.log([[ratio]])
    fixture = with_changes(
        log_probs=log_probs, old=0 * one, reference=log_probs, mask=one, advantages=np.array([advantage])
    )
    clipped = (ratio > 1.28 and advantage > 0) or (ratio < 0.8 and advantage < 0)
    *_, gradient = twin.inside.policy_loss(in_float32(fixture), config)
    assert gradient[0, 0] == pytest.approx(0.0 if clipped else -advantage * ratio, rel=1e-5)


@pytest.mark.parametrize("objective", ["clip", "cispo", "sapo", "gmpo", "reinforce"])
def test_first_pass_is_reinforce(twin: Twin, objective: Any):
    """Where old and new agree, the gradient is -A / n on every token of the completion, whatever the objective."""
    fixture = with_changes(log_probs=FIXTURE.old)
    config = dataclasses.replace(CONFIG, kl_weight=0.0, objective=objective)
    _, watched, gradient = twin.inside.policy_loss(in_float32(fixture), config)
    counts = FIXTURE.mask.sum(1, keepdims=True)
    assert np.allclose(gradient, -FIXTURE.advantages[:, None] * FIXTURE.mask / counts / 2, atol=1e-7)
    assert watched["ratio_mean"] == watched["ratio_max"] == 1


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.1, 2.0])
def test_closed_forms_of_one_token(twin: Twin, advantage: float, ratio: float):
    """Each objective's loss and gradient with respect to log p, from its paper, where the ratio is one number."""
    one, r = np.ones((1, 1)), ratio
    changes = {"old": 0 * one, "reference": np.log([[ratio]]), "mask": one, "advantages": np.array([advantage])}
    fixture = in_float32(with_changes(log_probs=np.log([[ratio]]), **changes))
    held = min(r, np.exp(0.28)) if advantage > 0 else max(r, np.exp(-0.2))
    steep = 1.0 if advantage > 0 else 1.05
    gate = 1 / (1 + np.exp(-steep * (r - 1)))
    capped = min(r, 1.28) if advantage > 0 else max(min(r, 1.5), 0.8)
    wanted = {
        ("clip", 1.5): (capped, r * (capped == r)),
        ("gmpo", 0.0): (held, r * (held == r)),
        ("sapo", 0.0): (4 / steep * gate, 4 * gate * (1 - gate) * r),
        ("reinforce", 0.0): (np.log(r), 1.0),
    }
    for (objective, delta), (loss, gradient) in wanted.items():
        config = dataclasses.replace(CONFIG, kl_weight=0.0, objective=objective, delta=delta)
        found, _, slope_ = twin.inside.policy_loss(fixture, config)
        assert found == pytest.approx(-advantage * loss, rel=1e-5), objective
        assert slope_[0, 0] == pytest.approx(-advantage * gradient, rel=1e-5, abs=1e-7), objective


def test_gmpo_of_a_row_is_the_geometric_mean(twin: Twin):
    """Ratios 1.1 and 3, which is clipped to exp 0.28: √(1.1 · 1.3231); where A < 0, 1.1 and 0.5: √(1.1 · 0.8187)."""
    for A, second, held in ((1.0, 3.0, np.exp(0.28)), (-1.0, 0.5, np.exp(-0.2))):
        log_probs = np.log([[1.1, second]])
        changes = {"old": 0 * log_probs, "reference": log_probs, "mask": np.ones((1, 2)), "advantages": np.array([A])}
        config = dataclasses.replace(CONFIG, kl_weight=0.0, objective="gmpo")
        loss, *_ = twin.inside.policy_loss(in_float32(with_changes(log_probs=log_probs, **changes)), config)
        assert loss == pytest.approx(-A * np.sqrt(1.1 * held), rel=1e-5)


def test_a_corrected_kl_is_the_divergence_of_the_policy(twin: Twin):
    """Its gradient, averaged over the tokens that the old policy draws, is that of Σ p · log(p / ref): for a bandit."""
    random = np.random.default_rng(2)
    old, now, ref = (np.log(random.dirichlet(np.ones(5))) for _ in range(3))
    config = dataclasses.replace(CONFIG, kl_weight=1.0, kl_bias_correction=True)
    # one row a token, weighed below by how likely the old policy draws it
    arrays = {"log_probs": now[:, None], "old": old[:, None], "reference": ref[:, None], "mask": np.ones((5, 1))}
    fixture = in_float32(with_changes(**arrays, advantages=np.zeros(5)))
    *_, gradient = twin.inside.policy_loss(fixture, config)
    per_token = gradient[:, 0] * 5 * np.exp(old)  # d loss / d log p of each token, expected
    scores = np.eye(5) - np.exp(now)  # d log p / d logits
    divergence = (np.exp(now) * (now - ref)).sum()
    assert np.allclose(per_token @ scores, np.exp(now) * (now - ref - divergence), atol=1e-6)


def test_kl_is_zero_at_equality_and_positive_elsewhere(twin: Twin):
    same = with_changes(reference=FIXTURE.log_probs)
    assert twin.inside.policy_loss(in_float32(same), CONFIG)[1]["kl"] == 0
    for shift in (-0.5, 0.5):
        away = with_changes(reference=FIXTURE.log_probs + shift)
        kl = twin.inside.policy_loss(in_float32(away), CONFIG)[1]["kl"]
        assert kl == pytest.approx(np.exp(shift) - shift - 1, rel=1e-4)


@pytest.mark.parametrize("config", VARIANTS, ids=variant_id)
def test_masked_slots_may_hold_anything(twin: Twin, config: GRPOConfig):
    clean = twin.inside.policy_loss(in_float32(FIXTURE), config)
    for garbage in (1e4, -1e4):
        dirty = {
            name: np.where(FIXTURE.mask > 0, getattr(FIXTURE, name), sign * garbage)
            for name, sign in (("log_probs", 1), ("old", -1), ("reference", -1))
        }
        found = twin.inside.policy_loss(in_float32(with_changes(**dirty)), config)
        assert found[0] == clean[0] and np.array_equal(found[2], clean[2])
        assert {k: float(v) for k, v in found[1].items()} == {k: float(v) for k, v in clean[1].items()}


def test_an_all_truncated_batch_has_no_loss_and_no_gradient(twin: Twin):
    for config in VARIANTS:
        empty = with_changes(mask=np.zeros((2, 4)), step_tokens=0.0)
        loss, watched, gradient = twin.inside.policy_loss(in_float32(empty), config)
        assert loss == 0 and not gradient.any() and all(np.isfinite(value) for value in watched.values())


def test_rows_may_stand_in_any_order(twin: Twin):
    names = ("log_probs", "old", "reference", "advantages", "mask")
    turned = with_changes(**{name: getattr(FIXTURE, name)[::-1].copy() for name in names})
    one, two = (twin.inside.policy_loss(in_float32(f), CONFIG)[0] for f in (FIXTURE, turned))
    assert one == pytest.approx(two, rel=1e-6)


def test_dapo_over_minibatches_is_dapo_over_all(twin: Twin):
    config = dataclasses.replace(CONFIG, loss="dapo")
    names = ("log_probs", "old", "reference", "advantages", "mask")
    parts = [with_changes(**{name: getattr(FIXTURE, name)[i : i + 1] for name in names}) for i in range(2)]
    whole, *halves = (twin.inside.policy_loss(in_float32(f), config)[0] for f in (FIXTURE, *parts))
    assert sum(halves) == pytest.approx(whole, rel=1e-5)


def test_advantages_sum_to_zero_and_groups_do_not_leak():
    rewards = np.array([1.0, 0, 0, 3, 5, 5, 5, 5])
    for scale in ("group", "none"):
        found = group_advantages(rewards, 4, scale)
        assert found[:4].sum() == pytest.approx(0) and not found[4:].any()
        assert np.array_equal(found[:4], group_advantages(np.append(rewards[:4], [9.0, 1, 2, 3]), 4, scale)[:4])
    assert np.isclose(group_advantages(rewards, 4, "group")[3], (3 - 1) / (np.std(rewards[:4], ddof=1) + 1e-4))


def test_the_mask_ends_with_the_first_end_of_text():
    """Right padding; the prompt is not learnt, the end-of-text is; a truncated row counts unless it is masked."""
    written = Completions([], [[7], [7, 8]], [[5, 0], [5, 6, 4]])
    whole, masked = (setup_of(TWINS[0].side, make_case(), GRPOConfig(mask_truncated=mask)) for mask in (False, True))
    rollouts = pack(whole, written, np.zeros(2))
    assert rollouts.tokens[:, :6].tolist() == [[7, 5, 0, 0, 0, 0], [7, 8, 5, 6, 4, 0]]
    assert rollouts.mask[:, :6].tolist() == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0]]
    assert rollouts.step_tokens == 5
    ended = pack(masked, written, np.zeros(2))
    assert ended.mask.sum(1).tolist() == [2, 0]


@pytest.mark.parametrize("micro", [0, 2, 1])
@pytest.mark.parametrize("bonus", [0.0, 0.4])
def test_entropy_and_loss_of_a_step_against_the_reference(twin: Twin, bonus: float, micro: int):
    """One whole update, in micro-batches or not: the reference's gradient through the model, clipping and Adam."""
    case = make_case(rows=4, length=12)
    config = GRPOConfig(epsilon=1e-4, temperature=0.8, clip_norm=0.1, entropy_weight=bonus, micro_batch_size=micro)
    reference, tokens = Reference(case.model, case.parameters), case.batch()[0]
    old, lp = 0.1, reference.token_log_probs(tokens, 0.8)
    mask, advantages = np.ones(lp.shape, np.float32), np.array([1.5, -0.5, -0.5, -0.5], np.float32)
    offsets = old * np.random.default_rng(0).standard_normal(lp.shape)
    rollouts = Rollouts(tokens, mask, advantages, np.float32(lp + offsets), np.float32(lp - offsets), 44.0)
    others = (rollouts.old_log_probs, rollouts.reference_log_probs, advantages, mask)
    learner = twin.side.backend.make_learner(model=case.make_model(twin.side), config=config)
    step = twin.side.backend.grpo_step(
        learner=learner, rollouts=rollouts, config=config, learning_rate=1e-3, dropout_seed=0
    )
    (metrics,) = twin.side.backend.read_metrics(metrics=[step])
    log_p = reference.logits(tokens[:, :-1]) / 0.8
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    entropy = -(np.exp(log_p) * log_p).sum(-1).mean()
    assert metrics["entropy"] == pytest.approx(entropy, rel=1e-5)
    expected_loss = policy_loss(lp, *others, config, 44.0) - bonus * entropy
    assert metrics["loss"] == pytest.approx(expected_loss, rel=1e-4)
    upstream = slope(lambda moved: policy_loss(moved, *others, config, 44.0), lp)
    gradient = reference.backward(tokens[:, :-1], tokens[:, 1:], upstream, 0.8, -bonus / 44)
    norm = np.sqrt(sum((value**2).sum() for value in gradient.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    weights, _, _ = adamw(case.parameters, [gradient], config, 1e-3, lambda name, shape: False)
    require_close(weights, learner_parameters(twin.side, learner), 1e-5, "absolute")  # 1e-2 · learning rate


def whole_steps(side: Side, case: Case, config: GRPOConfig, steps: int) -> dict[str, Any]:
    """Rollout, rewards, advantages, minibatch updates, as often as asked: the reward is the share of even tokens."""
    backend, model = side.backend, case.make_model(side)
    setup, frozen = setup_of(side, case, config), case.make_model(side)
    learner = backend.make_learner(model=model, config=config)
    prompts, history = [[0]] * config.group_size, {"completions": [], "rewards": [], "metrics": []}
    for step in range(steps):
        sampling = Sampling(config.temperature, 0, 1.0, config.max_new_tokens)
        draws = uniforms(case.seed, "parity", step=step, rows=len(prompts), columns=config.max_new_tokens)
        rows = list(complete(setup, model, prompts, sampling, draws))
        rewards = np.array([np.mean([token % 2 == 0 for token in row]) for row in rows])
        advantages = group_advantages(rewards, config.group_size, config.scale_rewards)
        rollouts = pack(setup, Completions([], prompts, rows), advantages)
        old, reference = (
            backend.token_log_probs(
                model=scorer, tokens=rollouts.tokens, temperature=config.temperature, places=rollouts.places
            )
            for scorer in (model, frozen)
        )
        rollouts = dataclasses.replace(rollouts, old_log_probs=old, reference_log_probs=reference)
        for order in np.arange(config.epochs * config.group_size).reshape(-1, config.minibatch_size):
            part = select_rows(rollouts, order % config.group_size)
            learnt = backend.grpo_step(
                learner=learner, rollouts=part, config=config, learning_rate=3e-3, dropout_seed=0
            )
            history["metrics"].append(learnt)
        history["completions"].append(rows)
        history["rewards"].append(rewards)
    history["metrics"] = backend.read_metrics(metrics=history["metrics"])
    return history | {"weights": learner_parameters(side, learner)}


def test_whole_steps_give_the_same_completions_rewards_and_weights(yardstick: Side, trained: Twin):
    """Ten steps: the same reward curve, token for token; then the same weights."""
    case = make_case(context=24)
    config = GRPOConfig(epsilon=1e-6, group_size=32, minibatch_size=16, max_new_tokens=12)
    one, two = (whole_steps(side, case, config, steps=10) for side in (yardstick, trained.side))
    assert one["completions"] == two["completions"]
    assert np.array_equal(one["rewards"], two["rewards"])
    assert np.mean(one["rewards"][-3:]) > np.mean(one["rewards"][:3]) + 0.05, "it learns"
    for a, b in zip(one["metrics"], two["metrics"], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    changes = [
        {"change": np.concatenate([(run["weights"][n] - case.parameters[n]).ravel() for n in run["weights"]])}
        for run in (one, two)
    ]
    require_close(*changes, 1e-3, "norm")


@pytest.mark.parametrize("seed", range(3))
def test_a_bandit_finds_its_token(twin: Twin, seed: int):
    """16 tokens, one of them rewarded: after 40 steps it is drawn more than nine times in ten."""
    case = make_case(seed=seed, vocabulary_size=16, context=4, dim=8, num_layers=1, hidden_dim=8)
    backend, model = twin.side.backend, case.make_model(twin.side)
    config = GRPOConfig(group_size=32, minibatch_size=32, max_new_tokens=1, kl_weight=0.0)
    learner, shares = backend.make_learner(model=model, config=config), []
    setup, sampling, prompts = setup_of(twin.side, case, config), Sampling(1.0, 0, 1.0, 1), [[1]] * 32
    for step in range(40):
        draws = uniforms(seed, "bandit", step=step, rows=32, columns=1)
        rows = list(complete(setup, model, prompts, sampling, draws))
        rewards = np.array([float(row == [5]) for row in rows])
        shares.append(rewards.mean())
        rollouts = pack(setup, Completions([], prompts, rows), group_advantages(rewards, 32, "group"))
        old = backend.token_log_probs(model=model, tokens=rollouts.tokens, temperature=1.0, places=None)
        rollouts = dataclasses.replace(rollouts, old_log_probs=old, reference_log_probs=old)
        backend.grpo_step(learner=learner, rollouts=rollouts, config=config, learning_rate=0.03, dropout_seed=0)
    assert np.mean(shares[:3]) < 0.5 and np.mean(shares[-5:]) > 0.9


def test_without_advantage_and_kl_the_weights_do_not_move(twin: Twin):
    case, config = make_case(rows=4, length=12), GRPOConfig(kl_weight=0.0)
    tokens = case.batch()[0]
    zeros = np.zeros((4, 11), np.float32)
    learner = twin.side.backend.make_learner(model=case.make_model(twin.side), config=config)
    rollouts = Rollouts(tokens, zeros + 1, np.zeros(4, np.float32), zeros - 2, zeros - 3, 44.0)
    twin.side.backend.grpo_step(learner=learner, rollouts=rollouts, config=config, learning_rate=0.1, dropout_seed=0)
    require_close(dict(case.parameters), learner_parameters(twin.side, learner), 0.0)


def test_updates_between_twins(yardstick: Side, trained: Twin):
    """Four updates on given completions, for every loss."""
    for config in (VARIANTS[0], VARIANTS[3], CISPO) if trained.compile == "off" else VARIANTS[:1]:
        config = dataclasses.replace(config, epsilon=1e-6, temperature=0.9)
        one, two = (reinforce(side, make_case(), config) for side in (yardstick, trained.side))
        for a, b in zip(one[1], two[1], strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
        require_close(learner_parameters(yardstick, one[0]), learner_parameters(trained.side, two[0]), 1e-5, "absolute")
