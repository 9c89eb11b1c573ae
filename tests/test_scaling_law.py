"""The scaling law: its fit finds what points follow, and `faisca plan --hours` answers from it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_recipes import TRUE, study_by_law

from faisca import cli
from faisca.config import Config, ModelConfig
from faisca.errors import FaiscaError
from faisca.parameters import parameter_shapes
from faisca.planning import law as laws
from faisca.tuning import plan_command

import scaling_law  # isort: skip  # small_recipes finds it


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A law fitted to such runs, as the script writes it."""
    path = tmp_path_factory.mktemp("law") / "scaling_law.json"
    path.write_text(json.dumps(scaling_law.law_of(study_by_law(0.003), "x")))
    return path


def test_the_fit_finds_the_law_of_its_points():
    points = scaling_law.points_of(study_by_law(0.0))
    assert scaling_law.fit(points) == pytest.approx(TRUE, rel=0.02)


def test_the_bootstrap_says_how_sure_it_is(stored):
    law = json.loads(stored.read_text())
    low, high = np.percentile(law["bootstrap"], [2.5, 97.5], axis=0)
    assert (low < TRUE).all() and (high > TRUE).all() and law["largest_error"] < 0.01
    predicted = laws.predict(law["constants"], 1e6, 5e6)
    assert predicted == pytest.approx(laws.predict(TRUE, 1e6, 5e6), rel=0.005)
    with pytest.raises(FaiscaError, match="at least three sizes"):
        scaling_law.fit(scaling_law.points_of(study_by_law(0.0)[:8]))


def test_the_best_size_for_an_hour_is_that_of_the_law(stored):
    law = laws.read_law(stored)
    for flops in (3e9, 1e10, 4e10):
        answer = laws.best_for(law, 1.0, flops)
        # every studied size at the same cost is no better
        for size in law.sizes:
            tokens = 3600 * flops / size["flops_per_token"]
            assert laws.predict(law.constants, size["weights"], tokens) >= answer.bits_per_byte - 1e-6
        assert answer.interval[0] < answer.bits_per_byte < answer.interval[1]
        assert answer.headlines == pytest.approx(answer.tokens / law.tokens_per_headline)
    sizes = [laws.best_for(law, hours, 1e10).weights for hours in (0.2, 1, 5)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert "smaller" in laws.best_for(law, 1e-3, 1e9).doubts[0] and "larger" in laws.best_for(law, 1e4, 1e9).doubts[0]
    for hours in (0.2, 1, 5):
        answer = laws.best_for(law, hours, 1e10)
        assert any("passes over the same" in doubt for doubt in answer.doubts) == (answer.passes > 4)


def test_a_study_becomes_a_law_and_a_chart(tmp_path, monkeypatch, capsys):
    """All but the training: what each run would measure is what the law TRUE says of it."""

    def stand_in(options, recipes):
        runs = []
        for recipe in recipes:
            model = replace(recipe.config("sample", 0).model, vocabulary_size=4096)
            weights, tokens = laws.weights_met(model), options.budget.amount
            facts = {"vocabulary": 4096, "parameters": weights, "training_tokens": 900, "training_titles": 30}
            facts |= {"flops_per_token": laws.flops_per_token(model, 64), "validation": "v"}
            end = {"tokens": tokens, "bits_per_byte": float(laws.predict(TRUE, weights, tokens))}
            run = {"recipe": recipe.name, "seed": 1, "budget": vars(options.budget), "facts": facts, "curve": [end]}
            runs.append(run | {"configuration": {"model": vars(model)}, "machine": {}})
        return runs

    monkeypatch.setattr(scaling_law, "study", stand_in)
    assert scaling_law.main([str(tmp_path), "--data", "sample", "--recipe", "candidate"]) == 0
    assert "largest error 0.0%" in capsys.readouterr().out
    law = laws.read_law(tmp_path / "scaling_law.json")
    assert law.constants == pytest.approx(TRUE, rel=0.03) and len(law.sizes) == 5 and law.tokens_per_headline == 30
    with Image.open(tmp_path / "scaling_law.png") as picture:
        assert picture.width > 500
    for wrong in (["--recipe", "nanogpt"], ["--tokens", "5"], ["--sizes", "64"]):
        with pytest.raises(FaiscaError):
            scaling_law.main([str(tmp_path), "--data", "sample", *wrong])


def test_plan_answers_for_hours(stored, monkeypatch, capsys):
    monkeypatch.setattr(plan_command, "read_law", lambda: laws.read_law(stored))
    line = ["plan", "--preset", "spark", "--hours", "1", "--tokens-per-second"]
    assert cli.main([*line, "200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    spark = replace(Config().model, vocabulary_size=4096)
    assert found["flops_per_second"] == pytest.approx(200 * laws.flops_per_token(spark, 64))
    assert found["weights"] == laws.best_for(laws.read_law(stored), 1.0, found["flops_per_second"]).weights
    assert cli.main([*line, "200"]) == 0
    printed = capsys.readouterr().out
    assert "headlines" in printed and "--model.dim" in printed and "bits per byte" in printed
    assert cli.main(line[:-1]) == 2 and "--hours needs a speed" in capsys.readouterr().err
    assert cli.main([*line, "200", "--hours", "0"]) == 2 and "--hours 0.0 is out of range" in capsys.readouterr().err


def test_plan_without_a_law_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plan_command, "read_law", lambda: laws.read_law(tmp_path / "none.json"))
    assert cli.main(["plan", "--hours", "1", "--tokens-per-second", "200"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("faisca: ") and "no scaling law has been measured" in error and error.count("\n") == 1


def test_the_stored_law_is_the_fit_of_its_own_points():
    """What is in the package is what the script makes of the points beside it."""
    law = json.loads(laws.STORED.read_text(encoding="utf-8"))
    points = [scaling_law.Point(**point) for point in law["points"]]
    assert len(points) >= 20 and scaling_law.fit(points) == pytest.approx(law["constants"], rel=1e-3)


def test_operations_are_counted_as_for_the_benchmarks_and_of_experts_those_of_a_token():
    model = ModelConfig(
        context=32, dim=16, num_layers=2, num_heads=2, hidden_dim=64, vocabulary_size=50, tie_embeddings=True
    )
    assert laws.weights_met(model) == 2 * 12 * 16**2 + 16 * 50
    mixture = replace(model, num_experts=4, experts_per_token=2, expert_dim=64, feed_forward_bias=False)
    assert len([shape for shape in parameter_shapes(mixture).values() if len(shape) == 3]) == 4
    assert laws.weights_met(mixture) == 2 * (4 * 16**2 + 2 * 8 * 16**2 + 4 * 16) + 16 * 50
    assert laws.flops_per_token(model, 32) == 6 * laws.weights_met(model) + 12 * 2 * 32 * 16
