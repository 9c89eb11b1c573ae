"""`faisca report`: what the page of one or several runs has, from whole, broken-off, ported and older runs."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small_models import open_twin
from small_reports import HEADLINES, entry, losses, rounds, three_stages, write_run
from small_runs import start

from faisca import cli
from faisca.errors import FaiscaError
from faisca.loaded_model import load
from faisca.report import write
from faisca.report.completions import CHUNK, ends_of_grpo
from faisca.report.curves import _moments, _thin, training_charts
from faisca.report.numbers import tick, tick_steps
from faisca.report.recorded import read_run
from faisca.report.tables import costs, options
from faisca.report.tokens import END, _tokens, score_stages
from faisca.training.generate import clean

FIXTURES = Path(__file__).parent / "fixtures" / "before"
LARGEST = 2_000_000
"""bytes of a report"""
SCRIPTS = 3


class Page(HTMLParser):
    """A report taken apart: every element with its attributes, the text, and what scripts and styles hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", {"script": [], "style": []}
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_data(self, data):
        tag = self.elements[-1][0] if self.elements else ""
        if tag in self.inside and self.cdata_elem == tag:
            self.inside[tag][-1] += data
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(*runs: Path, options: tuple[str, ...] = ("--no-probabilities",)) -> Page:
    """The page of these runs."""
    path = runs[0].parent / "page.html"
    assert cli.main(["report", *map(str, runs), "--out", str(path), *options]) == 0
    html = path.read_text(encoding="utf-8")
    assert len(html.encode()) < LARGEST
    return Page(html)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a call that is refused says: one line."""
    capsys.readouterr()
    assert cli.main(["report", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("faisca: ") and said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def trained(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of three stages, with what `faisca run` writes at its end."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    start(material, folder, "torch", "--sample.count", "3")
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return three_stages(tmp_path / "whole")


# --- what a page has ----------------------------------------------------------------------------


def test_a_page_asks_the_network_for_nothing(whole):
    page = report(whole)
    loads = [a[key] for _, a in page.elements for key in ("src", "href", "srcset", "data", "action") if a.get(key)]
    assert loads and all(address.startswith("#") for address in loads)
    assert not page.of("link") and not page.of("img") and not page.of("iframe")
    (style,) = page.inside["style"]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"https?://", "".join(page.inside["script"]) + style)
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy


def test_only_its_own_scripts_and_style_may_run(whole):
    page = report(whole)
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    run = [text for text, a in zip(page.inside["script"], page.of("script"), strict=True) if "type" not in a]
    assert len(run) == SCRIPTS
    for text in [*run, *page.inside["style"]]:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert not [a for _, a in page.elements if "style" in a or any(name.startswith("on") for name in a)]


def test_every_section_is_there_and_linked(whole):
    page = report(whole)
    ids = {a["id"] for _, a in page.elements if "id" in a}
    sections = {a["id"] for a in page.of("section") if "id" in a}
    assert sections == set(
        "outcome pretrain sft grpo samples completions tokens cost parity machine configuration".split()
    )
    assert {a["href"].removeprefix("#") for a in page.of("a")} <= ids
    drawn = {a["data-chart"] for a in page.of("figure")}
    assert {"pretrain-loss", "sft-loss", "grpo-reward", "grpo-kl", "grpo-functions", "grpo-entropy"} <= drawn
    assert all(words in page.text for words in HEADLINES)


def test_each_chart_is_drawn_for_print_and_has_its_data(whole):
    page = report(whole)
    charts = json.loads(page.inside["script"][0])["charts"]
    assert set(charts) == {a["data-chart"] for a in page.of("figure")}
    assert len([a for a in page.of("svg") if a.get("class") == "static"]) == len(charts)
    loss = charts["pretrain-loss"]
    assert loss["axes"] == ["tokens", "steps", "time"]
    validation = next(curve for curve in loss["curves"] if curve["name"] == "validation")
    assert validation["x"]["steps"] == [10, 20, 30, 40, 50, 60]
    assert validation["x"]["time"] == pytest.approx([0.9, 1.9, 2.9, 3.9, 4.9, 5.9])  # from the stage's first record
    assert charts["grpo-reward"]["curves"][0]["spread"] == [0.2] * 12


def test_texts_of_a_run_do_nothing_in_its_page(tmp_path):
    evil = "</script><script>window.hacked = 1</script><img src=x onerror=hacked()>"
    records = [*losses("pretrain", 3, 0.0), {"stage": "pretrain", "step": 3, "seconds": 1.0, "samples": [evil]}]
    records += [{"stage": "grpo", "step": 1, "seconds": 2.0, f"reward/{evil}_mean": 1.0, "reward/other_mean": 0.0}]
    config = {"data": {"source": evil}, "sample": {"prompt": evil}}
    run = write_run(tmp_path / "a<script>b", records, [entry("pretrain", 3, samples_after=[evil])], config)
    page = report(run)
    assert len(page.of("script")) == 1 + SCRIPTS and not page.of("img")
    assert page.text.count(evil) >= 3  # as text: of a step, after the stage, in the configuration
    assert "a<script>b" in page.text


def test_several_runs_are_drawn_together(whole, tmp_path):
    other = three_stages(tmp_path / "other", {"pretrain": {"learning_rate": 2e-3}})
    third = write_run(tmp_path / "third", losses("pretrain", 5, 0.0), [])
    page = report(whole, other, third)
    data = json.loads(page.inside["script"][0])
    assert data["runs"] == ["whole", "other", "third"]
    assert {curve["run"] for curve in data["charts"]["pretrain-loss"]["curves"]} == {0, 1, 2}
    assert len({curve["ink"] for curve in data["charts"]["pretrain-loss"]["curves"]}) == 3
    assert {curve["run"] for curve in data["charts"]["grpo-kl"]["curves"]} == {0, 1}
    assert [a["data-toggle-run"] for a in page.of("button") if "data-toggle-run" in a] == ["0", "1", "2"]
    assert {label[2] for label in data["charts"]["grpo-kl"]["labels"]} == {"whole", "other"}


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [three_stages(tmp_path / place / "spark") for place in ("torch", "mlx")]
    assert json.loads(report(*runs).inside["script"][0])["runs"] == ["torch/spark", "mlx/spark"]


def test_long_runs_make_small_pages(tmp_path):
    long = [line * 3 for line in HEADLINES]
    runs = []
    for name in "abcd":
        records = losses("pretrain", 8000, 0.0, every=50) + rounds(1500, 1000.0)
        records += [{"stage": "pretrain", "step": s, "seconds": 1.0 * s, "samples": long * 50} for s in range(1, 100)]
        entries = [entry("pretrain", 8000, samples_after=long * 50), entry("grpo", 1500, kl_after=1.0)]
        runs.append(write_run(tmp_path / name, records, entries))
    report(*runs)  # which looks at the size


# --- what a run may lack ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "charts", "words"),
    [
        ("stopped-in-sft", {"pretrain-loss", "sft-loss"}, "Not finished: its newest checkpoint is at sft, step 5"),
        ("stopped-in-grpo", {"grpo-reward", "grpo-kl"}, "Not finished: its newest checkpoint is at grpo, step 3"),
    ],
)
def test_a_run_that_an_older_version_left_unfinished(tmp_path, name, charts, words):
    open_twin("torch")
    folder = tmp_path / "run"
    shutil.copytree(FIXTURES / name, folder)
    page = report(folder, options=())
    assert charts <= {a["data-chart"] for a in page.of("figure")}
    assert words in page.text and "None: on a CPU there is nothing else to compare with" in page.text


def test_a_run_with_pretraining_alone(tmp_path):
    page = report(write_run(tmp_path / "base", losses("pretrain", 30, 0.0), [entry("pretrain", 30)]))
    assert {a["data-chart"].partition("-")[0] for a in page.of("figure")} == {"pretrain"}
    assert "GRPO" not in page.text


def test_a_model_from_elsewhere_and_reinforcement_from_it(tmp_path):
    open_twin("torch")
    ported, trained = tmp_path / "ported", tmp_path / "trained"
    foreign = tmp_path / "hf"
    shutil.copytree(FIXTURES / "hf", foreign, ignore=shutil.ignore_patterns("faisca.json"))
    assert cli.main(["port", str(foreign), str(ported), "--to", "faisca", "--no-verify"]) == 0
    page = report(ported)
    assert "imported" in page.text and "No stage is finished yet" in page.text and not page.of("figure")
    sizes = ("--grpo.steps", "2", "--grpo.group-size", "4", "--grpo.max-new-tokens", "4", "--sample.counted", "4")
    sizes += (
        "--grpo.minibatch-size",
        "4",
        "--pretrain.max-validation-titles",
        "20",
        "--sft.max-validation-titles",
        "20",
    )
    begun = ["grpo", "--from", str(ported), "--out", str(trained), "--device", "cpu", "--backend", "torch", *sizes]
    assert cli.main([*begun, "--sample.max-new-tokens", "4", "--sample.prompt", ""]) == 0
    page = report(trained)
    assert {a["data-chart"].partition("-")[0] for a in page.of("figure")} == {"grpo"}


def test_numbers_that_are_not_finite(tmp_path):
    records = losses("pretrain", 8, 0.0)
    records[2] |= {"loss": float("nan"), "loss_is": "not a number", "skipped": 1}
    records[3] |= {"loss": None, "loss_is": "infinite", "grad_norm": float("inf")}
    folder = write_run(tmp_path / "run", records, [entry("pretrain", 8, bits_per_byte_after=None)])
    page = report(folder)
    curves = json.loads(page.inside["script"][0], parse_constant=pytest.fail)["charts"]["pretrain-loss"]["curves"]
    assert curves[0]["x"]["steps"] == [1, 2, 5, 6, 7, 8]
    assert "Steps without a finite loss or gradient: 2" in page.text


def test_a_stage_of_one_step_and_a_flat_curve(tmp_path):
    records = [record | {"loss": 2.0} for record in losses("pretrain", 1, 0.0) if "loss" in record]
    assert "pretrain-loss" in {a["data-chart"] for a in report(write_run(tmp_path / "x", records, [])).of("figure")}


def test_a_folder_that_is_no_run_is_refused_in_a_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "is no run: it has neither a checkpoint nor" in complaint(capsys, tmp_path / "empty")
    assert "is no run" in complaint(capsys, tmp_path / "nowhere")
    assert "no run is named" in complaint(capsys)
    run = three_stages(tmp_path / "run")
    assert "again: name each run once" in complaint(capsys, run, f"{run}/../run")
    assert "cannot be written" in complaint(capsys, run, "--out", tmp_path / "no" / "x.html", "--no-probabilities")
    (run / "machine.json").write_text("{")
    assert "machine.json is not JSON" in complaint(capsys, run)
    (run / "machine.json").unlink()
    (run / "metrics.jsonl").write_text('{"stage": "dance", "step": 1}\n')
    assert "stage 'dance', step 1, and there is no such step" in complaint(capsys, run)


# --- a real run ---------------------------------------------------------------------------------


def test_a_run_writes_its_report(trained):
    page = Page((trained / "report.html").read_text(encoding="utf-8"))
    machine = json.loads((trained / "machine.json").read_text())
    assert machine["processor"] in page.text and machine["cores"] > 0
    tokens = [a for a in page.of("span") if "data-p" in a]
    assert len(tokens) > 9 and all(0 <= float(a["data-p"]) <= 100 for a in tokens)


def test_a_report_that_fails_fails_no_run(trained, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(write, "render", fail)
    assert cli.main(["run", "--resume", str(trained)]) == 0
    assert "the run is done, but its report is not: no ink" in capsys.readouterr().out


def test_tokens_have_the_models_own_probabilities(trained):
    run = read_run(trained, "trained")
    scored = score_stages(run)
    assert [stage.title for stage in scored] == ["Pre-training", "Fine-tuning", "GRPO"]
    assert not any(stage.left_out for stage in scored)
    model = load(trained / "checkpoints" / "grpo-000004", "torch", "cpu", "float32")
    texts = map(clean, run.entries[-1]["samples_after"])
    for text, tokens in zip(texts, scored[-1].headlines, strict=True):
        ids = [*model.tokenizer.beginning, *model.tokenizer.encode(text), model.tokenizer.end_of_text]
        alone = model.token_log_probs(np.array([ids[: model.setup.model_config.context]]))[0]
        assert tokens[0].probability == pytest.approx(np.exp(alone[0]), rel=1e-4)
        assert np.prod([token.probability for token in tokens]) == pytest.approx(np.exp(alone.sum()), rel=1e-4)
        assert "".join(token.text for token in tokens).removesuffix(END) == text


def test_a_character_of_several_tokens_is_one(trained):
    tokenizer = load(trained, "torch", "cpu").tokenizer
    row = [*tokenizer.beginning, *tokenizer.encode("Ω€"), tokenizer.end_of_text]
    assert len(row) > 4, "these characters are more tokens than they are"
    tokens = _tokens(tokenizer, row, len(tokenizer.beginning), np.full(len(row) - 1, np.log(0.5)))
    assert [token.text for token in tokens] == ["Ω", "€", END]
    assert tokens[0].probability == pytest.approx(0.5 ** len(tokenizer.encode("Ω")))
    assert tokens[-1].probability == pytest.approx(0.5)


def test_what_cannot_be_scored_is_said(trained, tmp_path, capsys):
    folder = tmp_path / "moved"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("sft-*"))
    page = report(folder, options=())
    words = "its last checkpoint, sft-000007, is not there any more"
    assert f"Left out: {words}" in page.text and words in capsys.readouterr().err
    assert "left out, as asked" in report(folder).text
    large = score_stages(read_run(trained, "trained"), most_bytes=1000)
    assert all("which faisca report loads, but no run at its end" in stage.left_out for stage in large)


def test_json_says_what_was_written(whole, capsys):
    assert cli.main(["report", str(whole), "--no-probabilities", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    path = whole / "report.html"
    assert said == {"report": str(path), "bytes": path.stat().st_size, "runs": [str(whole)]}


# --- its parts ----------------------------------------------------------------------------------


def test_options_are_compared_with_the_preset(tmp_path):
    runs = [
        read_run(three_stages(tmp_path / "a", {"pretrain": {"learning_rate": 2e-3}}), "a"),
        read_run(three_stages(tmp_path / "b"), "b"),
    ]
    found = {f"{section}.{option.name}": option for section, group in options(runs).items() for option in group}
    rate = found["pretrain.learning_rate"]
    assert (rate.values, rate.presets, rate.changed) == (["0.002", "0.001"], ["0.001"] * 2, [True, False])
    assert [name for name, option in found.items() if option.differs] == ["pretrain.learning_rate"]


def test_the_parts_of_a_stage_add_up_to_its_time(whole):
    found = costs(read_run(whole, "whole"))
    assert [cost.title for cost in found] == ["Pre-training", "Fine-tuning", "GRPO"]
    assert sum(cost.seconds for cost in found) == pytest.approx(25.0)  # of the last record
    for cost in found:
        assert sum(size for _, size in cost.parts) == pytest.approx(cost.seconds)
    assert dict(found[2].parts)["rollout"] == pytest.approx(6.0)


def test_thinned_curves_keep_their_extremes(tmp_path):
    records = losses("pretrain", 5000, 0.0, every=10**6)
    records[1234]["loss"] = 99.0
    run = read_run(write_run(tmp_path / "x", records, []), "x")
    (curve, *_) = training_charts([run], "pretrain")[0].curves
    thin = _thin(curve, 100)
    assert len(thin.y) <= 100 and max(thin.y) == 99.0 and thin.x["steps"] == sorted(thin.x["steps"])
    assert (thin.y[0], thin.y[-1]) == (curve.y[0], curve.y[-1]) and thin.left_out == len(curve.y) - len(thin.y)


def test_the_ends_of_grpo_are_found_whatever_lies_between(tmp_path):
    folder = three_stages(tmp_path / "run")
    whole = ends_of_grpo(read_run(folder, "run"))
    path = folder / "completions.jsonl"
    first, *_, last = [path.read_text(encoding="utf-8").split("\n")[i : i + 16] for i in range(0, 12 * 16, 16)]
    filling = json.dumps({"step": 2, "completion": "x" * 2000}) + "\n"
    path.write_text(
        "\n".join(first) + "\n" + filling * 600 + "\n".join(last) + '\n{"step": 13, "compl', encoding="utf-8"
    )
    assert path.stat().st_size > 2 * CHUNK
    assert ends_of_grpo(read_run(folder, "run")) == whole
    assert [(step.step, step.written, len(step.rows)) for step in whole] == [(1, 16, 12), (12, 16, 12)]
    best, worst = whole[0].rows[0], whole[0].rows[-1]
    assert (best.reward, best.advantage, best.text, best.ended) == ("0.938", "+7.00", "escreve 15 de 1", False)
    assert (worst.reward, worst.advantage, worst.parts) == ("0", "−8.00", "football 0, length 0")
    path.write_text("{]\n")
    with pytest.raises(FaiscaError, match=r"completions\.jsonl has a line that is not JSON"):
        ends_of_grpo(read_run(folder, "run"))


def test_steps_that_were_read_together_end_one_after_the_other():
    together = [{"seconds": 10.0, "tokens_seen": 100 * i, "tokens_per_second": 50.0} for i in (1, 2, 3)]
    assert list(_moments([*together, {"seconds": 12.0, "tokens_seen": 400, "tokens_per_second": 40.0}])) == [
        pytest.approx(second) for second in (6.0, 8.0, 10.0, 12.0)
    ]


@pytest.mark.parametrize(
    ("ends", "axis", "shown"),
    [
        ((0.0, 0.00021), "value", ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]),
        ((3.0, 8.5), "value", ["4", "6", "8"]),
        ((0.0, 3.0), "steps", ["0", "1", "2", "3"]),
        ((0.0, 3_000_000.0), "tokens", ["0", "1 M", "2 M", "3 M"]),
        ((0.0, 310.0), "time", ["0 s", "60 s", "2 min", "3 min", "4 min", "5 min"]),
    ],
)
def test_ticks_are_round(ends, axis, shown):
    assert [tick(value, ends, axis) for value in tick_steps(*ends, 4, axis)] == shown
