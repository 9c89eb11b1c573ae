"""What `weak_scaling.py` simulates from, measured: two gloo processes on this machine, a core each.

`python benchmarks/weak_scaling_gloo.py` prints one JSON object: latency and bandwidth, from the time of all-reduces of
a small and a large size, mean and deviation of a training step while both processes compute, and, to hold the
simulation against, the time of steps that average their gradients after the backward pass.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from faisca.config.files import load_preset
from faisca.data.tokenizer import expected_tokens
from faisca.parameters import count_parameters, initial_parameters
from faisca.streams import generator

PRESET = "spark"
WARM, ROUNDS, STEPS = 3, 5, 5
"""steps before all; rounds, each of so many steps alone and so many that average, so that both meet the same load"""
SIZES = (4, 2**10, 2**14, 2**17, 2**20, 2**22, 2**24, 25 * 2**20)
"""bytes of all-reduces; the last is a bucket"""
REPEATS = 30


def link_seconds(size: int) -> float:
    """Median time of an all-reduce of so many bytes."""
    numbers, times = torch.ones(size // 4), []
    for _ in range(REPEATS + 3):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(numbers)
        times.append(time.perf_counter() - begin)
        numbers.fill_(1)
    return statistics.median(times[3:])


def link_of(times: dict[int, float]) -> dict[str, float]:
    """Latency and bandwidth of t = 2 · latency + bytes / bandwidth, what a ring of two takes: from the smallest and the
    largest size."""
    smallest, largest = min(times), max(times)
    return {
        "latency": times[smallest] / 2,
        "bandwidth": (largest - smallest) / (times[largest] - times[smallest]),
    }


def step_of(rank: int) -> tuple[Callable[[int], None], int]:
    """A training step of the preset on random tokens, and how many parameters it has."""
    import faisca_torch as twin

    config = load_preset(PRESET)
    model = replace(config.model, vocabulary_size=expected_tokens(config.tokenizer))
    runtime = twin.open_runtime(config=replace(config.run, device="cpu", compile="off"))
    made = twin.make_model(config=model, parameters=initial_parameters(model, 0), runtime=runtime)
    learner = twin.make_learner(model=made, config=config.pretrain)
    shape = (config.pretrain.batch_size, config.data.window + 1)

    def act(step: int) -> None:
        tokens = generator(0, "tokens of weak scaling", step, rank).integers(0, model.vocabulary_size, shape)
        tokens = tokens.astype(np.int32)
        metrics = twin.train_step(
            learner=learner,
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            learning_rate=1e-4,
            micro_batch_size=0,
            dropout_seed=step,
        )
        twin.read_metrics(metrics=[metrics])

    return act, count_parameters(model)


def timed(act: Callable[[int], None]) -> list[float]:
    """Seconds of each of some steps, which both processes begin together."""
    dist.barrier()
    times = []
    for step in range(STEPS):
        begin = time.perf_counter()
        act(step)
        times.append(time.perf_counter() - begin)
    return times


def measured(rank: int) -> dict[str, Any]:
    """All of it, as this process has it."""
    times = {size: link_seconds(size) for size in SIZES}
    act, parameters = step_of(rank)
    gradients = torch.ones(parameters)

    def averaging(step: int) -> None:
        act(step)
        for bucket in gradients.split(SIZES[-1] // 4):
            dist.all_reduce(bucket)
        gradients.fill_(1)

    for step in range(WARM):
        averaging(step)
    rounds = [(timed(act), timed(averaging)) for _ in range(ROUNDS)]
    alone, pair = ([seconds for part in parts for seconds in part] for parts in zip(*rounds, strict=True))
    return {"times": times, "alone": alone, "pair": pair, "parameters": parameters}


def process(rank: int, folder: str) -> None:
    """One of the two processes: what it measured goes into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    Path(folder, f"{rank}.json").write_text(json.dumps(measured(rank)))
    dist.barrier()
    dist.destroy_process_group()


def both() -> dict[str, Any]:
    """Run two processes, and join what they measured."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        commands = [[sys.executable, __file__, str(rank), folder] for rank in (0, 1)]
        running = [subprocess.Popen(command, env=environment, stdout=sys.stderr) for command in commands]
        statuses = [each.wait() for each in running]
        if any(statuses):
            raise SystemExit(f"faisca: a process ended with status {max(statuses)}: what it said is above")
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in (0, 1)]
    times = {size: statistics.mean(each["times"][str(size)] for each in found) for size in SIZES}
    steps = [seconds for each in found for seconds in each["alone"]]
    return {
        "link": link_of(times) | {"all_reduce_seconds": times},
        "step": {
            "preset": PRESET,
            "seconds": statistics.mean(steps),
            "deviation": statistics.stdev(steps),
            "gradients": 4 * found[0]["parameters"],
            "steps": len(steps),
        },
        "pair": {"seconds": statistics.mean(found[0]["pair"] + found[1]["pair"])},
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        process(int(sys.argv[1]), sys.argv[2])
    else:
        print(json.dumps(both()))
