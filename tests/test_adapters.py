"""Runs with adapters: what their checkpoints hold, which base they ask for, and that they go on as if never stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from setups import small_setup
from small_models import TWINS, open_twin
from small_runs import (
    killed_in,
    largest_difference,
    outcome,
    resume,
    same_outcome,
    start,
    trajectory,
    write_material,
)
from stand_in import StandIn

import faisca
from faisca import cli
from faisca.backend import Rollouts
from faisca.config import Config, GRPOConfig, ModelConfig, RunConfig, SFTConfig, adapter_of, plain
from faisca.config.files import config_from_dict
from faisca.errors import FaiscaError, VerificationError
from faisca.lora import base_sha256, merged, split
from faisca.parameters import in_adapter
from faisca.runs.checkpoint import load_checkpoint, open_checkpoint
from faisca.runs.log import read_records
from faisca.streams import integer_seed
from faisca.system.tensors import open_safetensors
from faisca.training.grpo_update import update_policy

LORA = (
    "--sft.lora-rank",
    "3",
    "--sft.lora-targets",
    "query",
    "down",
    "--grpo.lora-rank",
    "2",
    "--grpo.lora-alpha",
    "5",
)
QUICK = ("--sft.max-steps", "4", "--grpo.steps", "3", "--sft.evaluate-every", "0", "--model.attention-dropout", "0")
STAGES = ("--stages", "sft,grpo")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def begun(material, tmp_path_factory) -> Path:
    """A run that was pre-trained for two steps, to begin with."""
    open_twin("torch")
    folder = tmp_path_factory.mktemp("begun") / "run"
    start(material, folder, "torch", "--stages", "pretrain", "--pretrain.max-steps", "2")
    return folder


def tune(begun: Path, material: Path, folder: Path, backend: str, *more: str) -> None:
    """SFT and GRPO with an adapter each."""
    start(material, folder, backend, *STAGES, *LORA, *QUICK, "--from", str(begun), *more)


@pytest.fixture(scope="module")
def tuned(begun, material, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "run"
    tune(begun, material, folder, "torch")
    return folder


def test_a_checkpoint_holds_the_adapter_and_the_run_its_base_once(begun, tuned):
    bases = sorted(tuned.glob("base-*.safetensors"))
    assert len(bases) == 2, "one a stage: GRPO begins with SFT's adapter added"
    folders = sorted((tuned / "checkpoints").iterdir())
    assert {"sft-000004", "grpo-000003"} <= {folder.name for folder in folders}
    for folder in folders:
        own, _ = open_safetensors(folder / "model.safetensors")
        moments, _ = open_safetensors(folder / "optimizer.safetensors")
        state = json.loads((folder / "state.json").read_text())
        assert own and all(map(in_adapter, own))
        assert {n.partition(".")[2] for n in moments if n != "step"} == set(own)
        assert not (folder / "reference.safetensors").exists()
        (base,) = [path for path in bases if path.stem == f"base-{state['base_sha256'][:16]}"]
        weights, _ = open_safetensors(base)
        assert base_sha256(weights, load_checkpoint(folder).state.model) == state["base_sha256"]
    first = load_checkpoint(begun)
    assert (
        base_sha256(first.parameters, first.state.model)
        == load_checkpoint(tuned / "checkpoints" / "sft-000004").state.base_sha256
    )


def test_grpo_begins_with_what_sft_learnt_added_up(tuned):
    sft, grpo = (load_checkpoint(tuned / "checkpoints" / name) for name in ("sft-000004", "grpo-000003"))
    expected, base = merged(sft.parameters, sft.state.model), split(grpo.parameters)[0]
    assert set(expected) == set(base)
    assert all(np.array_equal(expected[name], base[name]) for name in base)
    adapters = [adapter_of(checkpoint.state.model) for checkpoint in (sft, grpo)]
    assert (adapters[0].rank, adapters[0].targets, adapters[1].rank, adapters[1].alpha) == (
        3,
        ("query", "down"),
        2,
        5.0,
    )
    assert any(array.any() for name, array in split(sft.parameters)[1].items() if name.endswith(".b"))


@pytest.mark.parametrize("backend", TWINS)
def test_killed_and_resumed_it_is_the_unbroken_run(backend, begun, material, tmp_path):
    open_twin(backend)
    dropping = ("--sft.lora-dropout", "0.2", "--grpo.lora-dropout", "0.3", "--sft.lora-dora", "--grpo.lora-dora")
    tune(begun, material, tmp_path / "unbroken", backend, *dropping)
    killed = tmp_path / "killed"
    killed_in(backend, "train_step", 4, lambda: tune(begun, material, killed, backend, *dropping))
    killed_in(backend, "grpo_step", 11, lambda: resume(killed))
    assert load_checkpoint(killed).folder.name == "grpo-000002"
    resume(killed)
    same_outcome(outcome(killed), outcome(tmp_path / "unbroken"))
    rounds = [row for row in read_records(killed) if "rollout_mismatch_max" in row]
    assert len(rounds) == 3 and all(row["rollout_mismatch_max"] is None for row in rounds), "the adapter drops"
    assert all(row["log_ratio_max"] > 1e-4 for row in rounds if "log_ratio_max" in row)


def test_each_update_of_grpo_has_a_seed_of_its_own():
    """A function of the run's seed, the step, the pass and the minibatch: resuming needs no more."""
    grpo, ones = GRPOConfig(group_size=8, minibatch_size=4, epochs=2), np.ones((8, 1), np.float32)
    rollouts = Rollouts(np.zeros((8, 2), np.int32), ones, np.arange(8, dtype=np.float32), ones, ones, 8.0)
    seeds = []

    class Noting(StandIn):
        def grpo_step(self, *, learner, rollouts, config, learning_rate, dropout_seed):
            seeds.append(dropout_seed)
            return {}

    for seed in (1, 2):
        setup = small_setup(Noting(), sections={"grpo": grpo, "run": RunConfig(seed=seed)})
        for step in range(3):
            update_policy(setup, None, rollouts, step, 0.1)
    assert len(seeds) == len(set(seeds)) == 2 * 3 * 4
    assert seeds[0] == integer_seed(1, "dropout in grpo, epoch 0, minibatch 0", 0)


def test_a_run_goes_on_in_the_other_backend(begun, material, tmp_path):
    for twin in TWINS:
        open_twin(twin)
    plain_run = ("--model.dropout", "0")
    tune(begun, material, tmp_path / "torch", "torch", *plain_run)
    killed_in("torch", "train_step", 4, lambda: tune(begun, material, tmp_path / "there", "torch", *plain_run))
    resume(tmp_path / "there", "--backend", "mlx")
    assert largest_difference(trajectory(tmp_path / "there"), trajectory(tmp_path / "torch")) < 1e-3


def test_the_reference_has_no_adapter(begun, material, tmp_path):
    """So the divergence from it is 0 before the first update, and not after."""
    more = ("--stages", "grpo", "--from", str(begun), "--grpo.lora-rank", "2", "--grpo.epochs", "1")
    more += ("--grpo.minibatch-size", "8", "--grpo.group-size", "8", "--grpo.warmup-steps", "0")
    start(material, tmp_path / "run", "torch", *QUICK, *more, "--grpo.learning-rate", "0.01")
    kl = {step: value for (_, step, name), value in trajectory(tmp_path / "run").items() if name == "kl"}
    assert kl[1] < 1e-6 and kl[3] > 1e-5


def test_no_second_model_is_made_for_the_reference(begun, material, tmp_path, monkeypatch):
    """And with all weights trained, there is one: so the count is of what it should be."""
    twin = open_twin("torch")
    made, counts, original, step = [], [], twin.make_model, twin.grpo_step
    monkeypatch.setattr(twin, "make_model", lambda **given: made.append(given["config"]) or original(**given))
    monkeypatch.setattr(twin, "grpo_step", lambda **given: counts.append(len(made)) or step(**given))
    for name, more in (("adapter", ("--grpo.lora-rank", "2")), ("all", ())):
        made.clear()
        counts.clear()
        start(material, tmp_path / name, "torch", *QUICK, "--stages", "grpo", "--from", str(begun), *more)
        assert set(counts) == {{"adapter": 1, "all": 2}[name]}


def test_it_writes_and_merges_and_trains_on(tuned, begun, material, tmp_path, capsys):
    model = faisca.load(tuned, backend="torch", device="cpu")
    assert model.generate("Governo", n=2, max_new_tokens=4) == model.generate("Governo", n=2, max_new_tokens=4)
    assert cli.main(["merge", str(tuned), "--out", str(tmp_path / "merged"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["comparisons"][0]["library"] == "merged" and said["comparisons"][0]["largest_logit_difference"] < 1e-5
    one = faisca.load(tmp_path / "merged", backend="torch", device="cpu")
    ids = np.array([[1, 5, 7, 9]])
    assert np.abs(model.logits(ids) - one.logits(ids)).max() < 1e-5
    bare = faisca.load(begun, backend="torch", device="cpu")
    assert np.abs(model.logits(ids) - bare.logits(ids)).max() > 1e-4
    start(material, tmp_path / "more", "torch", *QUICK, "--stages", "sft", "--from", str(tuned))
    before, after = (
        json.loads((folder / "summary.json").read_text())["stages"] for folder in (tuned, tmp_path / "more")
    )
    assert after[0]["validation_loss_before"] == pytest.approx(before[-1]["validation_loss_after"], rel=1e-6)
    assert after[0]["validation_loss_after"] != after[0]["validation_loss_before"]


def test_inspect_says_what_an_adapter_is(tuned, capsys):
    assert cli.main(["inspect", str(tuned)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "rank 2, alpha 5, dropout 0, query key value output up down; of the base" in said


# --- the base -----------------------------------------------------------------------------------


def spoilt(tuned: Path, folder: Path) -> tuple[Path, Path]:
    """A copy of the run, and the base of its newest checkpoint."""
    shutil.copytree(tuned, folder)
    sha256 = json.loads((folder / "checkpoints" / "grpo-000003" / "state.json").read_text())["base_sha256"]
    return folder, folder / f"base-{sha256[:16]}.safetensors"


def test_a_base_that_is_missing_is_named(tuned, tmp_path):
    folder, base = spoilt(tuned, tmp_path / "run")
    base.unlink()
    for load in (load_checkpoint, open_checkpoint):
        with pytest.raises(FaiscaError, match=f"holds an adapter alone, and .*{base.name} is missing"):
            load(folder)


def test_a_base_that_does_not_match_is_refused(tuned, tmp_path, capsys):
    """Of one weight, a bit; and the other stage's base under this one's name."""
    folder, base = spoilt(tuned, tmp_path / "run")
    content = bytearray(base.read_bytes())
    content[-1] ^= 1
    base.write_bytes(content)
    for load in (load_checkpoint, open_checkpoint):
        with pytest.raises(VerificationError, match="holds other weights than the adapter"):
            load(folder)
    (other,) = [path for path in folder.glob("base-*") if path != base]
    shutil.copy(other, base)
    assert cli.main(["generate", str(folder)]) == 1
    assert "holds other weights than the adapter" in capsys.readouterr().err
    base.write_bytes(b"rubbish")
    with pytest.raises(VerificationError, match="cannot be read"):
        load_checkpoint(folder)


MIXED = {"num_experts": 4, "feed_forward_bias": False}

# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sft": {"lora_alpha": 3.0}}, "sft.lora_alpha 3.0 means nothing without an adapter"),
        ({"grpo": {"lora_targets": ["query"]}}, "grpo.lora_targets query means nothing without an adapter"),
        ({"sft": {"lora_dropout": 0.1}}, "sft.lora_dropout 0.1 means nothing"),
        ({"grpo": {"lora_dropout": 0.1}}, "grpo.lora_dropout 0.1 means nothing"),
        ({"sft": {"lora_rank": 2, "optimizer": "muon"}}, "sft.optimizer muon moves whole matrices"),
        ({"sft": {"lora_rank": 2, "lora_targets": ["query", "queries"]}}, "sft.lora_targets queries is none"),
        ({"sft": {"lora_rank": 2, "lora_targets": []}}, "sft.lora_targets (none) is none"),
        ({"grpo": {"lora_rank": 2, "lora_targets": ["gate"]}}, "grpo.lora_targets gate is none"),
        ({"grpo": {"lora_rank": 2, "lora_targets": ["experts"]}}, "grpo.lora_targets experts is none"),
        ({"sft": {"lora_dora": True}}, "sft.lora_dora True means nothing without an adapter"),
        ({"grpo": {"lora_rank": 2, "lora_dora": True}, "model": MIXED}, "grpo.lora_dora is not for experts"),
        ({"sft": {"lora_rank": -1}}, "sft.lora_rank -1 is out of range"),
        (
            {"sft": {"lora_rank": 2, "lora_dropout": 0.1}, "run": {"gradient_checkpointing": True}},
            "does not go with run.gradient_checkpointing",
        ),
    ],
)
def test_impossible_options_are_refused(values, words):
    with pytest.raises(FaiscaError) as refused:
        config_from_dict(values)
    assert words in str(refused.value)


def test_a_stage_under_way_keeps_its_adapter(begun, material, tmp_path, capsys):
    killed_in("torch", "train_step", 4, lambda: tune(begun, material, tmp_path / "run", "torch"))
    assert cli.main(["run", "--resume", str(tmp_path / "run"), "--sft.lora-rank", "4"]) == 2
    line = " ".join(capsys.readouterr().err.split())
    assert "--sft.lora-rank 4 does not go with --resume: sft is under way, with 3" in line


def test_without_a_rank_nothing_changes():
    """The same model, and none of an adapter's names in a checkpoint's state."""
    assert Config(sft=SFTConfig(), grpo=GRPOConfig(), run=RunConfig()).sft.lora_rank == 0
    assert plain(ModelConfig()) == ModelConfig() and adapter_of(ModelConfig()) is None
