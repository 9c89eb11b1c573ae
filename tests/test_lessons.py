"""The two single-file lessons: alike line for line, on their own, and run from end to end by their users' command.

That they compute what the packages compute is rung 0: `parity_tests/test_00_lessons.py`.
"""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.image import imread
from small_models import TWINS
from test_twins import parameters_of

LESSONS = {name: Path(__file__).parent.parent / "lessons" / f"{name}_in_one_file.py" for name in TWINS}
FRAMEWORK = {"torch": {"torch"}, "mlx": {"mlx"}}
SMALL = """--pretrain-steps 4 --sft-steps 3 --grpo-steps 2 --dim 8 --heads 2 --layers 1 --context 24 --batch 4 --group 4
    --new-tokens 12""".split()


def source(name: str) -> str:
    return LESSONS[name].read_text(encoding="utf-8")


def header(text: str) -> dict:
    """The script's own metadata, as PEP 723 says to read them."""
    (block,) = re.findall(r"^# /// script\n((?:#.*\n)+?)# ///$", text, re.M)
    return tomllib.loads("".join(line[2:] if line != "#\n" else "\n" for line in block.splitlines(keepends=True)))


@pytest.fixture(scope="module")
def headlines(tmp_path_factory) -> Path:
    """A file of headlines, some of them of Portugal, some in English."""
    places, subjects = "Lisboa Porto Braga Faro Évora".split(), "Governo Câmara Tribunal Clube Benfica".split()
    rows = ["title,language,requested_url"]
    for i, (place, subject) in enumerate((p, s) for p in places * 12 for s in subjects):
        rows.append(f'"{subject} de {place}, {i}",pt,https://x.{"pt" if i % 2 else "com"}/{i}')
    path = tmp_path_factory.mktemp("headlines") / "headlines.csv"
    path.write_text("\n".join([*rows, "An English one,en,https://y.com", ",pt,https://z.pt/"]) + "\n", encoding="utf-8")
    return path


# --- alike, and on their own ----------------------------------------------------------------------


def test_sections_functions_and_options_stand_on_the_same_lines():
    outlines = []
    for name in TWINS:
        text = source(name)
        sections = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.startswith("# === ")]
        functions = [
            (node.lineno, node.name.replace("__call__", "forward"), parameters_of(node))
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef)
        ]
        classes = [(n.lineno, n.name) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef)]
        options = re.findall(r'^    "\w+": \(.*\),$', text, re.M)
        outlines.append((sections, functions, classes, options, len(text.splitlines())))
    assert outlines[0] == outlines[1]
    sections, functions, classes, options, lines = outlines[0]
    assert len(sections) == 8 and len(functions) > 25 and len(classes) == 5 and len(options) > 15
    assert lines <= 500


@pytest.mark.parametrize("name", TWINS)
def test_it_imports_what_its_header_names_and_nothing_of_ours(name):
    text = source(name)
    wanted = {re.match(r"[\w-]+", line)[0] for line in header(text)["dependencies"]}
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            imported.add(node.args[0].value)
    assert imported - set(sys.stdlib_module_names) == wanted
    assert FRAMEWORK[name] < wanted


@pytest.mark.parametrize("name", TWINS)
def test_no_function_takes_more_than_six_parameters(name):
    functions = [node for node in ast.walk(ast.parse(source(name))) if isinstance(node, ast.FunctionDef)]
    assert max(len(parameters_of(function)) for function in functions) <= 6


# --- run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def printed(headlines, tmp_path_factory) -> dict[str, str]:
    """What each lesson prints, run as a script, from a folder that has nothing of ours."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for name in TWINS:
        if importlib.util.find_spec(name) is None:
            continue
        script = Path(shutil.copy(LESSONS[name], folder))
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
            "OMP_NUM_THREADS": "1"
        }
        command = [sys.executable, str(script), "--data", str(headlines), *SMALL]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert imread(folder / f"{script.stem}.png").std() > 0
        found[name] = done.stdout
    return found


def test_it_goes_through_all_stages_and_says_how_long_they_take(printed):
    for text in printed.values():
        lines = text.splitlines()
        assert lines[0].startswith("300 headlines, ")
        progress = [line for line in lines if re.match(r"(pretrain|sft|grpo)  \d+/\d+  ", line)]
        assert [line.split()[0] for line in progress] == ["pretrain"] * 4 + ["sft"] * 3 + ["grpo"] * 2
        assert all(re.search(r"  [\d,]+ tokens/s  \d+:\d\d left", line) for line in progress)
        assert sum(line.startswith("    ") for line in lines) == 9, "three headlines after each stage"
        losses = [float(number) for number in re.findall(r"loss (\d+\.\d+)", text)]
        assert abs(losses[0] - np.log(257)) < 0.5 and losses[3] < losses[0]


def test_both_print_the_same_numbers_and_headlines(printed):
    if len(printed) < 2:
        pytest.skip("one of the frameworks is not installed")
    torch, mlx = (re.sub(r"  [\d,]+ tokens/s  \d+:\d\d left", "", text).splitlines()[:-1] for text in printed.values())
    assert [re.sub(r"\d+\.\d+", "", line) for line in torch] == [re.sub(r"\d+\.\d+", "", line) for line in mlx]
    numbers = [[float(n) for n in re.findall(r"\d+\.\d{4}", "\n".join(lines))] for lines in (torch, mlx)]
    assert len(numbers[0]) == 4 * 2 + 3 * 2 + 2 * 2
    assert np.allclose(*numbers, rtol=0, atol=2e-4)


# --- from inside ----------------------------------------------------------------------------------


@pytest.fixture(params=TWINS)
def script(request) -> ModuleType:
    """The lesson as a module."""
    pytest.importorskip({"torch": "torch", "mlx": "mlx.core"}[request.param])
    spec = importlib.util.spec_from_file_location(LESSONS[request.param].stem, LESSONS[request.param])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_reads_every_kind_of_file(script, headlines, tmp_path):
    from pyarrow import csv, parquet

    table = csv.read_csv(headlines)
    parquet.write_table(table, tmp_path / "x.parquet")
    frame = table.to_pandas()
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    expected = script.read_headlines(str(headlines), "pt")
    assert len(expected) == 300 and expected[1] == ("Câmara de Lisboa, 1", "https://x.pt/1")
    assert script.read_headlines(str(tmp_path / "x.parquet"), "pt") == expected
    assert script.read_headlines(str(tmp_path / "x.jsonl"), "pt") == expected
    assert script.read_headlines(str(headlines), "en") == [("An English one", "https://y.com")]
    (tmp_path / "x.txt").write_text("Um  título\nCampea\u0303o\n\nUm título\n", encoding="utf-8")
    assert script.read_headlines(str(tmp_path / "x.txt"), "pt") == [("Um título", ""), ("Campeão", "")]


def test_titles_that_look_like_numbers_or_like_nothing_are_titles(script, tmp_path):
    for name, text in {
        "a.csv": "title\n001\nNaN\n2024-05-01\n",
        "a.jsonl": '{"title": "001"}\n{"title": "NaN", "x": []}',
    }.items():
        (tmp_path / name).write_text(text)
        titles = [title for title, _ in script.read_headlines(str(tmp_path / name), "pt")]
        assert titles == ["001", "NaN", "2024-05-01"][: len(titles)] and len(titles) >= 2


def test_a_target_is_the_token_after_its_input(script):
    settings = script.Settings(context=5, batch=64)
    inputs, targets = script.batch(np.arange(12), settings, script.generator(0, "test"))
    assert inputs.shape == targets.shape == (64, 5) and (targets == inputs + 1).all()
    assert inputs.min() == 0 and targets.max() == 11, "from the first token to the last"


def test_dropout_is_there_in_training_and_nowhere_else(script):
    settings = script.Settings(
        vocabulary=9, context=4, dim=8, layers=1, heads=2, hidden=16, dropout=0.5, seed=0, batch=2
    )
    model, tokens = script.make_model(settings, script.initial_values(settings)), np.array([[1, 2, 3, 4]])
    training = [script.cross_entropy(model.train(), tokens, tokens).item() for _ in range(2)]
    assert training[0] != training[1]
    kept = [script.log_probs(model.train(), tokens, 1.0).tolist() for _ in range(2)]
    assert kept[0] == kept[1]
    assert script.evaluate(model.train(), np.arange(9), settings) == script.evaluate(
        model.train(), np.arange(9), settings
    )


def test_too_many_positions_are_an_error(script):
    settings = script.Settings(vocabulary=9, context=4, dim=8, layers=1, heads=2, hidden=16, dropout=0.0, seed=0)
    model = script.make_model(settings, script.initial_values(settings))
    with pytest.raises(ValueError, match="5 positions do not fit a context of 4"):
        model(script.on_device(np.zeros((1, 5), np.int64)))


def test_the_originals_numbers_come_by_one_flag(script):
    small, original, mixed = (script.parse(argv) for argv in ([], ["--original"], ["--original", "--dim", "64"]))
    assert (original.dim, original.context, original.batch, original.tokenizer) == (128, 256, 64, "gpt2")
    assert (original.dropout, original.rate, original.grpo_rate, original.group) == (0.1, 3e-4, 1e-5, 24)
    assert small.dim < original.dim and small.tokenizer == "bytes" and mixed.dim == 64 and mixed.context == 256


def test_help_teaches(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    for word in ("--original", "reinforcement learning", "key-value cache", "--grpo-rate", "original: 256"):
        assert word in told, word


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--data none.csv", r"--data none.csv cannot be read \(.*No such file"),
        ("--data x.xls", r"--data x.xls is of no known kind: name a file in .txt, .csv, .jsonl, .parquet, or hub"),
        ("--data broken.parquet", r"--data broken.parquet cannot be read"),
        ("--data latin.csv", r"--data latin.csv cannot be read \('utf-8' codec can't decode byte 0xe2"),
        ("--data other.csv", r"no text in a column `title`, only titular, idioma: rename or convert one"),
        ("--data empty.txt", r"0 headlines are too few to learn from or to hold out: take more data"),
        ("--data few.txt", r"0 headlines with '.pt/' in their address \(or take --address ''\) are too few"),
        ("--dim ten", r"argument --dim: invalid int value: 'ten'"),
        ("--batch 0", r"--batch 0 is out of range: take 1 or more"),
        ("--temperature nan", r"--temperature nan is out of range"),
        ("--dim 10 --heads 3", r"--heads 3 has to divide --dim 10"),
        ("--tokenizer words", r"argument --tokenizer: invalid choice: 'words'"),
        ("--layer-count 3", r"unrecognized arguments: --layer-count 3"),
        (
            "--data few.txt --address= --new-tokens 96 --prompt A",
            r"--prompt and --new-tokens 96 do not fit --context 96",
        ),
    ],
)
def test_bad_input_is_one_line(script, argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.parquet").write_text("PAR1")
    Path("latin.csv").write_bytes("title\nCâmara\n".encode("latin-1"))
    Path("other.csv").write_text("titular,idioma\na,pt\n")
    Path("empty.txt").write_text("")
    Path("few.txt").write_text("\n".join(f"Título número {i} de muitos" for i in range(200)), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        script.main(argv.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line.startswith(f"{Path(script.__file__).name}: ")
    assert re.search(message, line), line
