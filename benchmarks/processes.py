"""What averaging costs: steps of two processes beside the same steps without it, in the same processes, in turn.

    python benchmarks/processes.py [--out FOLDER] [--rounds 9]

Both backends start by their own launchers: a step of `spark` whose gradients are not averaged (which no training does),
one as it is trained, and ones with gradients in bfloat16 and, for torch, as arrays of the host, as a job over both
frameworks has them. Then SmolLM2-135M's sizes with random weights, torch: memory of a process with all weights and
with its share of them (`run.shard`), and their losses. Medians; the machine's load is in the result. FOLDER gets
processes.json and processes.md, the table of docs/scaling.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from faisca.backend import load_backend
from faisca.bench.machine import describe_machine
from faisca.commands.launch import launcher
from faisca.config import Config, RunConfig
from faisca.config.files import load_preset, read_sections
from faisca.group import ALONE, Processes
from faisca.parameters import count_parameters, initial_parameters
from faisca.processes.join import processes_of
from faisca.streams import generator
from faisca.system.memory import peak_resident_bytes, reset_peak

HERE = Path(__file__).parent
WAYS = {
    "not averaged": None,
    "averaged": {},
    "in bfloat16": {"reduce_dtype": "bfloat16"},
    "as arrays of the host": {"mixed": True},
}
WARM = 2
BIG_STEPS = 3


def learner_of(config: Config, backend: Any, processes: Processes) -> Any:
    """A model with initial weights, and its optimiser."""
    runtime = replace(backend.open_runtime(config=config.run), processes=processes)
    model = replace(config.model, vocabulary_size=config.model.vocabulary_size or config.tokenizer.vocabulary_size)
    made = backend.make_model(config=model, parameters=initial_parameters(model, 0), runtime=runtime)
    return backend.make_learner(model=made, config=config.pretrain)


def batch(config: Config, rows: int, rank: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens."""
    size = config.model.vocabulary_size or config.tokenizer.vocabulary_size
    tokens = generator(rank, "benchmark of processes", step).integers(0, size, (rows, config.data.window + 1))
    return tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32)


def step_seconds(backend: Any, learner: Any, tokens: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Seconds of a step, and its loss; all has been computed."""
    began = time.perf_counter()
    common = {"learning_rate": 1e-4, "micro_batch_size": 0, "dropout_seed": 0}
    made = backend.train_step(learner=learner, inputs=tokens[0], targets=tokens[1], **common)
    loss = backend.read_metrics(metrics=[made])[0]["loss"]
    return time.perf_counter() - began, loss


def small(name: str, rounds: int, processes: Processes) -> dict[str, Any]:
    """Seconds of `spark`'s step in each way, a round each."""
    backend, config = load_backend(name), load_preset("spark")
    config = replace(config, run=RunConfig(backend=name, device="cpu", dtype="float32"))  # type: ignore[arg-type]
    rows = config.pretrain.batch_size // processes.size
    kinds = {way: ALONE if options is None else replace(processes, **options) for way, options in WAYS.items()}
    learners = {way: learner_of(config, backend, kind) for way, kind in kinds.items()}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(-WARM, rounds):
        for way, learner in learners.items():
            processes.any(False)  # all begin together
            took, _ = step_seconds(backend, learner, batch(config, rows, processes.rank, turn + WARM))
            processes.any(False)
            if turn >= 0:
                seconds[way].append(max(processes.gather(took)))
    model = learners["averaged"].model.config
    return {"seconds": seconds, "parameters": count_parameters(model), "rows": rows}


def big(shard: bool, processes: Processes) -> dict[str, Any]:
    """Peaks of a process, and losses, with SmolLM2-135M's sizes."""
    config, backend = Config(**read_sections(HERE / "smollm2.toml")), load_backend("torch")
    config = replace(config, run=RunConfig(backend="torch", device="cpu", dtype="float32"))
    learner = learner_of(config, backend, replace(processes, shard=shard))
    losses = [step_seconds(backend, learner, batch(config, 1, processes.rank, 0))[1]]
    reset_peak()  # what loading took is over
    losses += [
        step_seconds(backend, learner, batch(config, 1, processes.rank, step))[1] for step in range(1, BIG_STEPS)
    ]
    return {"peaks": processes.gather(peak_resident_bytes()), "losses": losses}


def work(kind: str, name: str, rounds: int, out: Path) -> None:
    """One process of a launch."""
    config = Config(run=RunConfig(backend=name, stages=("pretrain",)))  # type: ignore[arg-type]
    with processes_of(config, out) as (processes, _):
        found = small(name, rounds, processes) if kind == "small" else big(kind == "sharded", processes)
        if processes.rank == 0:
            out.write_text(json.dumps(found))


def launch(kind: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What two processes found."""
    out: Path = options.out / f"{kind}-{name}.json"
    script = [__file__, "--work", kind, name, "--rounds", str(options.rounds), "--out", str(out)]
    command = [*launcher(name, 2), *script]
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # else glibc keeps what was freed, and peaks say nothing
    subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)
    return dict(json.loads(out.read_text()))


def table(found: dict[str, Any]) -> str:
    """Both tables, in Markdown."""
    lines = ["| spark, 2 processes | s a step | averaging's share | sent a step |", "|---|---:|---:|---:|"]
    for name in ("torch", "mlx"):
        one = found[f"small {name}"]
        base = statistics.median(one["seconds"]["not averaged"])
        for way, seconds in one["seconds"].items():
            took = statistics.median(seconds)
            width = 0 if way == "not averaged" else 2 if way == "in bfloat16" else 4
            sent = f"{width * one['parameters'] / 1e6:.1f} MB" if width else "–"
            share = f"{max(0.0, 1 - base / took):.1%}" if width else "–"
            lines.append(f"| {name}, {way} | {took:.3f} | {share} | {sent} |")
    lines += ["", "| SmolLM2-135M's sizes, torch, 2 processes | peak of each process | losses |", "|---|---:|---|"]
    for kind, words in {"whole": "data parallel", "sharded": "run.shard"}.items():
        one = found[kind]
        peaks = ", ".join(f"{peak / 1e9:.2f} GB" for peak in one["peaks"])
        lines.append(f"| {words} | {peaks} | {', '.join(f'{loss:.5f}' for loss in one['losses'])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("processes"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work, options.rounds, options.out)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": describe_machine(), "load": os.getloadavg()[0]}
    for name in ("torch", "mlx"):
        found[f"small {name}"] = launch("small", name, options)
    for kind in ("whole", "sharded"):
        found[kind] = launch(kind, "torch", options)
    (options.out / "processes.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "processes.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
