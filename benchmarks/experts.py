"""CPU time of a training step: a mixture of experts against the dense model of as many active parameters.

    python benchmarks/experts.py [--rounds N]

Steps of both alternate, so that what else the machine does meets both; medians of CPU time (all threads), in
float32 on the CPU. The sizes are those of preset moe, with fewer rows.
"""

import argparse
import dataclasses
import statistics
import time
from typing import Any

import numpy as np

from faisca.backend import load_backend
from faisca.backends import BACKENDS
from faisca.config import ModelConfig, OptimizerConfig, RunConfig
from faisca.config.files import load_preset
from faisca.parameters import initial_parameters

ROWS = 16
MIXTURE = dataclasses.replace(load_preset("moe").model, vocabulary_size=8192)
DENSE = dataclasses.replace(load_preset("modern").model, vocabulary_size=8192)


def make_step(name: str, config: ModelConfig) -> Any:
    """A function that takes one step."""
    backend = load_backend(name)
    runtime = backend.open_runtime(config=RunConfig(device="cpu", dtype="float32", compile="off"))
    model = backend.make_model(config=config, parameters=initial_parameters(config, 0), runtime=runtime)
    learner = backend.make_learner(model=model, config=OptimizerConfig())
    ids = np.random.default_rng(0).integers(config.vocabulary_size, size=(ROWS, config.context + 1), dtype=np.int32)
    given = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "micro_batch_size": 0, "dropout_seed": 0}

    def step() -> float:
        began = time.process_time()
        backend.read_metrics(metrics=[backend.train_step(learner=learner, learning_rate=1e-4, **given)])
        return time.process_time() - began

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    for name in BACKENDS:
        steps = {"dense": make_step(name, DENSE), "experts": make_step(name, MIXTURE)}
        times: dict[str, list[float]] = {kind: [] for kind in steps}
        for turn in range(rounds + 1):
            for kind, step in steps.items():
                took = step()
                times[kind] += [took] if turn else []  # the first warms up
        dense, experts = (statistics.median(times[kind]) for kind in ("dense", "experts"))
        print(f"{name}: dense {dense:.3f} s, experts {experts:.3f} s, {experts / dense:.2f} times")


if __name__ == "__main__":
    main()
