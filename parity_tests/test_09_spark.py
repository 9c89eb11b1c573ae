"""Rung 9, for the preset that everybody starts with: the first steps of `spark`'s stages, evaluated all along."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cases import Twin

from faisca.config import Config
from faisca.config.files import load_preset
from faisca.runs.log import read_records

LOSSES = ("validation_loss", "bits_per_byte", "portugal_validation_loss")


def shortened() -> Config:
    """`spark` with few steps, and an evaluation every third."""
    preset = load_preset("spark")
    few = {"max_steps": 9, "evaluate_every": 3, "evaluation_batches": 2, "max_validation_titles": 300}
    return dataclasses.replace(
        preset,
        pretrain=dataclasses.replace(preset.pretrain, **few),
        sft=dataclasses.replace(preset.sft, **few),
        grpo=dataclasses.replace(preset.grpo, steps=2),
        sample=dataclasses.replace(preset.sample, counted=24),
    )


def evaluations(twin: Twin, folder: Path) -> list[list[float]]:
    twin.run(shortened(), folder)
    return [[record[name] for name in LOSSES] for record in read_records(folder) if "validation_loss" in record]


def test_spark_has_the_same_losses_at_every_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    one = evaluations(Twin("torch", "cpu"), tmp_path / "one")
    two = evaluations(Twin("mlx", "cpu"), tmp_path / "two")
    assert len(one) == 8  # before, and after every third of nine steps, in two stages
    assert one[0][0] > one[-1][0] + 0.5  # they have learnt something
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-2)
