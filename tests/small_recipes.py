"""What the tests of recipes share: small peers, runs that never were, and runs that follow a law exactly."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from faisca.config import ModelConfig
from faisca.planning.law import flops_per_token, predict, weights_met

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
pytest.importorskip("scipy", reason="scipy, of the extra study, is missing")

PEERS = ("nanogpt", "nanochat", "minimind")
TINY = {
    "nanogpt": {"layers": 2, "heads": 2, "dim": 16, "window": 16, "warmup_steps": 2},
    "nanochat": {
        "depth": 1,
        "vocabulary": 300,
        "window": 16,
        "batch_size": 8,
        "micro_batch_size": 4,
        "warmup_steps": 2,
    },
    "minimind": {"layers": 2, "heads": 2, "kv_heads": 1, "dim": 16, "vocabulary": 300, "window": 16, "batch_size": 8},
}
MACHINE = {"processor": "a processor", "cores": 2, "memory_bytes": 2**30, "system": "a system"}
TRUE = (0.9, 60.0, 0.35, 60.0, 0.33)
LENGTHS = (1e6, 2.5e6, 6e6, 15e6)
SIZES = [(64, 2), (96, 3), (128, 4), (192, 5), (256, 6)]


def run_of(recipe, seed, bits, **more):
    """A finished run with three points."""
    points = [
        {"seconds": s, "tokens": 100 * s, "flops": 1e9 * s, "steps": s, "bits_per_byte": b}
        for s, b in zip((10, 100, 600), bits, strict=True)
    ]
    facts = {"backend": "torch", "parameters": 1000, "vocabulary": 300, "validation": "v", "data": "few titles"}
    run = {
        "recipe": recipe,
        "seed": seed,
        "budget": {"kind": "seconds", "amount": 600.0},
        "facts": facts,
        "curve": points,
    }
    return run | {"configuration": {"changes": ""}, "machine": MACHINE} | more


def study_by_law(noise):
    """Runs whose bits per byte are those of TRUE, but for some noise."""
    random, runs = np.random.default_rng(0), []
    for dim, layers in SIZES:
        model = ModelConfig(dim=dim, num_layers=layers, num_heads=2, hidden_dim=4 * dim)
        weights = weights_met(replace(model, vocabulary_size=4096))
        flops = flops_per_token(replace(model, vocabulary_size=4096), 64)
        for tokens in LENGTHS:
            bits = predict(TRUE, weights, tokens) * math.exp(noise * random.standard_normal())
            facts = {"vocabulary": 4096, "parameters": 10**6, "flops_per_token": flops}
            facts |= {"training_tokens": 2_000_000, "training_titles": 90_000}
            runs.append(
                {
                    "recipe": f"x {dim}x{layers}",
                    "configuration": {"model": vars(model)},
                    "facts": facts,
                    "machine": MACHINE,
                    "curve": [{"tokens": tokens, "bits_per_byte": bits}],
                }
            )
    return runs
