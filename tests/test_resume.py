"""A run that was killed and resumed equals one that never stopped; on another backend it stays near it."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_models import TWINS, open_twin
from small_runs import (
    arguments,
    killed_in,
    largest_difference,
    outcome,
    resume,
    same_outcome,
    start,
    trajectory,
    write_material,
)

from faisca import cli
from faisca.runs.checkpoint import load_checkpoint
from faisca.runs.log import read_records

NO_DROPOUT = ("--model.dropout", "0", "--model.attention-dropout", "0")
RECIPE = (
    *("--pretrain.optimizer", "muon", "--sft.optimizer", "muon", "--grpo.optimizer", "muon"),
    *("--pretrain.schedule", "wsd", "--model.zero-outputs", "--pretrain.micro-batch-size", "4"),
)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"))


def killed_in_every_stage(material: Path, folder: Path, backends: tuple[str, str, str, str], *more: str) -> None:
    """A run that dies in the middle of an epoch of both training stages and of a GRPO step, and goes on each time."""
    killed_in(backends[0], "train_step", 4, lambda: start(material, folder, backends[0], *more))
    assert load_checkpoint(folder).folder.name == "pretrain-000002"
    killed_in(backends[1], "train_step", 11, lambda: resume(folder, "--backend", backends[1]))
    assert load_checkpoint(folder).folder.name == "sft-000002"
    killed_in(backends[2], "grpo_step", 15, lambda: resume(folder, "--backend", backends[2]))
    assert load_checkpoint(folder).folder.name == "grpo-000002"
    resume(folder, "--backend", backends[3])


@pytest.fixture(scope="module")
def unbroken_torch(material, tmp_path_factory) -> Path:
    """A run of three stages that nothing happened to."""
    open_twin("torch")
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    start(material, folder, "torch")
    return folder


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads in torch, which then may add in another order each time."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)  # what compiling for the CPU sets


@pytest.fixture(scope="module")
def begun_torch(material, tmp_path_factory) -> Path:
    """A run that died in its first stage; to be copied, not changed."""
    open_twin("torch")
    folder = tmp_path_factory.mktemp("begun") / "run"
    killed_in("torch", "train_step", 4, lambda: start(material, folder, "torch"))
    return folder


@pytest.mark.parametrize("backend", TWINS)
def test_killed_in_every_stage_and_resumed_it_is_the_unbroken_run(backend, material, tmp_path):
    open_twin(backend)
    start(material, tmp_path / "unbroken", backend)
    killed_in_every_stage(material, tmp_path / "killed", (backend,) * 4)
    same_outcome(outcome(tmp_path / "killed"), outcome(tmp_path / "unbroken"))
    records = read_records(tmp_path / "killed")
    steps = {s: [r["step"] for r in records if r["stage"] == s and "grad_norm" in r] for s in ("pretrain", "sft")}
    assert steps == {"pretrain": list(range(1, 10)), "sft": list(range(1, 8))}
    assert all(stage["skipped_steps"] == 0 for stage in outcome(tmp_path / "killed")["summary"]["stages"])


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++, which is not installed")
@pytest.mark.parametrize("backend", TWINS)
def test_compiled_steps_resume_exactly_too(backend, material, tmp_path, two_threads):
    open_twin(backend)
    compiled = ("--run.compile", "on", "--stages", "pretrain", "--pretrain.max-steps", "4", "--model.num-layers", "1")
    start(material, tmp_path / "unbroken", backend, *compiled)
    killed_in(backend, "train_step", 4, lambda: start(material, tmp_path / "killed", backend, *compiled))
    resume(tmp_path / "killed")
    same_outcome(outcome(tmp_path / "killed"), outcome(tmp_path / "unbroken"))


@pytest.mark.parametrize("backend", TWINS)
def test_a_recipe_of_everything_resumes_exactly(backend, material, tmp_path):
    """Muon in all stages, another schedule, empty outputs, micro-batches."""
    open_twin(backend)
    start(material, tmp_path / "unbroken", backend, *RECIPE)
    killed_in_every_stage(material, tmp_path / "killed", (backend,) * 4, *RECIPE)
    same_outcome(outcome(tmp_path / "killed"), outcome(tmp_path / "unbroken"))
    checkpoint = load_checkpoint(tmp_path / "killed")
    assert not any(name.startswith("second_moment.transformer_blocks.0.attention.in") for name in checkpoint.optimizer)


def test_another_optimiser_does_not_go_on_from_a_stage_under_way(begun_torch, tmp_path, capsys):
    shutil.copytree(begun_torch, tmp_path / "run")
    assert cli.main(["run", "--resume", str(tmp_path / "run"), "--pretrain.optimizer", "muon"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "pretrain is under way, and adamw remembers other moments" in line.replace("\n", " ")


def test_a_run_goes_on_in_the_other_backend_and_back_in_every_stage(material, tmp_path):
    for twin in TWINS:
        open_twin(twin)
    torch, mlx = TWINS
    start(material, tmp_path / torch, torch, *NO_DROPOUT)
    start(material, tmp_path / mlx, mlx, *NO_DROPOUT)
    killed_in_every_stage(material, tmp_path / "there", (torch, mlx, torch, mlx), *NO_DROPOUT)
    killed_in_every_stage(material, tmp_path / "back", (mlx, torch, mlx, torch), *NO_DROPOUT)
    unbroken = trajectory(tmp_path / torch)
    assert {(stage, key) for stage, _, key in unbroken} >= {("pretrain", "loss"), ("sft", "loss"), ("grpo", "kl")}
    for folder in ("mlx", "there", "back"):
        assert largest_difference(trajectory(tmp_path / folder), unbroken) < TOLERANCE
    changes = [(r["stage"], r["step"], r["backend"]) for r in read_records(tmp_path / "there") if "backend" in r]
    assert changes == [("pretrain", 2, mlx), ("sft", 2, torch), ("grpo", 2, mlx)]
    summary = outcome(tmp_path / "there")["summary"]
    assert summary["backend"] == mlx
    assert [stage["backends"] for stage in summary["stages"]] == [[torch, mlx], [mlx, torch], [torch, mlx]]


def test_the_tolerance_can_be_missed(material, tmp_path):
    open_twin("torch")
    less = (*NO_DROPOUT, "--stages", "pretrain")
    for seed in ("1", "2"):
        start(material, tmp_path / seed, "torch", *less, "--seed", seed)
    assert largest_difference(trajectory(tmp_path / "1"), trajectory(tmp_path / "2")) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("function", "call", "stopped_at"),
    [("train_step", 3, "pretrain-000003"), ("train_step", 9, "pretrain-000009"), ("grpo_step", 2, "grpo-000001")],
)
def test_ctrl_c_saves_and_the_run_goes_on_as_if_nothing_had_been(
    function, call, stopped_at, unbroken_torch, material, tmp_path, capsys
):
    twin, folder = open_twin("torch"), tmp_path / "run"
    original, calls = getattr(twin, function), 0

    def interrupted(**values):
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return original(**values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin, function, interrupted)
        assert cli.main(["run", *arguments(material, "torch"), "--out", str(folder)]) == 130
    assert load_checkpoint(folder).folder.name == stopped_at
    stage, step = stopped_at.split("-")
    told = f"faisca: interrupted: stopped after {stage} step {int(step)}; continue with --resume {folder}\n"
    assert capsys.readouterr().err.endswith(told)
    resume(folder)
    same_outcome(outcome(folder), outcome(unbroken_torch))


def test_only_a_stage_is_resumed_by_its_own_command(unbroken_torch, material, tmp_path):
    begun = ["sft", *arguments(material, "torch"), "--from", f"{unbroken_torch}/checkpoints/pretrain-000009"]
    assert cli.main([*begun, "--out", str(tmp_path / "unbroken")]) == 0
    killed_in("torch", "train_step", 4, lambda: cli.main([*begun, "--out", str(tmp_path / "killed")]))
    assert cli.main(["sft", "--resume", str(tmp_path / "killed")]) == 0
    same_outcome(outcome(tmp_path / "killed"), outcome(tmp_path / "unbroken"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.dim 64", "--model.dim 64 does not go with --resume"),
        ("--seed 5", "--seed 5 does not go with --resume: "),
        ("--stages sft", "--stages leaves out pretrain, in which the run stopped"),
        ("--preset spark", "--preset does not go with --resume"),
    ],
)
def test_what_a_resumed_run_cannot_change_is_said(options, message, begun_torch, capsys):
    assert cli.main(["run", "--resume", str(begun_torch), *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_what_a_resumed_run_can_change(begun_torch, tmp_path, capsys):
    folder = shutil.copytree(begun_torch, tmp_path / "run")
    material = tmp_path / "other.txt"
    material.write_text("\n".join(f"Outro título número {i} sobre coisas diferentes" for i in range(300)))
    changed = ["--stages", "pretrain", "--pretrain.learning-rate", "0.01", "--keep", "1", "--checkpoint-every", "1"]
    resume(folder, *changed, "--data", str(material), "--data.language", "", "--sft.url-contains", "")
    assert "the training data have changed since the checkpoint" in capsys.readouterr().out
    config = load_checkpoint(folder).state.to_json()["config"]
    values = (config["pretrain"]["learning_rate"], config["run"]["keep"], config["run"]["checkpoint_every"])
    assert values == (0.01, 1, 1)
    assert load_checkpoint(folder).state.finished


def test_a_finished_run_can_be_resumed_and_is_only_shown_again(unbroken_torch, tmp_path, capsys):
    folder = shutil.copytree(unbroken_torch, tmp_path / "run")
    before = outcome(folder)
    (folder / "summary.json").unlink()
    resume(folder)
    same_outcome(outcome(folder), before)
    assert "all of it is in" in capsys.readouterr().out
