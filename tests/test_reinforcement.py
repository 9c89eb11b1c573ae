"""GRPO in the core: packing, what the first pass must be, and when no weight may move."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from setups import TWELVE, small_setup
from small_models import TWINS, open_twin, same_arrays, small_model
from stand_in import StandIn

from faisca.config import GRPOConfig, SampleConfig
from faisca.data.prompts import Task
from faisca.data.tokenizer import Tokenizer
from faisca.parameters import initial_parameters
from faisca.rewards.advantages import group_advantages
from faisca.rewards.judge import Scores
from faisca.training.evaluate import kl_divergence
from faisca.training.grpo import (
    Completions,
    kl_to_reference,
    pack,
    roll_out,
)
from faisca.training.grpo_update import select_rows, update_policy, with_log_probs
from faisca.training.rollout_report import Round, measure_round
from faisca.training.setup import Setup

TOKENIZER = Tokenizer.train(["O vento sopra", "O Porto vence"] * 5, 270)
EOT = TOKENIZER.end_of_text
GRPO = GRPOConfig(group_size=4, minibatch_size=4, epochs=1, max_new_tokens=6, prompts=("", "O "), prompts_per_step=2)


@pytest.fixture
def setup(twin):
    return make_setup(twin)


def make_setup(twin, grpo: GRPOConfig = GRPO, tokenizer: Tokenizer = TOKENIZER, context: int = 32, **model) -> Setup:
    return small_setup(twin, tokenizer, {"grpo": grpo, "sample": SampleConfig(counted=6)}, context=context, **model)


def with_backend(setup: Setup, backend, **grpo) -> Setup:
    """The setup with another backend and other options of GRPO."""
    config = dataclasses.replace(setup.config, grpo=dataclasses.replace(setup.config.grpo, **grpo))
    return dataclasses.replace(setup, backend=backend, config=config)


def packed(completions, prompts=None, *, context=64, **options):
    prompts = prompts or [[EOT]] * len(completions)
    written = Completions([Task("")] * len(completions), prompts, completions)
    setup = make_setup(StandIn(), GRPOConfig(**options), context=context)
    return pack(setup, written, np.arange(len(completions), dtype=float))


# --- packing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion", "mask"),
    [
        ([EOT], [1, EOT], [1, 1, 0, 0]),
        ([EOT], [1, 2, 3, 4], [1, 1, 1, 1]),
        ([EOT], [EOT], [1, 0, 0, 0]),
        ([EOT, 5], [1, EOT], [0, 1, 1, 0]),
        ([EOT, 5, 6], [EOT], [0, 0, 1, 0]),
    ],
)
def test_the_mask_is_the_completion_with_its_end_of_text(prompt, completion, mask):
    rollouts = packed([completion], [prompt])
    assert rollouts.mask.shape == (1, 16) and rollouts.mask[0].tolist() == mask + [0] * 12
    row = prompt + completion
    assert rollouts.tokens[0].tolist() == row + [EOT] * (17 - len(row))
    assert (rollouts.tokens[0, 1:][rollouts.mask[0] > 0] == completion).all()  # what the mask says is predicted


def test_truncated_completions_are_masked_if_asked():
    completions = [[1, 2], [1, EOT], [1, 2, 3]]
    kept, masked = packed(completions), packed(completions, mask_truncated=True)
    assert kept.mask.sum(1).tolist() == [2, 2, 3] and kept.step_tokens == 7
    assert masked.mask.sum(1).tolist() == [0, 2, 0] and masked.step_tokens == 2


@pytest.mark.parametrize(
    ("longest", "context", "inputs"),
    [(2, 64, 16), (17, 64, 16), (18, 64, 32), (65, 64, 64), (20, 20, 20), (21, 20, 20)],
)
def test_lengths_are_padded_to_few_shapes_within_the_context(longest, context, inputs):
    rollouts = packed([[1] * (longest - 1), [1, EOT]], context=context)
    assert rollouts.tokens.shape == (2, inputs + 1) and rollouts.mask.shape == (2, inputs)
    assert rollouts.mask.sum(1).tolist() == [longest - 1, 2]


def test_types_are_those_of_the_boundary():
    rollouts = packed([[1, EOT], [2, EOT]])
    types = [getattr(rollouts, field.name) for field in dataclasses.fields(rollouts)]
    assert [value.dtype.name for value in types[:-2]] == ["int32"] + ["float32"] * 4
    assert rollouts.advantages.tolist() == [0, 1] and isinstance(rollouts.step_tokens, float)


def test_selected_rows_count_their_own_tokens():
    rollouts = packed([[1, EOT], [1, 2, 3, EOT], [4, EOT]])
    part = select_rows(rollouts, np.array([1, 2]))
    assert part.tokens.tolist() == rollouts.tokens[1:].tolist() and part.advantages.tolist() == [1, 2]
    assert part.step_tokens == 6


# --- rollouts -----------------------------------------------------------------------------------


def test_prompts_take_turns_and_rows_of_a_group_are_neighbours(twin):
    grpo = dataclasses.replace(GRPO, prompts=("", "O ", "Porto"))
    setup = make_setup(twin, grpo)
    model = small_model(twin, setup.model_config)
    texts = [[task.text for task in roll_out(setup, model, step).tasks] for step in range(3)]
    assert [row[::4] for row in texts] == [["", "O "], ["Porto", ""], ["O ", "Porto"]]
    assert all(row[i] == row[i - i % 4] for row in texts for i in range(8))


def test_each_row_and_step_is_a_draw_of_its_own(setup, twin):
    model = small_model(twin, setup.model_config)
    first, again, second = roll_out(setup, model, 0), roll_out(setup, model, 0), roll_out(setup, model, 1)
    assert first == again and first.completions != second.completions
    assert len({tuple(row) for row in first.completions}) == 8


def rolled_out(setup, model, advantages=None, step=0, reference=None):
    """What a step wrote; and that packed with log-probabilities, of another model as the reference if none is given."""
    written = roll_out(setup, model, step)
    values = np.linspace(-1, 1, 8) if advantages is None else advantages
    reference = reference or small_model(setup.backend, setup.model_config, seed=9)
    return written, with_log_probs(setup, pack(setup, written, values), model, reference)


def test_padding_has_no_say(setup, twin):
    model = small_model(twin, setup.model_config)
    _, rollouts = rolled_out(setup, model)
    garbage = rollouts.tokens.copy()
    last = rollouts.mask.shape[1] - rollouts.mask[:, ::-1].argmax(1)  # index of each row's last token
    for row, end in enumerate(last):
        garbage[row, end + 1 :] = (garbage[row, end + 1 :] + 1 + row) % setup.model_config.vocabulary_size
    assert not np.array_equal(garbage, rollouts.tokens)
    found = twin.token_log_probs(model=model, tokens=garbage, temperature=GRPO.temperature, places=None)
    kept = rollouts.mask > 0
    assert np.allclose(found[kept], rollouts.old_log_probs[kept], atol=1e-6)


def test_log_probs_are_at_the_sampling_temperature(twin):
    setup = make_setup(twin, dataclasses.replace(GRPO, temperature=0.5))
    model = small_model(twin, setup.model_config)
    _, rollouts = rolled_out(setup, model)
    cold = twin.token_log_probs(model=model, tokens=rollouts.tokens, temperature=0.5, places=None)
    warm = twin.token_log_probs(model=model, tokens=rollouts.tokens, temperature=1.0, places=None)
    kept = rollouts.mask > 0
    assert np.allclose(rollouts.old_log_probs[kept], cold[kept], atol=1e-5)
    assert not np.allclose(cold[kept], warm[kept], atol=0.1)
    assert not np.allclose(rollouts.reference_log_probs[kept], cold[kept], atol=0.1)


# --- updates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_in_the_first_pass_the_ratio_is_one(twin, dropout):
    """One minibatch, so no update comes before it; dropout would make the ratio differ."""
    setup = make_setup(twin, dataclasses.replace(GRPO, minibatch_size=8), dropout=dropout)
    model = small_model(twin, setup.model_config)
    learner = twin.make_learner(model=model, config=setup.config.grpo)
    _, rollouts = rolled_out(setup, model)
    (first,) = update_policy(setup, learner, rollouts, step=0, rate=0.1)
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-6) and first["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert first["clip_low_share"] == first["clip_high_share"] == 0
    expected = kl_divergence(rollouts.old_log_probs, rollouts.reference_log_probs, rollouts.mask)
    assert first["kl"] == pytest.approx(expected, rel=1e-4)
    (second,) = update_policy(setup, learner, rollouts, step=1, rate=0.1)
    assert second["ratio_max"] > 1.1  # so the comparison above can fail


def test_dropout_is_never_active(twin):
    """A model that has dropout in training makes the same steps as one that has none."""
    after = []
    for dropout in (0.0, 0.5):
        setup = make_setup(twin, dropout=dropout, attention_dropout=dropout)
        model = small_model(twin, setup.model_config)
        learner = twin.make_learner(model=model, config=setup.config.grpo)
        if dropout:
            inputs = np.zeros((2, 4), np.int32)  # a step of pre-training leaves the model in training mode
            arguments = {"inputs": inputs, "targets": inputs, "micro_batch_size": 0, "dropout_seed": 0}
            twin.train_step(learner=learner, **arguments, learning_rate=0.0)
            learner = twin.make_learner(model=model, config=setup.config.grpo)
        for step in range(2):
            update_policy(setup, learner, rolled_out(setup, model, step=step)[1], step, rate=1e-2)
        after.append(twin.get_parameters(model=model))
    assert same_arrays(*after)
    assert not same_arrays(after[0], initial_parameters(setup.model_config, 0))


def test_every_completion_is_learnt_from_once_an_epoch(setup, twin):
    seen = []

    def grpo_step(*, learner, rollouts, config, learning_rate, dropout_seed):
        seen.append(rollouts.advantages.tolist())
        return len(seen)

    fake = SimpleNamespace(grpo_step=grpo_step, read_metrics=lambda metrics: metrics)
    rollouts = packed([[1, EOT]] * 8)
    setup = with_backend(setup, fake, epochs=3)
    assert update_policy(setup, None, rollouts, step=0, rate=0.1) == [1, 2, 3, 4, 5, 6]
    epochs = [seen[i] + seen[i + 1] for i in range(0, 6, 2)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_with_everything_truncated_no_weight_moves(twin):
    setup = make_setup(twin, dataclasses.replace(GRPO, mask_truncated=True, weight_decay=0.1))
    model = small_model(twin, setup.model_config)
    learner = twin.make_learner(model=model, config=setup.config.grpo)
    written, _ = rolled_out(setup, model)

    def update(completions) -> list[dict[str, float]]:
        rollouts = pack(setup, dataclasses.replace(written, completions=completions, log_probs=None), np.ones(8))
        return update_policy(setup, learner, with_log_probs(setup, rollouts, model, model), 0, 1e-2)

    assert len(update([[1, 2, EOT]] * 8)) == 2  # the moments are no longer zero
    before, state = twin.get_parameters(model=model), twin.get_optimizer_state(learner=learner)
    assert update([[1, 2, 3]] * 8) == []
    assert same_arrays(twin.get_parameters(model=model), before)
    assert same_arrays(twin.get_optimizer_state(learner=learner), state)
    assert len(update([[1, 2, 3]] * 7 + [[1, EOT]])) == 1  # the one minibatch that has something to learn


def test_an_advantage_that_is_masked_is_no_signal(twin):
    """One group all truncated, with different rewards; the other with equal rewards: the gradient is 0."""
    grpo = dataclasses.replace(GRPO, mask_truncated=True, minibatch_size=8)
    setup = make_setup(twin, grpo)
    model = small_model(twin, setup.model_config)
    learner = twin.make_learner(model=model, config=grpo)
    written, _ = rolled_out(setup, model)
    others = [[1, 2, 3]] * 4 + [[1, EOT], [2, EOT], [1, 2, EOT], [3, EOT]]
    written = dataclasses.replace(written, completions=others, log_probs=None)
    advantages = group_advantages(np.array([0, 1, 0, 0, 1, 1, 1, 1.0]), 4, "group")
    assert advantages[:4].all() and not advantages[4:].any()

    def update(advantages) -> list[dict[str, float]]:
        rollouts = with_log_probs(setup, pack(setup, written, advantages), model, model)
        return update_policy(setup, learner, rollouts, 0, 1e-2)

    before = twin.get_parameters(model=model)
    assert update(advantages) == []
    assert same_arrays(twin.get_parameters(model=model), before)
    assert len(update(advantages[::-1])) == 1 and not same_arrays(twin.get_parameters(model=model), before)


@pytest.mark.parametrize("kl_weight", [0.0, 0.02])
def test_a_minibatch_without_advantage_waits_for_the_policy_to_leave_its_reference(setup, kl_weight):
    """Two epochs of two minibatches, one row with an advantage: its minibatch comes first, the other for KL alone."""
    rows = np.arange(8)
    rollouts = packed([[1, EOT]] * 8)
    seen = []

    def grpo_step(*, learner, rollouts, config, learning_rate, dropout_seed):
        seen.append(int(not rollouts.advantages.any()))

    fake = SimpleNamespace(grpo_step=grpo_step, read_metrics=lambda metrics: metrics)
    setup = with_backend(setup, fake, kl_weight=kl_weight, epochs=2)
    for wanted in rows:  # wherever the one row with an advantage stands
        seen.clear()
        one = dataclasses.replace(rollouts, advantages=(rows == wanted).astype(np.float32))
        update_policy(setup, None, one, 0, 0.1)
        # the minibatches before the first with an advantage are left out, all after it count if there is a KL weight
        assert seen[0] == 0 and seen.count(0) == 2
        assert (1 in seen) == (kl_weight > 0)
    away = dataclasses.replace(rollouts, advantages=np.zeros(8, np.float32), reference_log_probs=rollouts.mask)
    seen.clear()
    update_policy(setup, None, away, 0, 0.1)
    assert len(seen) == (4 if kl_weight else 0)
    alone = away.mask * (rows == 3)[:, None]
    seen.clear()
    update_policy(setup, None, dataclasses.replace(away, mask=alone, reference_log_probs=alone), 0, 0.1)
    assert len(seen) == (2 if kl_weight else 0), "the other minibatch has no token that counts"
    hidden = dataclasses.replace(away, mask=np.zeros_like(away.mask), reference_log_probs=1 + 0 * away.mask)
    seen.clear()
    update_policy(setup, None, hidden, 0, 0.1)
    assert not seen


@pytest.mark.parametrize(
    ("kl_weight", "entropy_weight", "seed", "moves"),
    [(0.0, 0.0, 9, False), (0.02, 0.0, 0, False), (0.02, 0.0, 9, True), (0.0, 0.1, 0, True)],
)
def test_without_advantage_only_a_distance_to_the_reference_or_a_bonus_moves_weights(
    twin, kl_weight, entropy_weight, seed, moves
):
    """The reference's log-probabilities are of a pass, the policy's the sampler's: rounding parts them, and no more."""
    setup = make_setup(twin, dataclasses.replace(GRPO, kl_weight=kl_weight, entropy_weight=entropy_weight))
    model, reference = (small_model(twin, setup.model_config, seed=seed) for seed in (0, seed))
    learner = twin.make_learner(model=model, config=setup.config.grpo)
    before = twin.get_parameters(model=model)
    _, rollouts = rolled_out(setup, model, np.zeros(8), reference=reference)
    assert bool(update_policy(setup, learner, rollouts, 0, 1e-2)) == moves
    assert same_arrays(twin.get_parameters(model=model), before) != moves


def test_without_advantage_and_kl_the_gradient_is_zero(twin):
    setup = make_setup(twin, dataclasses.replace(GRPO, kl_weight=0.0))
    model = small_model(twin, setup.model_config)
    learner = twin.make_learner(model=model, config=setup.config.grpo)
    before = twin.get_parameters(model=model)
    _, rollouts = rolled_out(setup, model, np.zeros(8))
    step = twin.grpo_step(
        learner=learner, rollouts=rollouts, config=setup.config.grpo, learning_rate=1e-2, dropout_seed=0
    )
    assert twin.read_metrics(metrics=[step])[0]["grad_norm"] == 0
    assert same_arrays(twin.get_parameters(model=model), before)


def test_the_rewarded_token_becomes_likelier():
    """A bandit: completions of one token among 12, one of them rewarded."""
    twin = open_twin(TWINS[0])
    grpo = GRPOConfig(group_size=16, minibatch_size=16, epochs=1, max_new_tokens=1, kl_weight=0.0)
    setup = make_setup(twin, grpo, TWELVE)
    model = small_model(twin, setup.model_config)
    learner = twin.make_learner(model=model, config=grpo)
    hits = []
    for step in range(60):
        written = roll_out(setup, model, step)
        rewards = np.array([float(ids == [7]) for ids in written.completions])
        advantages = group_advantages(rewards, 16, "group")
        rollouts = with_log_probs(setup, pack(setup, written, advantages), model, model)
        update_policy(setup, learner, rollouts, step, 5e-3)
        hits.append(rewards.mean())
    assert np.mean(hits[:3]) < 0.4 and np.mean(hits[-5:]) > 0.9


# --- what is logged -----------------------------------------------------------------------------


def watched(setup, rewards, updates=(), completions=None) -> dict:
    completions = completions or [[1, EOT], [1, 2], [1, 2, 3], [EOT], [1, EOT], [1, 2], [1, 2, 3], [EOT]]
    written = Completions([Task(""), Task("O ")] * 4, [[EOT]] * 8, completions)
    answers = ["golo", "a", "b", "c", "golo", "a", "b", "d"]
    scores = Scores(np.array(rewards, float), {"mine": np.array(rewards, float)}, {})
    return measure_round(Round.of(setup, written, answers, scores, np.arange(8) / 8), list(updates))


def test_a_step_is_watched(setup):
    updates = [{"skipped": s, "ratio_max": 1.0 + s, "kl": 0.1 * s, "loss": 1.0} for s in (0.0, 1.0, 0.0)]
    measured = watched(setup, [0, 0, 0, 0, 1, 0, 0, 0], updates)
    assert (measured["updates"], measured["skipped"], measured["ratio_max"]) == (2, 1, 2.0)
    assert measured["kl"] == pytest.approx(0.1 / 3) and measured["equal_groups_share"] == 0.5
    assert measured["reward_mean"] == 1 / 8 and measured["reward_std"] == pytest.approx(np.sqrt(1 / 8))
    assert measured["football_share"] == 0.25 and measured["distinct_share"] == 5 / 8
    lengths = [measured[f"completion_length_{name}"] for name in ("mean", "min", "max")]
    assert lengths == [2.0, 1, 3] and measured["truncated_share"] == 0.5
    assert measured["sample"] == "golo"  # that of the highest reward
    assert measured["best"] == {"text": measured["sample"], "reward": 1.0, "advantage": 4 / 8}
    assert measured["worst"]["reward"] == 0.0 and measured["worst"]["advantage"] == 0.0


@pytest.mark.parametrize(
    ("rewards", "mean", "deviation"), [([np.nan] * 8, None, None), ([np.nan] * 7 + [2], 2.0, None)]
)
def test_what_cannot_be_measured_is_unknown(setup, rewards, mean, deviation):
    measured = watched(setup, rewards)
    assert (measured["reward_mean"], measured["reward_std"]) == (mean, deviation)
    assert measured["updates"] == 0 and measured["kl"] is None and measured["ratio_max"] is None


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_the_final_divergence_is_measured_over_all_counted_tokens(twin, mask_truncated):
    setup = make_setup(twin, dataclasses.replace(GRPO, mask_truncated=mask_truncated, max_new_tokens=2))
    model, reference = (small_model(twin, setup.model_config, seed=seed) for seed in (0, 1))
    assert kl_to_reference(setup, model, model) == 0
    assert kl_to_reference(setup, model, reference) > 0.1
