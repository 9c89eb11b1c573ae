"""summary.json, and the table that people and model cards get."""

import io
import json
import math
import re

import pytest
from rich.console import Console

from faisca.errors import FaiscaError
from faisca.runs.summary import read_summary, show_summary, summary_markdown, write_summary


def stage(name: str, **measured) -> dict:
    values = {
        "stage": name,
        "validation_loss_before": 8.5312,
        "validation_loss_after": 4.2134,
        "bits_per_byte_after": 1.5321,
        "portugal_validation_loss_before": None,
        "portugal_validation_loss_after": 4.3312,
        "football_share_before": 0.0,
        "football_share_after": 0.105,
        "distinct_share_after": 1.0,
        "seconds": 3663.4,
        "tokens_per_second": 112345.6,
        "peak_memory_bytes": 1_612_345_678,
        "samples_before": ["Presidente \x1b[31m\ufffd\n\tz"],
        "samples_after": ["Presidente da Câmara anuncia [novo] plano", "Benfica :rocket: vence"],
    }
    return values | measured


@pytest.fixture
def summary() -> dict:
    run = {"backend": "torch", "device": "cpu", "preset": "spark", "seed": 1337, "parameters": 1_842_560}
    return run | {"stages": [stage("pretrain"), stage("sft"), stage("grpo", kl_after=0.03126)]}


def printed(summary: dict, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show_summary(summary, console)
    return console.file.getvalue()


def test_the_file_has_the_documented_names(summary, tmp_path):
    summary["stages"][0]["tokens_per_second"] = math.nan
    write_summary(tmp_path, summary)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert "Câmara" in text
    assert text.endswith("}\n")
    summary["stages"][0]["tokens_per_second"] = None
    summary["stages"][0]["tokens_per_second_is"] = "not a number"
    assert read_summary(tmp_path) == summary == json.loads(text)
    assert list(summary) == ["backend", "device", "preset", "seed", "parameters", "stages"]


def test_the_table_says_which_memory_and_which_kl(summary):
    for entry, kind in zip(summary["stages"], ("device", "device", "resident"), strict=True):
        entry |= {"peak_memory_kind": kind, "counted": 200}
    assert "| peak memory | " in summary_markdown(summary)  # two kinds: neither names the row
    assert "| KL, 200 completions | – | – | 0.0313 |" in summary_markdown(summary)
    summary["stages"][2]["peak_memory_kind"] = "device"
    assert "| peak memory, device | " in summary_markdown(summary)


@pytest.mark.parametrize("key", ["seed", "stages"])
def test_a_summary_without_a_documented_name_is_a_bug(summary, tmp_path, key):
    del summary[key]
    with pytest.raises(AssertionError, match=f"lacks {key}"):
        write_summary(tmp_path, summary)
    assert not list(tmp_path.iterdir())


def test_a_stage_without_a_documented_name_is_a_bug(summary, tmp_path):
    del summary["stages"][1]["samples_after"]
    with pytest.raises(AssertionError, match=r"lacks sft\.samples_after"):
        write_summary(tmp_path, summary)


def test_reading_names_what_is_wrong(tmp_path):
    with pytest.raises(FaiscaError, match=r"has no summary\.json"):
        read_summary(tmp_path)
    for content in ("{", "[]", '{"seed": 1}'):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(FaiscaError, match=r"summary\.json is not .*: restore it, or run again"):
            read_summary(tmp_path)


def test_the_table_at_80_columns(summary):
    lines = [line.rstrip() for line in printed(summary).splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "spark on torch (cpu) · 1.84 M parameters · seed 1337"
    assert lines[2].split() == ["pretrain", "sft", "grpo"]
    rows = {line[:22].strip(): line[22:].split("  ") for line in lines[4:13]}
    cells = {name: [cell.strip() for cell in row if cell.strip()] for name, row in rows.items()}
    assert cells == {
        "validation loss (nats)": ["8.531 → 4.213"] * 3,
        "bits per byte": ["1.532"] * 3,
        ".pt validation loss": ["– → 4.331"] * 3,
        "football share": ["0.0 % → 10.5 %"] * 3,
        "distinct share": ["100.0 %"] * 3,
        "KL to reference": ["–", "–", "0.0313"],
        "time": ["1:01:03"] * 3,
        "tokens/s": ["112,346"] * 3,
        "peak memory": ["1.6 GB"] * 3,
    }


def test_headlines_are_printed_as_text_on_lines_of_their_own(summary):
    lines = [line.rstrip() for line in printed(summary).splitlines()]
    at = lines.index("before sft  Presidente [31m\ufffd z")
    assert lines[at + 1 : at + 4] == [
        "after sft   Presidente da Câmara anuncia [novo] plano",
        "            Benfica :rocket: vence",
        "",
    ]
    assert "\x1b" not in "".join(lines)


def test_long_samples_are_cut(summary):
    summary["stages"][0]["samples_before"] = ["a" * 200]
    assert printed(summary, width=250).splitlines()[14].rstrip() == "before pretrain  " + "a" * 159 + "…"


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrow_terminal_cuts_no_number(summary, width):
    text = printed(summary, width)
    assert text.count("8.531 → 4.213") == 3
    assert "0.0 % → 10.5 %" in text
    assert "…" not in text


def test_measures_that_no_stage_has_are_left_out(summary):
    del summary["stages"][2]
    for each in summary["stages"]:
        each |= {"portugal_validation_loss_after": None, "samples_before": [], "samples_after": None}
    text = printed(summary)
    assert "KL" not in text
    assert ".pt" not in text
    assert "before" not in text
    assert "bits per byte" in text


def own_reward(summary: dict, **measured: float | None) -> dict:
    summary |= {"reward": "/a/long/way/rewards.py:short", "sft_url_contains": ".es/"}
    names = ("reward_before", "reward_after", "reward_std_before", "reward_std_after")
    for each in summary["stages"]:
        each |= dict.fromkeys(names) | measured
    return summary


def test_a_reward_of_ones_own_is_shown_instead_of_football(summary):
    measured = {"reward_before": 0.0833, "reward_after": 0.96, "reward_std_before": 0.279, "reward_std_after": 0.196}
    text = printed(own_reward(summary, **measured))
    assert re.search(r"reward \(rewards.py:short\)( +0.083 → 0.960){3}\n", text)
    assert re.search(r"its spread( +0.279 → 0.196){3} *\n", text)
    assert ".es validation loss" in text and "football" not in text and ".pt" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_reward_that_scored_nothing_has_its_row(summary):
    text = printed(own_reward(summary))
    assert re.search(r"reward \(rewards.py:short\)( +–){3}", text) and "its spread" not in text


def test_markdown_is_the_same_table(summary):
    lines = summary_markdown(summary).splitlines()
    assert lines[:3] == [
        "|  | pretrain | sft | grpo |",
        "| --- | ---: | ---: | ---: |",
        "| validation loss (nats) | 8.531 → 4.213 | 8.531 → 4.213 | 8.531 → 4.213 |",
    ]
    assert "| KL to reference | – | – | 0.0313 |" in lines
    assert len(lines) == 11
