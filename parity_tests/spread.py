"""How far runs of one twin end apart when only rounding differs: the control for rung 9 on `spark`.

    python parity_tests/spread.py [RUNS]

Run 0 starts from the preset's initial weights; the others move each of them by a relative 1e-7,
about its last place in float32. What such runs differ by, no other backend can be asked to beat.
"""

import contextlib
import functools
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from cases import Twin

from faisca.config import ModelConfig
from faisca.config.files import load_preset
from faisca.parameters import Parameters, initial_parameters
from faisca.streams import generator
from faisca.training import stages

NOISE = 1e-7
MEASURES = ("validation_loss_after", "portugal_validation_loss_after", "football_share_after", "distinct_share_after")


def disturbed(run: int, config: ModelConfig, seed: int) -> Parameters:
    """Initial weights, each off by about its last place; run 0's are untouched."""
    random = generator(run, "disturbance of initial weights")
    return {
        name: value * (1 + np.float32(NOISE * (run > 0)) * random.standard_normal(value.shape, np.float32))
        for name, value in initial_parameters(config, seed).items()
    }


def final_table(run: int, folder: Path) -> dict[str, dict[str, Any]]:
    """The summary of a run of torch on the CPU, by stage."""
    weights = mock.patch.object(stages, "initial_parameters", functools.partial(disturbed, run))
    with weights, contextlib.redirect_stdout(sys.stderr):
        summary = Twin("torch", "cpu").run(load_preset("spark"), folder / str(run))
    return {stage["stage"]: stage for stage in summary["stages"]}


def main(runs: int) -> None:
    """A line for each stage and measure: its value in every run, and the largest difference."""
    with tempfile.TemporaryDirectory() as folder:
        tables = [final_table(run, Path(folder)) for run in range(runs)]
    for stage in tables[0]:
        for measure in (*MEASURES, *(["kl_after"] if stage == "grpo" else [])):
            values = [table[stage][measure] for table in tables]
            largest = max(abs(a - b) for a, b in combinations(values, 2))
            print(f"{stage:9} {measure:31} {' '.join(f'{value:.4f}' for value in values)}  largest {largest:.1e}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
