"""Rung 0: the single-file lessons compute what the packages compute, and the same as one another.

The lessons are the naive algorithm: all logits at once, no cache, the framework's own losses,
optimisers and clipping. So they check the packages' chunked losses, caches and optimisers, too.
"""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
from cases import TWINS, Twin, make_case, setup_of
from close import require_close
from one_file import Arrays, Lesson, settings_of

from faisca.backend import Rollouts, Sampling
from faisca.config import GRPOConfig, OptimizerConfig
from faisca.parameters import initial_parameters
from faisca.parity.cases import Case, completions, uneven_parameters
from faisca.parity.rungs import gradients, learner_parameters, train
from faisca.rewards.advantages import group_advantages
from faisca.rewards.built_in import football
from faisca.streams import uniforms
from faisca.training.grpo import Completions, pack

AS_IN_THE_LESSON = {"schedule": "constant", "warmup_steps": 0, "decay": "all", "clip_norm": 1.0, "epsilon": 1e-8}
TRAINING = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, **AS_IN_THE_LESSON)
GRPO = GRPOConfig(learning_rate=1e-3, kl_weight=0.02, temperature=0.8, weight_decay=0.0, **AS_IN_THE_LESSON)
HALVES = (slice(0, None, 2), slice(1, None, 2)) * 2


@pytest.fixture
def lesson(twin: Twin) -> Lesson:
    return Lesson(twin)


# --- what both do: from lesson to package ---------------------------------------------------------


def lesson_training(lesson: Lesson, case: Case, steps: int = 10) -> tuple[np.ndarray, Arrays]:
    """Losses, and how the weights moved."""
    script, model = lesson.script, lesson.model(case.model, case.parameters)
    optimizer = script.make_optimizer(model, 0.1)
    losses = []
    for step in range(steps):
        model.train()
        losses.append(script.update(model, optimizer, partial(script.cross_entropy, model, *case.batch(step)), 1e-3))
    return np.array(losses), moved(case, lesson.weights(model))


def lesson_rollouts(lesson: Lesson, case: Case, model: Any) -> Any:
    """The case's completions, scored by the model and by a reference that differs from it."""
    reference = lesson.model(case.model, uneven_parameters(case.model, case.seed + 1))
    tokens, mask, advantages = completions(case)
    old, ref = (lesson.numpy(lesson.script.log_probs(m, tokens, GRPO.temperature)) for m in (model, reference))
    return lesson.script.Rollouts(tokens, mask, advantages, old, ref)


def lesson_reinforcement(lesson: Lesson, case: Case) -> tuple[np.ndarray, Arrays]:
    """Losses of four updates, and how the weights moved."""
    script, model = lesson.script, lesson.model(case.model, case.parameters)
    rollouts, optimizer = lesson_rollouts(lesson, case, model), script.make_optimizer(model, 0.0)
    losses = [
        script.update(model, optimizer, partial(script.policy_loss, model, rollouts.rows(rows), 0.8), 1e-3)
        for rows in HALVES
    ]
    return np.array(losses), moved(case, lesson.weights(model))


def lesson_policy_gradients(lesson: Lesson, case: Case) -> tuple[float, Arrays]:
    """Of the loss after the weights have left those that the completions were scored with, so that clipping acts."""
    model = lesson.model(case.model, case.parameters)
    rollouts, away = lesson_rollouts(lesson, case, model), lesson.model(case.model, nudged(case))
    return lesson.value_and_gradients(away, partial(lesson.script.policy_loss, away, rollouts, 0.8))


def package_rollouts(twin: Twin, case: Case) -> Rollouts:
    tokens, mask, advantages = completions(case)
    other = dataclasses.replace(case, parameters=uneven_parameters(case.model, case.seed + 1))
    old, ref = (
        twin.side.backend.token_log_probs(
            model=scorer.make_model(twin.side), tokens=tokens, temperature=GRPO.temperature, places=None
        )
        for scorer in (case, other)
    )
    return Rollouts(tokens, mask, advantages, old, ref, float(mask.sum()))


def package_reinforcement(twin: Twin, case: Case, config: GRPOConfig, halves: Any = HALVES) -> tuple[Any, Any]:
    """The learner after the updates, and their metrics; the completions are scored with `package_rollouts`."""
    backend, rollouts = twin.side.backend, package_rollouts(twin, make_case(case.seed))
    learner = backend.make_learner(model=case.make_model(twin.side), config=config)
    metrics = []
    for rows in halves:
        arrays = (rollouts.tokens, rollouts.mask, rollouts.advantages)
        scores = (rollouts.old_log_probs, rollouts.reference_log_probs)
        part = Rollouts(*(array[rows] for array in (*arrays, *scores)), rollouts.step_tokens)
        metrics.append(
            backend.grpo_step(learner=learner, rollouts=part, config=config, learning_rate=1e-3, dropout_seed=0)
        )
    return learner, backend.read_metrics(metrics=metrics)


def moved(case: Case, after: Arrays) -> Arrays:
    return {"change": np.concatenate([(after[name] - value).ravel() for name, value in case.parameters.items()])}


def nudged(case: Case) -> Arrays:
    """Weights so far from the case's that some ratios are clipped."""
    noise = np.random.default_rng(5)
    return {
        name: value + np.float32(0.03) * noise.standard_normal(value.shape, np.float32)
        for name, value in case.parameters.items()
    }


# --- each lesson against the package of its framework ---------------------------------------------


def test_the_same_initial_values_bit_for_bit(lesson: Lesson):
    case = make_case()
    drawn = lesson.script.initial_values(settings_of(case.model, seed=7))
    require_close(initial_parameters(case.model, 7), drawn, 0.0)
    require_close(drawn, lesson.weights(lesson.model(case.model, drawn)), 0.0)


def test_the_same_logits_and_losses(lesson: Lesson, twin: Twin):
    case, backend = make_case(), twin.side.backend
    model, theirs, (inputs, targets) = (
        lesson.model(case.model, case.parameters),
        case.make_model(twin.side),
        case.batch(),
    )
    expected = {"logits": backend.logits(model=theirs, tokens=inputs)}
    expected["loss"] = np.array(backend.evaluate(model=theirs, inputs=inputs, targets=targets) / targets.size)
    found = {"logits": lesson.logits(model, inputs)}
    found["loss"] = lesson.numpy(lesson.script.cross_entropy(model, inputs, targets))
    require_close(expected, found, 1e-5)


def test_the_same_gradients(lesson: Lesson, twin: Twin):
    case = make_case()
    model = lesson.model(case.model, case.parameters)
    _, found = lesson.value_and_gradients(model, partial(lesson.script.cross_entropy, model, *case.batch()))
    require_close(gradients(twin.side, case), found, 1e-5, "norm")


def test_the_same_training(lesson: Lesson, twin: Twin):
    """Ten steps of AdamW with decay and clipping: a head three times as steep has gradients to clip."""
    case = make_case()
    case.parameters["out_head.weight"] *= 3
    losses, change = lesson_training(lesson, case)
    learner, metrics = train(twin.side, case, TRAINING, steps=10)
    assert max(step["grad_norm"] for step in metrics) > 1, "clipping has something to do"
    require_close({"loss": np.array([step["loss"] for step in metrics])}, {"loss": losses}, 1e-5)
    require_close(moved(case, learner_parameters(twin.side, learner)), change, 1e-3, "norm")


def test_the_same_tokens_are_drawn(lesson: Lesson, twin: Twin):
    case, end = make_case(vocabulary_size=20), 0
    draws = uniforms(3, "lesson", step=0, rows=16, columns=20)
    columns = twin.side.backend.generate(
        model=case.make_model(twin.side),
        prompts=[[end, 5, 7]] * 16,
        uniforms=draws,
        sampling=Sampling(0.8, 0, 1.0, 20),
        end_of_text=(end,),
        log_probs=None,
    )
    expected = np.stack(list(columns), axis=1)
    rows = lesson.script.sample(lesson.model(case.model, case.parameters), [end, 5, 7], draws, 0.8, end)
    assert (expected == end).any() and (rows[:, :3] == [end, 5, 7]).all()
    assert rows[:, 3:].tolist() == np.where(expected < 0, end, expected).tolist()


def test_the_same_log_probabilities(lesson: Lesson, twin: Twin):
    case = make_case()
    ours = lesson_rollouts(lesson, case, lesson.model(case.model, case.parameters))
    theirs = package_rollouts(twin, case)
    expected = {"old": theirs.old_log_probs, "reference": theirs.reference_log_probs}
    require_close(expected, {"old": ours.old, "reference": ours.reference}, 1e-5)


def test_the_same_policy_gradients(lesson: Lesson, twin: Twin):
    case = make_case()
    loss, found = lesson_policy_gradients(lesson, case)
    config = dataclasses.replace(GRPO, beta1=0.0, clip_norm=0.0)  # Adam's first moment is then the gradient
    away = dataclasses.replace(case, parameters=nudged(case))
    learner, (metrics,) = package_reinforcement(twin, away, config, (slice(None),))
    assert metrics["clip_low_share"] > 0 and metrics["clip_high_share"] > 0, "clipping has something to do"
    state = twin.side.backend.get_optimizer_state(learner=learner)
    expected = {name.removeprefix("first_moment."): v for name, v in state.items() if name.startswith("first")}
    assert loss == pytest.approx(metrics["loss"], rel=1e-5)
    require_close(expected, found, 1e-5, "norm")


def test_the_same_grpo_updates(lesson: Lesson, twin: Twin):
    case = make_case()
    losses, change = lesson_reinforcement(lesson, case)
    learner, metrics = package_reinforcement(twin, case, GRPO)
    require_close({"loss": np.array([step["loss"] for step in metrics])}, {"loss": losses}, 1e-5)
    require_close(moved(case, learner_parameters(twin.side, learner)), change, 1e-3, "norm")


def test_the_same_masks_rewards_and_advantages(lesson: Lesson, twin: Twin):
    script, case = lesson.script, dataclasses.replace(make_case(), end_of_text=9)
    written = Completions([], [[9, 7]] * 3, [[5, 9, 9], [5, 6, 4], [9, 9, 9]])
    stopped = Completions([], written.prompts, [[5, 9], [5, 6, 4], [9]])
    tokens = np.array([p + c for p, c in zip(written.prompts, written.completions, strict=True)])
    expected = pack(setup_of(twin.side, case, GRPOConfig()), stopped, np.zeros(3)).mask[:, :4]
    assert (
        script.completion_mask(tokens, 2, 9).tolist() == expected.tolist() == [[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 0]]
    )
    texts = ["O Porto, ontem", "Campea\u0303o!", "portos", "«TAÇA»", "", "jogo-treino", "bolacha"]
    assert [script.football(text) for text in texts] == football(texts) == [1, 1, 0, 1, 0, 1, 0]
    for scores in ([1.0, 0, 0, 0, 1, 0, 0, 0], [1.0] * 4, [0.1] * 3):
        expected = group_advantages(np.array(scores), len(scores), "group")
        assert np.allclose(script.advantages(np.array(scores)), expected, rtol=1e-6, atol=0)


# --- the two lessons ------------------------------------------------------------------------------


@pytest.fixture
def both() -> list[Lesson]:
    """The lesson in PyTorch and the one in MLX, on the CPU."""
    if {twin.name for twin in TWINS} != {"torch", "mlx"}:
        pytest.skip("one of the frameworks is not installed")
    return [Lesson(next(twin for twin in TWINS if twin.name == name)) for name in ("torch", "mlx")]


def test_the_two_lessons_learn_alike(both: list[Lesson]):
    case = make_case()
    for compute in (lesson_training, lesson_reinforcement):
        (losses, change), (others, other_change) = (compute(lesson, case) for lesson in both)
        require_close({"loss": losses}, {"loss": others}, 1e-5)
        require_close(change, other_change, 1e-3, "norm")
    (loss, found), (other, others) = (lesson_policy_gradients(lesson, case) for lesson in both)
    assert loss == pytest.approx(other, rel=1e-5)
    require_close(found, others, 1e-5, "norm")


def test_the_two_lessons_write_and_are_reinforced_alike(both: list[Lesson]):
    """Whole rounds of GRPO: the same texts, rewards and divergences, the first of which is 0."""
    config = dataclasses.replace(make_case().model, vocabulary_size=257)
    own = {"prompt": "Ó ", "new_tokens": 20, "temperature": 0.8, "grpo_steps": 4, "group": 8, "passes": 2}
    settings, rounds = settings_of(config, **own, grpo_rate=1e-3), []
    for lesson in both:
        script = lesson.script
        model = script.make_model(settings, script.initial_values(settings))
        tokens, start, texts = script.write(model, script.Bytes(), settings, 6, 3)
        script.football = lambda text: float(len(text) % 3)
        rounds.append((tokens.tolist(), start, texts, script.reinforce(model, script.Bytes(), settings)))
    (*written, points), (*others, other_points) = rounds
    assert written == others and written[1] == 4
    divergences = [point["kl"] for point in points]
    assert divergences[0] == 0 and divergences[-1] > 1e-3 and len({point["reward"] for point in points}) > 1
    for one, other in zip(points, other_points, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
