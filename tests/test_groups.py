"""`faisca groups`: GRPO's completions of a step as a terminal and a program get them."""

import json
from pathlib import Path

import pytest

from faisca.cli import main
from faisca.config import Config, GRPOConfig
from faisca.config.files import write_config


def row(step: int, prompt: str, completion: str, reward: float | None, advantage: float, **more: object) -> dict:
    rewards = {"football": reward, "length:5-9": 0.5}
    return {"step": step, "prompt": prompt, "completion": completion, "reward": reward, "rewards": rewards} | {
        "advantage": advantage,
        "ended": True,
        **more,
    }


ROWS = [
    row(1, "O ", "primeiro", 0.0, 0.0),
    row(1, "O ", "segundo", 0.0, 0.0),
    row(2, "O ", " pior\x1b[2J\n[b]de todos", -1.0, -1.5, ended=False),
    row(2, "O ", "melhor", 2.0, 1.5),
    row(2, "O ", "outro grupo", None, 0.0),
    row(2, "O ", "do mesmo princípio", 1.0, 0.25),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with groups of two, two a step in the end, and a line that is still being written."""
    lines = "".join(json.dumps(one) + "\n" for one in ROWS)
    (tmp_path / "completions.jsonl").write_text(lines + '{"step": 3, "pro', encoding="utf-8")
    write_config(Config(grpo=GRPOConfig(group_size=2, minibatch_size=2)), tmp_path / "config.toml")
    return tmp_path


def test_the_last_step_is_shown_group_by_group_the_best_first(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["groups", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and printed.splitlines()[0] == f"grpo step 2 of {folder}"
    rows = [line.rstrip().split(maxsplit=3) for line in printed.splitlines() if line.strip()[:1] in ("+", "-")]
    assert rows == [
        ["+1.50", "2.00", "2.00", "0.50  melhor"],
        ["-1.50", "-1.00", "-1.00", "0.50  pior [2J [b]de todos …"],
        ["+0.25", "1.00", "1.00", "0.50  do mesmo princípio"],
        ["+0.00", "–", "–", "0.50  outro grupo"],
    ]
    assert printed.count("'O'") == 2 and printed.count("reward (football)") == 2


def test_a_step_can_be_named_and_a_program_gets_all_of_it(folder, capsys):
    assert main(["groups", str(folder), "--step", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ROWS[:2]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--step", "7"], "--step 7 is not in"),
        (["--step", "7"], "it has 1 to 2"),
    ],
)
def test_a_step_that_is_not_there_is_named(folder, capsys, argv, words):
    assert main(["groups", str(folder), *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("faisca: ") and words in line


def test_a_folder_without_completions_is_named(tmp_path, capsys):
    assert main(["groups", str(tmp_path)]) == 2
    assert "has no completions.jsonl: name a run folder" in capsys.readouterr().err
    (tmp_path / "completions.jsonl").touch()
    assert main(["groups", str(tmp_path)]) == 2
    assert "no completions yet: wait" in capsys.readouterr().err


def test_what_a_real_run_writes_can_be_shown(material, tmp_path, capsys):
    from small_runs import start

    stages = ("--stages", "pretrain,grpo", "--pretrain.max-steps", "1", "--grpo.steps", "1")
    start(material, tmp_path / "run", "torch", *stages)
    capsys.readouterr()
    assert main(["groups", str(tmp_path / "run"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    written = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert told == written and len(told) > 1
    assert main(["groups", str(tmp_path / "run"), "--step", "1"]) == 0
    assert "advantage" in capsys.readouterr().out
