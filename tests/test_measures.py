"""Which data a measure looks at: every number of a summary, the best checkpoint and `evaluate`, by hand.

On the stand-in backend, whose losses and log-probabilities are known, so that prompt and
completion, one yardstick and another, before and after cannot be taken for one another.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from stand_in import (
    COUNTER,
    Finished,
    finish,
    install,
    make_stand_in,
    nats,
    scores,
    small_config,
    stage_titles,
    write_headlines,
)

import faisca
from faisca.backend import Sampling
from faisca.errors import FaiscaError
from faisca.loaded_model import LoadedModel
from faisca.runs.checkpoint import load_checkpoint
from faisca.runs.log import read_records
from faisca.streams import uniforms
from faisca.training import stages

ENDS = {"pretrain": (0, 11), "sft": (11, 17), "grpo": (17, 41)}
"""updates before and after each stage"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_headlines(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def done(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(small_config(material), material, tmp_path_factory.mktemp("measures") / "run")


@pytest.fixture(scope="module")
def entries(done: Finished) -> dict[str, dict]:
    summary = json.loads((done.folder / "summary.json").read_text(encoding="utf-8"))
    return {entry["stage"]: entry for entry in summary["stages"]}


def losses(done: Finished, stage: str, updates: int) -> tuple[float, float]:
    """Nats a token and bits per byte of a stage's validation titles; an end-of-text is one byte."""
    ids, titles = done.ids(stage, "test"), stage_titles(done.material, done.config, stage, "test")
    total = nats(updates, ids[1:])
    size = len("".join(title + "\n" for title in titles).encode()) - len(done.tokenizer.decode(ids[:1]).encode())
    return total / (len(ids) - 1), total / math.log(2) / size


def answers(done: Finished, updates: int, rows: int) -> list[str]:
    """What was written after so many updates, in the first call with so many rows."""
    call = next(c for c in done.backend.named("generate") if c.updates == updates and len(c.prompts) == rows)
    return [done.tokenizer.decode(completion) for completion in call.answer]


@pytest.mark.parametrize("stage", ENDS)
def test_losses_of_a_summary_are_those_of_all_validation_titles(done: Finished, entries: dict, stage: str) -> None:
    for when, updates in zip(("before", "after"), ENDS[stage], strict=True):
        loss, bits = losses(done, "pretrain", updates)
        portugal, other_bits = losses(done, "sft", updates)
        assert len({loss, portugal}) == len({bits, other_bits}) == 2
        found = {name: entries[stage][f"{name}_{when}"] for name in ("validation_loss", "bits_per_byte")}
        assert found == pytest.approx({"validation_loss": loss, "bits_per_byte": bits}, rel=1e-12)
        assert entries[stage][f"portugal_validation_loss_{when}"] == pytest.approx(portugal, rel=1e-12)


@pytest.mark.parametrize("stage", ENDS)
def test_shares_are_counted_over_completions_without_their_prompts(done: Finished, entries: dict, stage: str) -> None:
    """Two of the three prompts would change the share: one is a word of football itself, one another word."""
    shares = []
    for when, updates in zip(("before", "after"), ENDS[stage], strict=True):
        texts = answers(done, updates, 7)
        shares.append(sum(text in ("Golo", "Taça", "Liga") for text in texts) / 7)
        assert entries[stage][f"football_share_{when}"] == shares[-1]
        assert entries[stage][f"distinct_share_{when}"] == len(set(texts)) / 7
        written = ["Gov" + text for text in answers(done, updates, 2)]
        if updates in (0, 41):  # elsewhere the end of an epoch shows its own, too
            assert entries[stage][f"samples_{when}"] == written
    assert 0 < shares[0] < 1


def test_what_a_stage_begins_with_is_what_the_one_before_ended_with(entries: dict) -> None:
    pairs = [(entries["pretrain"], entries["sft"]), (entries["sft"], entries["grpo"])]
    for name in ("validation_loss", "portugal_validation_loss", "bits_per_byte", "football_share", "samples"):
        assert all(one[f"{name}_after"] == other[f"{name}_before"] for one, other in pairs), name
        assert any(entry[f"{name}_after"] != entry[f"{name}_before"] for entry in entries.values()), name


def test_the_divergence_is_of_the_final_policy_from_the_reference(done: Finished, entries: dict) -> None:
    """KL(policy ‖ reference) by k3 over tokens that the policy wrote, at the temperature of the rollout."""
    call = next(c for c in reversed(done.backend.named("generate")) if len(c.prompts) == 7 and c.updates == 41)
    k3, swapped = [], []
    for prompt, completion in zip(call.prompts, call.answer, strict=True):
        row = np.array([prompt + completion])
        policy, reference = (scores(updates, row, 0.8).astype(np.float64)[0] for updates in (41, 17))
        log_ratio = (reference - policy)[len(prompt) - 1 :]
        k3 += list(np.exp(log_ratio) - log_ratio - 1)
        swapped += list(np.exp(-log_ratio) + log_ratio - 1)
    assert entries["grpo"]["kl_after"] == pytest.approx(np.mean(k3), rel=1e-6)
    assert np.mean(swapped) != pytest.approx(np.mean(k3), rel=0.05)


def test_time_and_tokens_of_a_stage(done: Finished, entries: dict) -> None:
    """Training counts the tokens of its windows, GRPO those that it sampled; each is told a second."""
    tokens = {"pretrain": 11 * 12 * 16, "sft": 6 * 5 * 16}
    rolled = [call for call in done.backend.named("generate") if len(call.prompts) == 6]
    tokens["grpo"] = sum(len(completion) for call in rolled for completion in call.answer)
    for stage, count in tokens.items():
        entry = entries[stage]
        assert entry["tokens_per_second"] * entry["seconds"] == pytest.approx(count, rel=1e-9)
        assert entry["steps"] == {"pretrain": 11, "sft": 6, "grpo": 4}[stage] and entry["skipped_steps"] == 0
        assert entry["peak_memory_bytes"] == 1000


def test_time_of_a_stage_is_that_of_its_steps(material: Path, tmp_path: Path) -> None:
    """By a clock that the backend's functions put forward: what measures or saves is left out."""
    steps = {"train_step": 1.0, "generate": 10.0, "token_log_probs": 5.0, "grpo_step": 2.0}
    costs = steps | {"evaluate": 1e3, "get_parameters": 1e5}
    done = finish(small_config(material), material, tmp_path / "run", costs=costs)
    summary = json.loads((done.folder / "summary.json").read_text(encoding="utf-8"))
    seconds = {entry["stage"]: entry["seconds"] for entry in summary["stages"]}
    assert seconds == {"pretrain": 11.0, "sft": 6.0, "grpo": 4 * (10.0 + 3 * 5.0 + 6 * 2.0)}


@pytest.mark.parametrize("stage", ENDS)
def test_peak_memory_is_the_stages_own(done: Finished, stage: str) -> None:
    """A new peak begins after what is measured before the stage, and is asked for before what is measured after it."""
    begins, ends = ENDS[stage]
    names = [(call.name, call.updates, call.given.get("reset_peak")) for call in done.backend.calls]
    first = next(i for i, (name, updates, _) in enumerate(names) if name.endswith("_step") and updates == begins)
    last = next(i for i, (name, updates, _) in enumerate(names) if name.endswith("_step") and updates == ends - 1)
    resets = [i for i, (name, _, reset) in enumerate(names) if name == "memory" and reset]
    measured = [i for i, (name, updates, _) in enumerate(names) if name == "generate" and updates in (begins, ends)]
    counted = [i for i in measured if len(done.backend.calls[i].prompts) == 7]
    before = max((i for i in counted if i < first), default=0)
    after = min(i for i in counted if i > last)
    assert any(before < i < first for i in resets) and any(last < i < after for i in resets)


def test_a_grpo_step_is_bad_only_where_all_its_updates_were_skipped(material: Path, tmp_path: Path) -> None:
    """Of six updates a step, one fails in each; then all fail in the steps after the first."""
    some = finish(small_config(material), material, tmp_path / "some", skipped=lambda updates: float(updates % 6 == 0))
    lines = [line for line in read_records(some.folder) if "reward_mean" in line]
    assert [(line["updates"], line["skipped"]) for line in lines] == [(5, 1)] * 4
    entry = json.loads((some.folder / "summary.json").read_text(encoding="utf-8"))["stages"][-1]
    assert entry["skipped_steps"] == 0
    with pytest.raises(FaiscaError, match="grpo: 2 steps in a row"):
        config = small_config(material, **{"run.max_bad_steps": 2, "grpo.steps": 8})
        finish(config, material, tmp_path / "all", skipped=lambda updates: float(updates >= 23))
    assert load_checkpoint(tmp_path / "all").state.step == 3


# --- the best checkpoint ------------------------------------------------------------------------


def test_the_best_checkpoint_has_the_lowest_loss_on_the_stages_own_titles(material: Path, tmp_path: Path) -> None:
    """All validation titles have their lowest loss elsewhere than those of Portugal, in both stages."""
    lowest = {"all": {"pretrain": 6, "sft": 13}, "portugal": {"pretrain": 8, "sft": 15}}
    config = small_config(material, **{"run.keep": 9, "run.stages": ("pretrain", "sft")})
    backend, best = make_stand_in(config, material), {}

    def loss(updates: int, targets: np.ndarray) -> float:
        at = lowest["all" if len(targets) == 4 else "portugal"]["pretrain" if updates <= 11 else "sft"]
        return float((targets >= 0).sum()) * (1 + abs(updates - at))

    backend.losses = loss
    with pytest.MonkeyPatch.context() as patch:
        install(patch, backend)
        stages.run(config, tmp_path / "run")
    for name in ("pretrain-000011", "sft-000006"):
        best[name] = load_checkpoint(tmp_path / "run" / "checkpoints" / name).state.best
    assert best["pretrain-000011"] == {"checkpoint": "pretrain-000006", "stage": "pretrain", "validation_loss": 1.0}
    assert best["sft-000006"] == {"checkpoint": "sft-000004", "stage": "sft", "validation_loss": 1.0}
    assert (tmp_path / "run" / "best").read_text() == "checkpoints/sft-000004\n"


# --- a model that was loaded --------------------------------------------------------------------


@pytest.fixture
def loaded(done: Finished, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    backend = make_stand_in(done.config, done.material)
    install(monkeypatch, backend)
    return faisca.load(done.folder, backend="torch", device="cpu")


def test_a_loaded_model_has_the_final_weights(loaded: LoadedModel) -> None:
    assert int(loaded.model.parameters[COUNTER][0]) == 42


def test_evaluation_is_of_the_validation_titles_of_the_source_that_is_named(
    done: Finished, loaded: LoadedModel, tmp_path: Path
) -> None:
    other = write_headlines(tmp_path)
    lines = (other / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (other / "test.jsonl").write_text("\n".join(lines[::-1][:40]) + "\n", encoding="utf-8")
    measured = loaded.evaluate(str(other))
    there = dataclasses.replace(done, material=other)
    wanted = {"validation_loss": losses(there, "pretrain", 41)[0], "bits_per_byte": losses(there, "pretrain", 41)[1]}
    wanted |= {"portugal_validation_loss": losses(there, "sft", 41)[0]}
    texts = answers(done, 41, 7)
    wanted |= {"football_share": sum(text in ("Golo", "Taça", "Liga") for text in texts) / 7}
    wanted |= {"distinct_share": len(set(texts)) / 7}
    assert measured == pytest.approx(wanted, rel=1e-12)
    assert measured["validation_loss"] != losses(done, "pretrain", 41)[0]


def test_what_a_user_asks_for_is_what_the_sampler_gets(loaded: LoadedModel) -> None:
    sampling = {"temperature": 0.3, "top_k": 4, "top_p": 0.7, "max_new_tokens": 3}
    written = loaded.generate("Gov", 2, seed=9, **sampling)
    loaded.generate("Gov", 2)
    asked, plain = loaded.setup.backend.named("generate")
    assert asked.sampling == Sampling(**sampling)
    assert plain.sampling == Sampling(0.6, 11, 0.9, 5)  # the run's own
    for call, seed in ((asked, 9), (plain, 0)):
        assert np.array_equal(call.uniforms, uniforms(seed, "generate", step=0, rows=2, columns=call.uniforms.shape[1]))
        assert call.prompts == [[loaded.tokenizer.end_of_text, *loaded.tokenizer.encode("Gov")]] * 2
    assert written == ["Gov" + loaded.tokenizer.decode(completion) for completion in asked.answer]
    loaded.token_log_probs(np.array([[1, 2, 3]]), temperature=0.4)
    (scored,) = loaded.setup.backend.named("token_log_probs")
    assert scored.temperature == 0.4 and scored.tokens.tolist() == [[1, 2, 3]]
