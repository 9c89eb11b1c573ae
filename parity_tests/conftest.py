"""Fixtures: the sides that are compared, and real windows to train on."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # read when MLX starts: products in full float32
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # and by NVIDIA's libraries, under torch

import pytest
from cases import COMPILED, OTHER_LOSS, PAIRED, TWINS, Twin

from faisca.config.files import load_preset
from faisca.data.headlines import load_headlines, stage_titles
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import Tokenizer, load_tokenizer
from faisca.data.windows import Windows
from faisca.parity.cases import Side


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`twin`: each on its own; `other`: each but the yardstick; `trained`, `stepped`: those, and MLX compiled.

    `either`: each, and MLX with its other cross-entropy; `either_trained`: MLX also compiled, with either.
    """
    choices = {"twin": TWINS, "other": PAIRED, "trained": PAIRED + COMPILED, "stepped": TWINS + COMPILED}
    fused = [dataclasses.replace(twin, compile="on") for twin in OTHER_LOSS]
    choices |= {"either": TWINS + OTHER_LOSS, "either_trained": PAIRED + COMPILED + (OTHER_LOSS + fused) * bool(PAIRED)}
    for name, values in choices.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [pytest.param(value, marks=marks(value)) for value in values], ids=str)


def marks(twin: Twin) -> list[pytest.MarkDecorator]:
    no_compiler = twin.compile == "on" and twin.device == "cpu" and shutil.which("g++") is None
    return [pytest.mark.skipif(no_compiler, reason="MLX compiles for the CPU with g++, which is missing")]


@pytest.fixture(scope="session")
def yardstick() -> Side:
    """The torch twin on the CPU."""
    pytest.importorskip("torch", reason="the torch twin is the yardstick, and torch is not installed")
    return Twin("torch", "cpu").side


@pytest.fixture(scope="session")
def corpus(token_cache: Path) -> tuple[Tokenizer, Windows, Any]:
    """A tokenizer, training windows and validation tokens of the embedded headlines."""
    config = load_preset("tiny")
    headlines = load_headlines(config.data, seed=0)
    train, validation = stage_titles(headlines, config.pretrain, seed=0, stage="pretrain")
    tokenizer = load_tokenizer(config.tokenizer, train)
    return tokenizer, Windows(tokenise(train, tokenizer), 32, 32), tokenise(validation, tokenizer)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which mutations and which seeds this run has applied: another has others."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, [])]
    names = [r.nodeid.partition("[")[2].rpartition("]")[0] for r in reports if "test_the_ladder_catches[" in r.nodeid]
    if names:
        terminalreporter.write_line(f"mutations applied to a copy of the code: {', '.join(sorted(names))}")
    for name, value in sorted({said for report in reports for said in report.user_properties}):
        terminalreporter.write_line(f"{name}: {value}")
