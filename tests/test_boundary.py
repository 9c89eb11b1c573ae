"""What the core hands to a twin: every call over the boundary, against numbers worked out here by hand.

Runs are made on the stand-in backend of `stand_in.py`, which notes each call and how often the
weights that it was made with had been updated.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in import (
    BEGAN,
    TRAINED,
    Call,
    Finished,
    StandIn,
    finish,
    install,
    make_stand_in,
    scores,
    small_config,
    write_headlines,
)

from faisca.backend import Sampling
from faisca.config import OptimizerConfig
from faisca.parameters import initial_parameters
from faisca.runs.log import read_records
from faisca.streams import integer_seed, permutation, uniforms
from faisca.training import stages

AN_EPOCH = {"pretrain": 4, "sft": 3}
UPDATES = 6


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_headlines(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def done(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(small_config(material), material, tmp_path_factory.mktemp("boundary") / "run")


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Assert that both are the same arrays."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


# --- memory -------------------------------------------------------------------------------------


def test_every_step_is_made_while_memory_is_held_for_training(done: Finished) -> None:
    held, stages_held, outside = False, 0, []
    for call in done.backend.calls:
        if call.name.startswith("training memory"):
            assert held != (call.name == "training memory begins")
            held, stages_held = not held, stages_held + held
        elif call.name in ("train_step", "grpo_step") and not held:
            outside.append(call)
    assert not held and stages_held == 3 and not outside


def test_memory_is_tidied_at_each_reading_and_what_it_says_is_logged(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tidied = finish(small_config(material), material, tmp_path / "run", tidied=("the attic was full",)).backend
    times = len(tidied.named("tidy_memory"))
    assert times >= len(tidied.named("train_step")) // 10 + 4  # at least every `log_every` steps, and each round
    assert capsys.readouterr().out.count(": the attic was full") == times


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", TRAINED)
def test_every_training_batch_is_of_the_stages_own_titles_and_order(done: Finished, stage: str) -> None:
    data, options, ids = done.config.data, getattr(done.config, stage), done.ids(stage, "train")
    starts = list(range(0, len(ids) - data.window, data.stride))
    starts += [len(ids) - data.window - 1] * (starts[-1] < len(ids) - data.window - 1)
    an_epoch = len(starts) // options.batch_size
    assert an_epoch == AN_EPOCH[stage] < TRAINED[stage]
    wanted = []
    for step in range(TRAINED[stage]):
        epoch, batch = divmod(step, an_epoch)
        order = permutation(5, f"order of {stage} windows", len(starts), epoch)
        rows = order[batch * options.batch_size :][: options.batch_size]
        wanted.append(np.stack([ids[starts[row] : starts[row] + data.window + 1] for row in rows]))
    steps = done.calls("train_step", stage)
    same([step.inputs for step in steps], [rows[:, :-1] for rows in wanted])
    same([step.targets for step in steps], [rows[:, 1:] for rows in wanted])


def cosine(config: OptimizerConfig, step: int, total: int) -> float:
    """A rate by hand: up in `warmup_steps`, down along half a cosine to the share that is left at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    angle = np.pi / 2 * (step - config.warmup_steps) / (total - 1 - config.warmup_steps)
    share = config.min_learning_rate_share
    return config.learning_rate * (share + (1 - share) * np.cos(angle) ** 2)


@pytest.mark.parametrize("stage", TRAINED)
def test_every_training_step_has_its_rate_seed_and_micro_batches(done: Finished, stage: str) -> None:
    config, steps = getattr(done.config, stage), done.calls("train_step", stage)
    total = TRAINED[stage]
    assert [step.learning_rate for step in steps] == pytest.approx(
        [cosine(config, step, total) for step in range(total)], rel=1e-12
    )
    assert [step.dropout_seed for step in steps] == [integer_seed(5, f"dropout in {stage}", i) for i in range(total)]
    assert {step.micro_batch_size for step in steps} == {config.micro_batch_size}
    assert [step.updates for step in steps] == list(range(BEGAN[stage], BEGAN[stage] + total))


def test_no_two_steps_drop_the_same(done: Finished) -> None:
    seeds = [step.dropout_seed for step in done.backend.named("train_step")]
    assert len(set(seeds)) == len(seeds) == 17


def test_each_stage_has_an_optimiser_of_its_own(done: Finished) -> None:
    """Moments begin at zero, with the stage's own options; weights go on."""
    learners = done.backend.named("make_learner")
    assert [learner.config for learner in learners] == [done.config.pretrain, done.config.sft, done.config.grpo]
    assert [learner.updates for learner in learners] == list(BEGAN.values())
    assert [step.learner_steps for step in done.backend.named("train_step")] == [*range(11), *range(6)]
    assert {step.config for step in done.calls("train_step", "sft")} == {done.config.sft}


def test_a_run_begins_with_the_initial_values_of_its_seed(done: Finished) -> None:
    policy, reference = done.backend.named("make_model")
    wanted = initial_parameters(policy.config, 5)
    assert all((policy.parameters[name] == value).all() for name, value in wanted.items())
    assert reference.updates == BEGAN["grpo"]
    assert policy.config == reference.config and policy.config.vocabulary_size == done.tokenizer.vocabulary_size
    assert policy.runtime == reference.runtime


def test_metrics_are_logged_beside_the_step_that_they_are_of(done: Finished) -> None:
    for stage in TRAINED:
        steps = done.calls("train_step", stage)
        lines = [line for line in read_records(done.folder) if line["stage"] == stage and "grad_norm" in line]
        assert [line["grad_norm"] for line in lines] == [step.updates for step in steps]
        assert [line["loss"] for line in lines] == [step.answer["loss"] for step in steps]
        assert [line["learning_rate"] for line in lines] == [step.learning_rate for step in steps]
        assert [line["tokens_seen"] for line in lines] == list(np.cumsum([step.inputs.size for step in steps]))
        assert [line["epoch"] for line in lines] == [(i + 1) / AN_EPOCH[stage] for i in range(len(steps))]


# --- evaluation ---------------------------------------------------------------------------------


def yardstick(done: Finished, stage: str, most: int | None = None) -> list[np.ndarray]:
    """The targets of each batch of a stage's validation titles."""
    options, ids = getattr(done.config, stage), done.ids(stage, "test")
    rows = options.micro_batch_size or options.batch_size
    size = rows * done.config.data.window
    padded = np.concatenate([ids[1:], np.full(-(len(ids) - 1) % size, -1)])
    return list(padded.reshape(-1, rows, done.config.data.window))[:most]


def both(done: Finished, most: int | None = None) -> list[np.ndarray]:
    return yardstick(done, "pretrain", most) + yardstick(done, "sft", most)


def test_evaluations_see_all_of_both_yardsticks_around_a_stage_and_the_first_batches_along_it(done: Finished) -> None:
    """By updates made. A stage's end measures for the next one's beginning too."""
    wanted = {updates: both(done, 3) for updates in (2, 4, 6, 8, 10)}  # every 2 a checkpoint, every 4 an evaluation
    wanted |= {0: both(done) + both(done, 3), 11: both(done, 3) + both(done) + both(done, 2)}
    wanted |= {11 + step: both(done, 2) for step in (2, 3, 4)}
    wanted |= {17: both(done, 2) + both(done), 41: both(done)}
    assert len(both(done, 3)) == 6 and len(both(done, 2)) == 4 and len(both(done)) > 6
    for updates in range(42):
        seen = [call.targets for call in done.backend.named("evaluate") if call.updates == updates]
        same(seen, wanted.get(updates, []))


def test_inputs_of_an_evaluation_are_the_tokens_before_its_targets(done: Finished) -> None:
    for call in done.backend.named("evaluate"):
        flat, targets = call.inputs.ravel(), call.targets.ravel()
        count = int((targets >= 0).sum())
        np.testing.assert_array_equal(flat[1:count], targets[: count - 1])
        assert not flat[count:].any() and (targets[count:] == -1).all()


# --- generation ---------------------------------------------------------------------------------

COUNTED, SHOWN = ("Golo", "", "O vento", "Golo", "", "O vento", "Golo"), ("Gov", "Gov")


def texts(done: Finished, call: Call) -> tuple[str, ...]:
    """Prompts as texts; each begins with an end-of-text."""
    assert all(prompt[0] == done.tokenizer.end_of_text for prompt in call.prompts)
    return tuple(done.tokenizer.decode(prompt) for prompt in call.prompts)


def test_completions_are_counted_and_shown_before_and_after_each_stage(done: Finished) -> None:
    """Counted as GRPO samples, shown as `sample` says; each time with the same uniform numbers."""
    counting, showing = Sampling(0.8, 9, 1.0, 6), Sampling(0.6, 11, 0.9, 5)
    calls = done.backend.named("generate")
    counted = [call for call in calls if texts(done, call) == COUNTED]
    assert [call.updates for call in counted] == [0, 11, 17, 41, 41]  # the last for the divergence
    same([call.uniforms for call in counted], [uniforms(5, "completions counted", step=0, rows=7, columns=6)] * 5)
    assert {call.sampling for call in counted} == {counting}
    shown = [call for call in calls if texts(done, call) == SHOWN]
    assert {call.sampling for call in shown} == {showing}
    assert [call.updates for call in shown] == [0, 4, 8, 11, 14, 17, 17, 41]
    steps = [0, 4, 8, 0, 3, 6, 0, 0]  # at the end of an epoch the step's own, around a stage always the same
    same([call.uniforms for call in shown], [uniforms(5, "samples shown", step=i, rows=2, columns=5) for i in steps])
    assert len(calls) == len(counted) + len(shown) + 4  # and GRPO's four rollouts


# --- GRPO ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A step of GRPO by hand: what a rollout of the noted completions must become."""

    prompts: list[list[int]]
    completions: list[list[int]]
    answers: list[str]
    rewards: np.ndarray
    advantages: np.ndarray


def rollouts(done: Finished) -> list[Call]:
    calls = [call for call in done.backend.named("generate") if len(call.prompts) == 6]
    assert len(calls) == 4
    return calls


def by_hand(done: Finished, call: Call) -> Step:
    answers = [done.tokenizer.decode(completion) for completion in call.answer]
    rewards = np.array([float(len(answer) % 5) for answer in answers])
    advantages = np.zeros(6)
    for first in (0, 3):
        group = rewards[first : first + 3]
        if len(set(group)) > 1:
            advantages[first : first + 3] = (group - group.mean()) / (group.std(ddof=1) + 1e-4)
    return Step(call.prompts, call.answer, answers, rewards, advantages)


def updates_of(done: Finished, step: int) -> list[Call]:
    return done.backend.named("grpo_step")[UPDATES * step : UPDATES * (step + 1)]


def test_prompts_take_turns_a_group_each_and_every_step_draws_anew(done: Finished) -> None:
    prompts = [prompt.rstrip() for prompt in done.config.grpo.prompts]  # a space at the end is left out
    for step, call in enumerate(rollouts(done)):
        wanted = [prompts[(2 * step + i) % 3] for i in range(2) for _ in range(3)]
        assert list(texts(done, call)) == wanted
        assert call.sampling == Sampling(0.8, 9, 1.0, 6)
        np.testing.assert_array_equal(call.uniforms, uniforms(5, "grpo rollout", step=step, rows=6, columns=6))
        assert call.updates == 17 + UPDATES * step  # by the policy as it is now


def test_each_minibatch_is_rows_of_the_rollout_in_the_order_of_its_epoch(done: Finished) -> None:
    """Tokens, mask and advantages, row by row; and the tokens that the minibatch counts."""
    assert len(done.backend.named("grpo_step")) == 4 * UPDATES
    seen = Counter()
    for step, call in enumerate(rollouts(done)):
        made = by_hand(done, call)
        assert made.advantages.any()
        for i, update in enumerate(updates_of(done, step)):
            order = permutation(5, "order of grpo completions", 6, 2 * step + i // 3)
            rows = order[2 * (i % 3) :][:2]
            for place, row in enumerate(rows):
                prompt, completion = made.prompts[row], made.completions[row]
                tokens, mask = update.rollouts.tokens[place], update.rollouts.mask[place]
                length = len(prompt) + len(completion)
                assert tokens[:length].tolist() == prompt + completion
                assert (tokens[length:] == done.tokenizer.end_of_text).all()
                assert np.flatnonzero(mask).tolist() == list(range(len(prompt) - 1, length - 1))
                assert update.rollouts.advantages[place] == np.float32(made.advantages[row])
            assert update.rollouts.step_tokens == sum(len(made.completions[row]) for row in rows)
            seen[tuple(rows)] += 1
    assert len(seen) > UPDATES, "each step and epoch has an order of its own"


def test_ratios_are_to_the_policy_that_sampled_and_kl_is_to_the_one_that_began(done: Finished) -> None:
    """Old log-probabilities are those before the step's updates, both at the temperature of the rollout."""
    assert {call.temperature for call in done.backend.named("token_log_probs")} == {0.8}
    for step in range(4):
        for update in updates_of(done, step):
            given, kept = update.rollouts, update.rollouts.mask > 0
            old, reference = (scores(updates, given.tokens, 0.8) for updates in (17 + UPDATES * step, 17))
            np.testing.assert_array_equal(given.old_log_probs[kept], old[kept])
            np.testing.assert_array_equal(given.reference_log_probs[kept], reference[kept])
            assert step == 0 or (old != reference)[kept].any()


def test_every_update_has_the_rate_of_its_step_and_the_options_of_grpo(done: Finished) -> None:
    grpo = done.config.grpo
    for step in range(4):
        updates = updates_of(done, step)
        assert [update.learning_rate for update in updates] == pytest.approx([cosine(grpo, step, 4)] * 6, rel=1e-12)
        assert {update.config for update in updates} == {update.optimizer for update in updates} == {grpo}
        assert [update.updates for update in updates] == list(range(17 + 6 * step, 23 + 6 * step))


def test_what_is_logged_of_a_step_is_of_its_completions_and_updates(done: Finished) -> None:
    lines = [line for line in read_records(done.folder) if line["stage"] == "grpo" and "reward_mean" in line]
    football = [{"Golo", "Taça", "Liga"} & set(by_hand(done, call).answers) for call in rollouts(done)]
    assert any(football)
    for step, (line, call) in enumerate(zip(lines, rollouts(done), strict=True)):
        made, updates = by_hand(done, call), updates_of(done, step)
        lengths = [len(completion) for completion in made.completions]
        ended = [completion[-1] == done.tokenizer.end_of_text for completion in made.completions]
        best = int(np.argmax(made.rewards))
        prompt = done.tokenizer.decode(made.prompts[best])
        assert (line["step"], line["updates"], line["skipped"]) == (step + 1, 6, 0)
        assert line["learning_rate"] == updates[0].learning_rate
        wanted: dict[str, Any] = {
            "reward_mean": made.rewards.mean(),
            "reward_std": made.rewards.std(ddof=1),
            "equal_groups_share": np.mean([len(set(made.rewards[i : i + 3])) == 1 for i in (0, 3)]),
            "football_share": np.mean([answer in ("Golo", "Taça", "Liga") for answer in made.answers]),
            "distinct_share": len(set(made.answers)) / 6,
            "completion_length_mean": np.mean(lengths),
            "completion_length_min": min(lengths),
            "completion_length_max": max(lengths),
            "truncated_share": 1 - np.mean(ended),
            "kl": np.mean([update.answer["kl"] for update in updates]),
            "entropy": np.mean([update.answer["entropy"] for update in updates]),
            "ratio_max": max(update.answer["ratio_max"] for update in updates),
        }
        assert {name: line[name] for name in wanted} == pytest.approx(wanted, rel=1e-12)
        assert line["sample"] == " ".join((prompt + made.answers[best]).split())


def test_every_completion_is_on_record(done: Finished) -> None:
    """All of a step's, row by row, with the same numbers that the updates were made of."""
    lines = [json.loads(line) for line in (done.folder / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 6
    for step, call in enumerate(rollouts(done)):
        made, rows = by_hand(done, call), lines[6 * step : 6 * step + 6]
        prompts = [done.config.grpo.prompts[(2 * step + i) % 3] for i in range(2) for _ in range(3)]
        assert [row["step"] for row in rows] == [step + 1] * 6
        assert [row["prompt"] for row in rows] == prompts
        assert [row["completion"] for row in rows] == made.answers
        assert [row["reward"] for row in rows] == [row["rewards"]["length"] for row in rows] == made.rewards.tolist()
        assert [row["advantage"] for row in rows] == pytest.approx(made.advantages.tolist(), rel=1e-12)
        assert [row["ended"] for row in rows] == [ids[-1] == done.tokenizer.end_of_text for ids in made.completions]


@pytest.fixture(scope="module")
def asked(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with prompts of a file, several weighted rewards, one of which leaves completions out."""
    folder = tmp_path_factory.mktemp("asked")
    prompts = [{"prompt": "Golo" * (i + 1), "wanted": i, "spare": None} for i in range(3)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "mine.py").write_text(
        "def column(completions, prompts, wanted):\n"
        "    assert [p == 'Golo' * (w + 1) for p, w in zip(prompts, wanted)] == [True] * len(prompts)\n"
        "    return [None if c.endswith('a') else 10.0 * w + len(c) for c, w in zip(completions, wanted)]\n"
    )
    options = {
        "grpo.prompts_file": str(folder / "prompts.jsonl"),
        "grpo.reward": (f"{folder}/mine.py:column", "football", f"{folder}/mine.py:column"),
        "grpo.reward_weights": (1.0, -3.0, 0.25),
    }
    return finish(small_config(material, **options), material, folder / "run")


def test_weighted_rewards_see_the_prompt_and_columns_of_their_row(asked: Finished) -> None:
    """The sum by hand, NaN left out, becomes the advantages of the updates; each reward is logged on its own."""
    lines = [line for line in read_records(asked.folder) if line["stage"] == "grpo" and "reward_mean" in line]
    left_out, orders = 0, []
    for step, (line, call) in enumerate(zip(lines, rollouts(asked), strict=True)):
        wanted = [len(asked.tokenizer.decode(prompt)) // 4 - 1 for prompt in call.prompts]
        assert wanted[0::3] == wanted[1::3] == wanted[2::3] and len(wanted) == 6, "a group has one prompt"
        orders += wanted[0::3]
        answers = [asked.tokenizer.decode(completion) for completion in call.answer]
        column = [np.nan if a.endswith("a") else 10.0 * w + len(a) for a, w in zip(answers, wanted, strict=True)]
        football = [float(answer in ("Golo", "Taça", "Liga")) for answer in answers]
        total = np.nansum([column, [-3 * hit for hit in football], [0.25 * one for one in column]], axis=0)
        left_out += int(np.isnan(column).sum())
        assert line["reward_mean"] == pytest.approx(total.mean(), rel=1e-12)
        for name, values in (("column", column), ("football", football), ("column_2", column)):
            known = [value for value in values if value == value]
            assert line[f"reward/{name}_mean"] == (pytest.approx(np.mean(known)) if known else None)
            assert line[f"reward/{name}_failed"] == 0
        for i, update in enumerate(updates_of(asked, step)):
            rows = permutation(5, "order of grpo completions", 6, 2 * step + i // 3)[2 * (i % 3) :][:2]
            for place, row in enumerate(rows):
                group = total[row // 3 * 3 :][:3]
                wanted_advantage = (total[row] - group.mean()) / (group.std(ddof=1) + 1e-4) if np.ptp(group) else 0
                assert update.rollouts.advantages[place] == pytest.approx(wanted_advantage, rel=1e-5, abs=1e-6)
    assert left_out, "some completion is left out by a reward"
    assert orders == [int(i) for turn in range(3) for i in permutation(5, "order of grpo prompts", 3, turn)][:8]


# --- a run that was interrupted -----------------------------------------------------------------


class StopHereError(Exception):
    """Ends a run at a call."""


def broken_off(material: Path, folder: Path, function: str, updates: int) -> StandIn:
    """The calls of a run's second half: it died in the update after so many, and was resumed."""
    config = small_config(material)
    for resuming in (False, True):
        backend = make_stand_in(config, material)
        whole = getattr(backend, function)

        def stopping(*, learner: Any, whole: Any = whole, **given: Any) -> Any:
            if learner.model.updates == updates:
                raise StopHereError
            return whole(learner=learner, **given)

        with pytest.MonkeyPatch.context() as patch:
            install(patch, backend)
            if resuming:
                stages.resume(folder, config)
            else:
                setattr(backend, function, stopping)
                with pytest.raises(StopHereError):
                    stages.run(config, folder)
    return backend


@pytest.mark.parametrize(
    ("function", "updates", "resumed_at"),
    [("train_step", 7, 6), ("train_step", 14, 13), ("grpo_step", 33, 29), ("grpo_step", 18, 17)],
)
def test_a_resumed_run_hands_over_what_the_unbroken_run_did(
    done: Finished, material: Path, tmp_path: Path, function: str, updates: int, resumed_at: int
) -> None:
    """Batches, rates, seeds, rollouts, log-probabilities: all calls that follow the checkpoint."""
    backend = broken_off(material, tmp_path / "run", function, updates)
    for name in ("train_step", "grpo_step"):
        again = backend.named(name)
        whole = [call for call in done.backend.named(name) if call.updates >= resumed_at]
        assert [call.updates for call in again] == [call.updates for call in whole]
        for one, other in zip(again, whole, strict=True):
            assert flat(one) == flat(other)
    reference = backend.named("make_model")[1]
    assert reference.updates == BEGAN["grpo"]
    written = [(folder / "completions.jsonl").read_bytes() for folder in (tmp_path / "run", done.folder)]
    assert written[0] == written[1], "every completion once"


def flat(call: Call) -> dict[str, Any]:
    """What was given, with arrays as bytes."""
    given = call.given | (vars(call.rollouts) if "rollouts" in call.given else {"rollouts": None})
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else value
        for name, value in given.items()
        if name != "rollouts"
    }


def test_a_stage_from_a_checkpoint_begins_with_its_weights_and_a_new_optimiser(
    done: Finished, material: Path, tmp_path: Path
) -> None:
    for stage, start, began in (("sft", "pretrain-000011", 11), ("grpo", "sft-000006", 17), ("sft", "grpo-000004", 41)):
        backend = make_stand_in(done.config, material)
        config = small_config(material, **{"run.stages": (stage,)})
        with pytest.MonkeyPatch.context() as patch:
            install(patch, backend)
            stages.run(config, tmp_path / f"{stage}-{began}", done.folder / "checkpoints" / start)
        models, (learner,) = backend.named("make_model"), backend.named("make_learner")
        assert [model.updates for model in models] == [began] * (1 + (stage == "grpo"))
        assert learner.updates == began and learner.config == getattr(config, stage)
        assert not backend.named("set_optimizer_state")
        summary = json.loads((tmp_path / f"{stage}-{began}" / "summary.json").read_text())
        assert [entry["stage"] for entry in summary["stages"]] == [stage]
