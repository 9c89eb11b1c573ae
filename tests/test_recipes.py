"""Recipes side by side: files, budgets and turns, statistics, ablations, the page."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from small_models import open_twin, read_lines
from small_recipes import BENCHMARKS, PEERS, TINY, run_of, study_by_law

from faisca import cli
from faisca.errors import FaiscaError
from faisca.planning.law import flops_per_token

import ablations  # isort: skip  # small_recipes finds these
import recipes_page  # isort: skip
import recipes_report as report  # isort: skip
import recipes_trainees as trainees  # isort: skip
import recipes_worker as worker  # isort: skip
import scaling_law  # isort: skip

RECIPES = sorted((BENCHMARKS / "recipes").glob("*.toml"))


# --- recipes in files ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is_and_can_be_opened(path):
    assert path.read_text(encoding="utf-8").startswith("# ") and path.name in {p.name for p in RECIPES}
    recipe = trainees.Recipe(path.stem, path)
    described = recipe.described("sample")
    if recipe.peer:
        assert recipe.peer in PEERS and described["options"]["window"] > 0
        return
    config = recipe.config("sample", 3)
    assert (config.run.seed, config.run.stages, config.data.source) == (3, ("pretrain",), "sample")
    assert config.pretrain.max_validation_titles == 0  # all of the split, whatever the preset has


def test_changes_are_read_as_on_the_command_line():
    changes = (
        "--model.dim 64 --model.qk-norm --model.no-feed-forward-bias --pretrain.schedule constant --data.source 1e"
    )
    assert trainees.parse_changes(changes) == {
        "model": {"dim": 64, "qk_norm": True, "feed_forward_bias": False},
        "pretrain": {"schedule": "constant"},
        "data": {"source": "1e"},
    }
    recipe = trainees.Recipe(
        "x", BENCHMARKS / "recipes" / "candidate.toml", "--model.num-layers 7 --pretrain.learning-rate 1e-3"
    )
    config = recipe.config("sample", 0)
    assert (config.model.num_layers, config.model.positions, config.pretrain.learning_rate) == (7, "rope", 1e-3)
    peer = trainees.Recipe("x", BENCHMARKS / "recipes" / "nanochat.toml", "--options.depth 3")
    assert peer.options().depth == 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("absent", "", "recipe absent is unknown: choose among candidate"),
        ("spark", "--model.dimm 3", "dimm"),
        ("spark", "--dim 3", "change --dim has no section"),
        ("nanogpt", "--options.deep 3", "deep is unknown: choose among batch_size"),
        ("nanogpt", "--model.dim 3", "model is unknown"),
    ],
)
def test_what_is_no_recipe_is_refused(name, changes, message):
    with pytest.raises(FaiscaError, match=message):
        trainees.Recipe(name, BENCHMARKS / "recipes" / f"{name}.toml", changes).described("sample")


# --- budgets ------------------------------------------------------------------------------------


class Fake:
    """Takes so many seconds a step on a clock of its own, and three times as many to be measured."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.asked = 0.0, seconds, []
        self.facts = {"flops_per_token": 5.0}
        monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def step(self, step, total):
        self.asked.append((step, total))
        self.now += self.seconds(step)
        return 2.0, 10

    def bits_per_byte(self):
        self.now += 3 * self.seconds(0)
        return 9 - len(self.asked) / 1000


def test_a_budget_of_seconds_is_filled_and_not_exceeded(monkeypatch):
    fake = Fake(monkeypatch, lambda step: 5.0 if step < 2 else 1.0 if step < 50 else 2.0)  # it slows down
    training = worker.Training(fake, worker.Budget("seconds", 100.0), 13)
    for turn in range(1, 12):
        training.train(turn / 10)
        assert training.finished or turn / 10 <= training.share < turn / 10 + 0.06
    assert training.finished and 97 <= training.used["seconds"] <= 100
    assert training.curve[-1]["seconds"] == training.used["seconds"]  # evaluations, which took longer, do not count
    assert fake.now > 200
    step, total = fake.asked[-1]
    assert total == step + 1  # the schedule's last step is the last
    assert [point["steps"] for point in training.curve] == sorted({point["steps"] for point in training.curve})
    assert 8 <= len(training.curve) <= 13


@pytest.mark.parametrize(("kind", "amount"), [("tokens", 400.0), ("flops", 2000.0)])
def test_a_budget_of_work_is_known_from_the_first_step_on(monkeypatch, kind, amount):
    fake = Fake(monkeypatch, lambda step: 1.0)
    training = worker.Training(fake, worker.Budget(kind, amount), 13)
    training.train(1.0)
    assert len(fake.asked) == 40 and training.finished and training.used[kind] == amount
    assert {total for _, total in fake.asked[1:]} == {40}
    assert training.result()["curve"][-1]["training_loss"] == 2.0
    once = worker.Training(Fake(monkeypatch, lambda step: 1.0), worker.Budget(kind, amount), 1)
    once.train(1.0)
    assert [point["steps"] for point in once.curve] == [40]


def test_a_budget_smaller_than_a_step_is_one_step(monkeypatch):
    training = worker.Training(Fake(monkeypatch, lambda step: 5.0), worker.Budget("seconds", 1.0), 13)
    training.train(0.1)
    assert training.finished and training.steps == len(training.curve) == 1


# --- a study, in processes ----------------------------------------------------------------------

OURS = 'preset = "tiny"\n[tokenizer]\nvocabulary_size = 300\n[model]\ndim = 16\nhidden_dim = 32\n'
PEER = 'peer = "minimind"\n[options]\n' + "\n".join(f"{name} = {value}" for name, value in TINY["minimind"].items())


def study(folder, *options):
    command = [
        sys.executable,
        str(BENCHMARKS / "recipes.py"),
        str(folder / "out"),
        "--data",
        str(folder / "headlines.jsonl"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--recipes", f"{folder}/ours.toml,{folder}/theirs.toml", "--slices", "3", *options]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def test_a_study_trains_what_is_missing_and_refuses_what_has_changed(material, tmp_path):
    (tmp_path / "headlines.jsonl").write_bytes((material / "headlines.jsonl").read_bytes())
    (tmp_path / "ours.toml").write_text(f"# ours\n{OURS}")
    (tmp_path / "theirs.toml").write_text(f"# theirs\n{PEER}")
    done = study(tmp_path, "--tokens", "2000", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "results.jsonl"
    first = read_lines(path)
    assert {run["recipe"] for run in first} == {"ours", "theirs"}
    assert len({run["facts"]["validation"] for run in first}) == 1
    for run in first:
        assert run["curve"][-1]["tokens"] == pytest.approx(2000, abs=300) and run["curve"][-1]["bits_per_byte"] < 9
        assert str(tmp_path) not in json.dumps(run)
    assert "| ours | torch |" in done.stdout and done.stdout.endswith((tmp_path / "out" / "table.md").read_text())
    with Image.open(tmp_path / "out" / "recipes.png") as picture:
        assert 700 < picture.width < 1000  # one panel: a study of tokens says nothing of time
    assert "minutes" not in done.stdout and "time to" not in done.stdout
    # another seed: what is there stays as it is
    done = study(tmp_path, "--tokens", "2000", "--seeds", "1,2", "--at-once", "1")
    assert done.returncode == 0, done.stderr
    runs = read_lines(path)
    assert runs[:2] == first and [run["seed"] for run in runs] == [1, 1, 2, 2] and "±" in done.stdout
    # results of a version that did not have one of the options yet
    for run in runs:
        run["configuration"].get("model", {}).pop("bigram_rows", None)
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    done = study(tmp_path, "--tokens", "2000", "--seeds", "1,2")
    assert done.returncode == 0 and read_lines(path) == runs, done.stderr
    (tmp_path / "ours.toml").write_text(f"# ours\n{OURS}num_layers = 1\n")
    done = study(tmp_path, "--tokens", "2000", "--seeds", "1")
    assert done.returncode == 2 and "recipe ours has changed since" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "a study has one budget"),
        (["--tokens", "5", "--flops", "5"], "a study has one budget"),
        (["--seconds", "0"], "--seconds 0.0 is out of range"),
        (["--tokens", "5", "--seeds", "a"], "--seeds a are no whole numbers"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(options, message, tmp_path):
    (tmp_path / "ours.toml").write_text(f"# ours\n{OURS}")
    (tmp_path / "theirs.toml").write_text(f"# theirs\n{PEER}")
    done = study(tmp_path, *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.startswith("faisca: ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out" / "results.jsonl").exists()


def test_ours_is_trained_as_faisca_run_trains(material, tmp_path):
    """The same bits per byte after as many steps: the same windows, rates and updates."""
    open_twin("torch")
    (tmp_path / "ours.toml").write_text(f'# ours\n{OURS}\n[run]\ndevice = "cpu"\n')
    data, recipe = str(material / "headlines.jsonl"), trainees.Recipe("ours", tmp_path / "ours.toml")
    with trainees.open_trainee(recipe, data, 5) as trainee:
        for step in range(5):
            loss, tokens = trainee.step(step, 5)
            assert tokens == 8 * 32 and 0 < loss < 9
        bits, facts = trainee.bits_per_byte(), trainee.facts
    options = [
        "--data",
        data,
        "--seed",
        "5",
        "--pretrain.max-steps",
        "5",
        "--sft.url-contains",
        "",
        "--out",
        str(tmp_path / "r"),
    ]
    line = [
        "pretrain",
        "--config",
        str(tmp_path / "ours.toml"),
        "--backend",
        "torch",
        "--pretrain.max-validation-titles",
        "0",
    ]
    assert cli.main([*line, *options]) == 0
    (stage,) = json.loads((tmp_path / "r" / "summary.json").read_text())["stages"]
    assert stage["bits_per_byte_after"] == pytest.approx(bits, abs=1e-6)
    assert facts["parameters"] == json.loads((tmp_path / "r" / "summary.json").read_text())["parameters"]


# --- statistics ---------------------------------------------------------------------------------


def test_intervals_are_students():
    found = report.estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half == pytest.approx(
        4.302653 / math.sqrt(3)
    )  # t at 0.975, two degrees of freedom
    assert found.words() == "2.000 ± 2.484" and report.estimate([1.5]).words() == "1.500"


def test_a_time_to_a_quality_lies_between_two_evaluations():
    run = run_of("a", 1, (4.0, 3.0, 2.0))
    assert report.seconds_to(run, 3.5) == pytest.approx(math.sqrt(10 * 100))
    assert report.seconds_to(run, 3.0) == pytest.approx(100) and report.seconds_to(run, 4.5) == 10
    assert report.seconds_to(run, 1.9) is None
    runs = [run, run_of("a", 2, (4.0, 3.0, 1.8))]
    assert report.time_cell(runs, 1.9) == "1 of 2" and report.time_cell(runs[:1], 1.9) == "–"
    assert report.time_cell(runs, 3.0) == "0:01:40 ± 0:00:00"


def test_the_table_has_the_best_first_and_refuses_what_cannot_be_compared():
    runs = [run_of("slow", seed, (4.0, 3.0, 2.5 + seed / 100)) for seed in (1, 2)]
    runs += [run_of("fast", seed, (3.0, 2.0, 1.5 + seed / 100)) for seed in (1, 2)]
    lines = report.table(runs, [2.0]).splitlines()
    assert lines[2].startswith("| fast | torch | 1,000 | 300 | 2 | 1.515 ± 0.064 | 10.0 |") and "0:01:40" in lines[2]
    assert lines[3].startswith("| slow ") and lines[3].endswith("| – |")
    other = run_of("other", 1, (3.0, 2.0, 1.0))
    with pytest.raises(FaiscaError, match="measured on different titles"):
        report.table([*runs, other | {"facts": other["facts"] | {"validation": "w"}}], [])
    with pytest.raises(FaiscaError, match="different budgets"):
        report.table([*runs, other | {"budget": {"kind": "seconds", "amount": 60.0}}], [])


# --- ablations ----------------------------------------------------------------------------------


def test_a_change_keeps_only_if_it_pays_by_more_than_its_noise():
    base = [run_of("base", seed, (4, 3, 2 + noise)) for seed, noise in ((1, 0.0), (2, 0.2), (3, -0.2))]

    def changed(gains):
        pairs = zip(base, gains, strict=True)
        return [run_of("x", run["seed"], (4, 3, run["curve"][-1]["bits_per_byte"] - gain)) for run, gain in pairs]

    # 0.01 is far below the noise between seeds, and clear within the pairs
    words = [ablations.judge(base, changed(gains)).words for gains in ((0.01, 0.011, 0.009), (0.1, -0.1, 0.02))]
    assert words == ["keeps", "goes: within the noise"]
    assert ablations.judge(base, changed((-0.01, -0.011, -0.009))).words == "goes: worse"
    assert ablations.judge(base[:1], changed((0.1, 0, 0))[:1]).words == "one seed: no verdict"
    text = ablations.table([*base, *changed((0.01, 0.011, 0.009))], "base")
    assert "| base: base |" in text and "| 0.0100 ± 0.0025 | keeps |" in text


def test_rows_of_ablations_can_be_opened_or_are_named(capsys):
    options = ablations.Options(out=Path("x"), data="sample")
    base, rows = ablations.read_rows(options)
    left_out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert base.name == "modern" and len(rows) >= 20 and len({row.name for row in rows}) == len(rows)
    assert all("unknown" in line for line in left_out), left_out  # options of another version, and nothing else
    cost = flops_per_token(sized(base), 64)
    for row in rows:
        if "equal FLOPs" in row.name:
            assert flops_per_token(sized(row), 64) == pytest.approx(cost, rel=0.03), row.name
    with pytest.raises(FaiscaError, match="no row"):
        ablations.read_rows(replace(options, rows="nothing like this"))


def sized(recipe):
    config = recipe.config("sample", 0)
    return replace(config.model, vocabulary_size=config.tokenizer.vocabulary_size)


# --- the page -----------------------------------------------------------------------------------


def test_the_page_has_what_the_results_say_now():
    found = recipes_page.PAGE.read_text(encoding="utf-8")
    assert recipes_page.page(found) == found, "run python benchmarks/recipes_page.py"
    lines = [line for line in found.splitlines() if len(line) > 140 and not line.startswith(("|", "!"))]
    assert lines == []


def test_the_page_takes_results(tmp_path, monkeypatch):
    stored = tmp_path / "law.json"
    stored.write_text(json.dumps(scaling_law.law_of(study_by_law(0.003), "x")))
    runs = [run_of(name, seed, (3, 2.5, bits)) for name, bits in (("a", 2.1), ("b", 1.9)) for seed in (1, 2, 3)]
    (tmp_path / "time.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    for run in runs[:3]:
        run["configuration"] = {"changes": "--model.dim 3"}
    (tmp_path / "ablations.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    monkeypatch.setitem(recipes_page.PARTS, "law", (str(stored), recipes_page.law_part))
    text = recipes_page.page(recipes_page.PAGE.read_text(encoding="utf-8"), tmp_path)
    assert "600 seconds of training each, on a processor, 2 cores" in text and "| b | torch |" in text
    assert "`--model.dim 3`" in text and "goes" in text and "| E | " in text and "Not measured yet." in text
    assert recipes_page.page(text, tmp_path) == text
    with pytest.raises(FaiscaError, match="has no part time"):
        recipes_page.page("nothing")
