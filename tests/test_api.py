"""From Python: configurations, runs, runs that are watched, and training on from what was loaded."""

import inspect
import itertools
import json
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
from small_models import open_twin
from small_runs import outcome, same_outcome, untimed

import faisca
from faisca import api
from faisca.errors import FaiscaError
from faisca.runs.log import read_records

pytestmark = pytest.mark.xdist_group("api")

HERE = {"backend": "torch", "device": "cpu"}


def small(**run: object) -> faisca.Config:
    sections = {"pretrain": {"max_steps": 6}, "sft": {"max_steps": 3}, "grpo": {"steps": 2}}
    return faisca.configure("tiny", run={**HERE, **run}, **sections)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, from Python."""
    open_twin("torch")
    folder = tmp_path_factory.mktemp("api") / "run"
    summary = faisca.run(small(stages=("pretrain", "sft")), folder)
    assert summary["stages"] == json.loads((folder / "summary.json").read_text())["stages"]
    assert [stage["stage"] for stage in summary["stages"]] == ["pretrain", "sft"]
    return folder


def test_importing_it_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import faisca; print(*sorted(set(sys.modules) - before))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {name for name in printed.split() if name.split(".")[0] not in sys.stdlib_module_names} == {"faisca"}


def test_all_that_it_offers_is_there_with_types_and_words():
    assert set(dir(faisca)) == {*itertools.chain(*faisca.HOMES.values()), "__version__"}
    for name in set(dir(faisca)) - {"__version__"}:
        offered = getattr(faisca, name)
        assert inspect.getdoc(offered), name
        if inspect.isfunction(offered):
            assert "return" in typing.get_type_hints(offered), name


def test_a_configuration_is_a_preset_with_changes():
    assert faisca.configure("tiny") == faisca.configure("tiny", pretrain={}) != faisca.configure()
    config = faisca.configure("tiny", pretrain={"epochs": 7}, run={"stages": ["pretrain"]})
    assert (config.pretrain.epochs, config.run.stages, config.preset) == (7, ("pretrain",), "tiny")
    for wrong, words in (
        ({"pretrain": {"lr": 1}}, "pretrain.lr is unknown"),
        ({"train": {}}, "section train is unknown"),
    ):
        with pytest.raises(faisca.FaiscaError, match=words):
            faisca.configure("tiny", **wrong)


def test_a_configuration_from_a_checkpoint_is_its_own(trained):
    config = faisca.configure(start_from=trained, run={"stages": ["grpo"]})
    assert config.pretrain.max_steps == 6 and config.preset == "tiny" and config.run.backend == "auto"
    assert config.model.dim == faisca.configure("tiny").model.dim
    other = faisca.configure("spark", start_from=trained, data={"window": 32, "stride": 32})
    assert other.model.dim == config.model.dim and other.pretrain.max_steps == faisca.configure().pretrain.max_steps


def test_a_run_that_is_watched_is_the_same_run(trained, tmp_path):
    records = list(faisca.watch(small(stages=("pretrain", "sft")), tmp_path / "run"))
    assert records == read_records(tmp_path / "run")
    same_outcome(outcome(trained), outcome(tmp_path / "run"))


def test_a_run_left_early_is_saved_and_goes_on(trained, tmp_path):
    """Watched until its second step, again until SFT begins, and then to its end: as the run that nobody broke off."""
    folder, seen = tmp_path / "run", []
    for record in faisca.watch(small(stages=("pretrain", "sft")), folder):
        seen.append(record)
        if record["step"] == 2:
            break
    assert list((folder / "checkpoints").iterdir())
    step = faisca.load(folder, **HERE).checkpoint.state.step
    again = faisca.watch(out=folder)
    seen += list(itertools.takewhile(lambda record: record["stage"] == "pretrain", again))
    again.close()
    seen += list(faisca.watch(out=folder))
    same_outcome(outcome(trained), outcome(folder))
    assert [untimed(record) for record in read_records(folder)] == [untimed(record) for record in read_records(trained)]
    assert {(record["stage"], record["step"]) for record in seen} <= {
        (record["stage"], record["step"]) for record in read_records(folder)
    }
    assert step >= 0


def test_a_run_goes_on_from_python(trained, tmp_path):
    folder = tmp_path / "run"
    watched = faisca.watch(small(stages=("pretrain", "sft")), folder)
    next(watched)
    watched.close()
    summary = faisca.resume(folder)
    assert [stage["stage"] for stage in summary["stages"]] == ["pretrain", "sft"]
    same_outcome(outcome(trained), outcome(folder))


def test_what_a_run_refuses_is_the_same_error(trained, tmp_path):
    for config, words in (
        (
            faisca.configure("tiny", run={**HERE, "stages": ["sft"]}),
            "sft starts from a trained model: name",
        ),
        (
            faisca.configure("tiny", run=HERE, data={"source": "nowhere.csv"}),
            "'nowhere.csv' does not exist",
        ),
    ):
        with pytest.raises(FaiscaError, match=words) as caught:
            list(faisca.watch(config, tmp_path / "run"))
        assert "\n" not in str(caught.value) and not str(caught.value).startswith("faisca:")
    with pytest.raises(FaiscaError, match="is not empty: name a new folder"):
        next(faisca.watch(small(), trained))
    with pytest.raises(FaiscaError, match="nothing to watch"):
        next(faisca.watch())
    with pytest.raises(FaiscaError, match="is no checkpoint"):
        next(faisca.watch(out=tmp_path / "none"))


def test_a_process_that_is_killed_is_no_end_of_a_run(tmp_path, monkeypatch):
    """`watch` ends like the run only where that has ended well."""
    processes = []
    begin = subprocess.Popen

    def noted(*words: object, **more: object) -> "subprocess.Popen[bytes]":
        processes.append(begin(*words, **more))
        return processes[-1]

    monkeypatch.setattr(api.subprocess, "Popen", noted)
    watched = faisca.watch(small(), tmp_path / "run")
    next(watched)
    processes[0].kill()
    with pytest.raises(RuntimeError, match="the run ended with status -9"):
        list(watched)


def test_closing_ends_the_process(tmp_path, monkeypatch):
    watched = faisca.watch(small(), tmp_path / "run")
    next(watched)
    began = time.monotonic()
    watched.close()
    assert time.monotonic() - began < 120
    size = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    time.sleep(0.5)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size == size


def test_training_goes_on_from_what_was_loaded(trained, tmp_path):
    model = faisca.load(trained, **HERE)
    tuned = model.sft(tmp_path / "sft", sft={"max_steps": 2, "learning_rate": 1e-4})
    assert (tuned.checkpoint.state.stage, tuned.checkpoint.state.step) == ("sft", 2)
    assert tuned.config.sft.learning_rate == 1e-4 and tuned.config.run.seed == model.config.run.seed
    reinforced = tuned.grpo(tmp_path / "grpo", grpo={"steps": 1})
    assert reinforced.checkpoint.state.stage == "grpo" and len(reinforced.checkpoint.state.stages) == 1
    assert reinforced.setup.runtime.backend == "torch" and reinforced.setup.model_config == model.setup.model_config
    both = reinforced.train(tmp_path / "both", run={"stages": ["pretrain", "sft"]}, pretrain={"max_steps": 1})
    assert [entry["stage"] for entry in both.checkpoint.state.stages] == ["pretrain", "sft"]
