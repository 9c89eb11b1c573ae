"""The GRPO steps that are timed, ours and the baselines': each does the work that its row of the table claims."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_models import TWINS

from faisca.bench import worker
from faisca.bench.command import bench
from faisca.bench.products import grpo_products
from faisca.bench.results import read_results
from faisca.bench.twin import once, reward
from faisca.bench.work import PROMPT_TOKENS, make_work
from faisca.config import RunConfig
from faisca.errors import FaiscaError
from faisca.parameters import parameter_shapes

WORK = make_work("tiny", quick=True)
GRPO = replace(WORK.config.grpo, group_size=8, epochs=3, minibatch_size=4, max_new_tokens=20, learning_rate=1e-2)
WORK = replace(WORK, config=replace(WORK.config, grpo=GRPO))
UPDATES = GRPO.epochs * WORK.completions // GRPO.minibatch_size
assert (WORK.completions, UPDATES) == (8, 6)
PACKAGES = {"torch": "torch", "mlx": "mlx.core", "trl": "trl", "mlx_lm_lora": "mlx_lm_lora", "reference": "torch"}


def subject(name):
    pytest.importorskip(PACKAGES[name], reason=f"{PACKAGES[name]} is not installed")
    return worker.SubjectSpec(name, WORK, RunConfig(device="cpu")).open()


@pytest.mark.parametrize("twin", TWINS)
def test_a_step_of_ours_is_a_whole_one(twin):
    ours = subject(twin)
    updates, scored, backend = [], [], ours.backend

    def noted(calls, function):
        return lambda **arguments: calls.append(arguments) or function(**arguments)

    watched = {"grpo_step": noted(updates, backend.grpo_step)}
    watched["token_log_probs"] = noted(scored, backend.token_log_probs)
    ours.backend = SimpleNamespace(**(vars(backend) | watched))
    ours.setup = replace(ours.setup, backend=ours.backend)
    for case, count, rows in (("grpo_full", UPDATES, 4), ("grpo_once", 1, 8)):
        updates.clear()
        scored.clear()
        assert ours.cases()[case]() > 0
        assert [len(call["rollouts"].tokens) for call in updates] == [rows] * count, case
        assert {int(call["rollouts"].mask.sum()) for call in updates} == {rows * 20}, case
        # The reference alone: what the policy thought of its tokens, the sampler has noted.
        assert len({id(call["model"]) for call in scored}) == 1 and len(scored) == 8 // rows, case
        assert all(call["rollouts"].advantages.any() for call in updates), case
    parts = ours.grpo_round()()
    assert list(parts) == ["rollout", "rewards", "log-probabilities", "updates"] and min(parts.values()) > 0


def test_rewards_that_are_timed_differ():
    found = reward(["", "a", "b", "ab"])
    assert len(set(found)) == 4 and min(found) >= 0 and max(found) < 1


def test_the_reference_does_a_whole_step():
    theirs = subject("reference")
    update, calls = theirs.script.update, []
    theirs.script.update = lambda *arguments: calls.append(arguments) or update(*arguments)
    cases = theirs.cases()
    for case, count in (("grpo_full", UPDATES), ("grpo_once", 1)):
        calls.clear()
        assert cases[case]() > 0 and len(calls) == count, case


@pytest.mark.parametrize(("changes", "updates"), [({}, UPDATES), (once(WORK), 1)])
def test_trls_trainer_does_a_whole_round(changes, updates):
    theirs = subject("trl")
    trainer, watch = theirs.make_trainer(replace(GRPO, **changes))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    judged, lengths = trainer.reward_funcs[0], []

    def noted(completions, completion_ids, **others):
        lengths.append(list(map(len, completion_ids)))
        return judged(completions, **others)

    trainer.reward_funcs[0] = noted
    for turn in (1, 2):  # every call of `train` is a round
        trainer.train()
        assert trainer.state.global_step == updates and lengths == [[20] * 8] * turn
        assert 0 < watch.began < watch.ended
    moved = [not value.equal(before[name]) for name, value in trainer.model.named_parameters()]
    assert all(moved) and moved
    for name, value in trainer.ref_model.named_parameters():
        assert value.equal(before[name]), name  # the reference stays
    assert not trainer.model.is_activation_checkpointing
    assert not any(module.p for module in trainer.model.modules() if type(module).__name__ == "Dropout")


def test_trl_samples_what_follows_our_prompt():
    theirs = subject("trl")
    trainer, _ = theirs.make_trainer(GRPO)
    text = trainer.train_dataset["prompt"][0]
    assert trainer.processing_class(text=[text])["input_ids"] == WORK.prompts(1)


@pytest.mark.parametrize("path", sorted(worker.BASELINES.glob("mlx*.py")), ids=lambda path: path.name)
def test_baselines_in_mlx_get_the_fast_blas(path):
    """It has to be in place before MLX is loaded: without it their products would be several times slower."""
    imported = re.findall(r"^(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.M)
    assert imported.index("faisca_mlx") < imported.index("mlx")


@pytest.mark.parametrize(("step", "updates", "calls"), [("grpo_step", UPDATES, 1), ("trainers_step", 1, 1)])
def test_mlx_lm_loras_functions_do_a_whole_round(step, updates, calls, monkeypatch):
    theirs = subject("mlx_lm_lora")
    import mlx.optimizers as optim
    from mlx.utils import tree_flatten
    from mlx_lm_lora.trainer import grpo_trainer

    generate, update, make_model = grpo_trainer.generate_grpo, optim.AdamW.update, theirs.plain.make_model
    written, updated, made = [], [], []

    def noted(*arguments, **named):
        written.append(generate(*arguments, **named))
        return written[-1]

    monkeypatch.setattr(grpo_trainer, "generate_grpo", noted)
    monkeypatch.setattr(optim.AdamW, "update", lambda *arguments: updated.append(1) or update(*arguments))
    theirs.plain.make_model = lambda **options: made.append(make_model(**options)) or made[-1]
    assert getattr(theirs, step)(1e-2)() > 0
    assert len(written) == calls and len(updated) == updates
    for completions, _, _ in written:
        assert [completion.size for completion in completions] == [20] * 8
    policy, reference = ({name: np.array(value) for name, value in tree_flatten(m.parameters())} for m in made)
    start = {name: np.array(value) for name, value in tree_flatten(make_model().parameters())}
    assert all((policy[name] != start[name]).any() for name in start)
    assert all((reference[name] == start[name]).all() for name in start)


def test_the_products_of_a_grpo_step_are_those_of_its_parts():
    model, B, new = WORK.model, GRPO.minibatch_size, GRPO.max_new_tokens
    matrices = sum(np.prod(s) for name, s in parameter_shapes(model).items() if ".0." in name and len(s) == 2)
    blocks, head = model.num_layers * int(matrices), model.dim * model.vocabulary_size
    inputs, counted = 32, 128  # 23 padded to a multiple of 16; 80 to one of 64
    attention = 4 * model.num_layers * inputs * model.dim
    forward = B * inputs * (2 * blocks + attention) + 2 * counted * head
    for chunk in (7, 1000):
        parts = grpo_products(WORK, chunk)
        flops = {part: sum(2 * b * m * k * n for b, m, k, n in found) for part, found in parts.items()}
        assert flops["updates"] == UPDATES * 3 * forward and flops["rewards"] == 0
        assert flops["log-probabilities"] == 2 * forward
        read = WORK.completions * (PROMPT_TOKENS + new - 1)
        seen = PROMPT_TOKENS**2 + sum(range(PROMPT_TOKENS + 1, PROMPT_TOKENS + new))
        looked = 4 * model.num_layers * model.dim * WORK.completions * seen
        assert flops["rollout"] == read * 2 * blocks + looked + WORK.completions * new * 2 * head


def test_a_baseline_that_knows_grpo_alone_is_timed_in_it_alone(tmp_path):
    pytest.importorskip("trl", reason="trl is not installed")
    options = ["--preset", "tiny", "--quick", "--rounds", "1", "--backends", "torch", "--peers", "trl"]
    file: Path = tmp_path / "x.json"
    assert bench([*options, "--cases", "grpo_once,fresh", "--json", str(file)]) == 0
    measured = {name: subject["measured"] for name, subject in read_results(file)["subjects"].items()}
    assert measured["trl"].keys() == {"grpo_once"} and {"grpo_once", "first_step"} <= measured["torch"].keys()
    with pytest.raises(FaiscaError, match="--sustained trains, and trl cannot"):
        bench([*options, "--sustained", "1", "--json", str(file)])
