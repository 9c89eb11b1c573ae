"""GRPO towards football on real headlines: `python benchmarks/grpo_study.py OUT --data HEADLINES`, where

HEADLINES is a folder with train.parquet and test.parquet. The preset `modern` is pre-trained and fine-tuned once, with
torch, and reinforced from there with three seeds on both backends, which share the cores. OUT gets a run for each, a
table (study.md) and the curves (study.png). Runs that are there stay, so it may be called again. About 40 minutes on
two idle cores.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow.parquet as parquet

from faisca.rewards.built_in import football

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BASE = "--preset modern --stages pretrain,sft --pretrain.epochs 2 --pretrain.learning-rate 4e-3 "
BASE += "--pretrain.max-validation-titles 2000 --sft.max-validation-titles 1000 "
BASE += "--pretrain.evaluate-every 0 --sft.evaluate-every 0"
STEPS = "--grpo.steps 90 --grpo.prompts-per-step 4 --grpo.minibatch-size 24 --grpo.learning-rate 1.5e-4 "
STEPS += "--grpo.schedule cosine --grpo.min-learning-rate-share 0 --grpo.kl-weight 0.2 "
STEPS += "--sample.counted 400 --sft.max-validation-titles 500"
BACKENDS, SEEDS = ("torch", "mlx"), (1, 2, 3)
CURVES = {
    "football_share": "share with football",
    "distinct_share": "share of distinct completions",
    "kl": "KL to the reference, nats a token",
    "entropy": "entropy, nats a token",
    "completion_length_mean": "length, tokens",
    "clip_high_share": "share clipped at 1 + clip_high",
}
COLORS = {"torch": "#c0504d", "mlx": "#2c7fb8"}


def faisca(*arguments: str) -> str:
    """What the command prints, which has the cores of one backend."""
    command = [sys.executable, "-m", "faisca", *arguments]
    threads = str(max(1, (os.cpu_count() or 1) // len(BACKENDS)))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def reinforce(out: Path, headlines: Path, backend: str) -> None:
    """The runs of a backend that are not there yet, one after the other."""
    for seed in SEEDS:
        run = out / f"{backend}-{seed}"
        from_base(out, headlines, run, *STEPS.split(), "--backend", backend, "--seed", str(seed))


def from_base(out: Path, headlines: Path, run: Path, *options: str) -> Path:
    """GRPO of the base model, from no prompt, with these options; a run that has ended stays."""
    if not ended(run):
        start = ["grpo", "--from", str(out / "base"), "--data", str(headlines), "--out", str(run)]
        faisca(*start, "--grpo.prompts", "", *options)
    return run


def write_plain(headlines: Path, folder: Path) -> Path:
    """The validation headlines without a football word, as a source of their own."""
    folder.mkdir(exist_ok=True)
    table = parquet.read_table(headlines / "test.parquet")
    keep = [not hit for hit in football(table["title"].to_pylist())]
    parquet.write_table(table.filter(keep), folder / "test.parquet")
    parquet.write_table(table.slice(0, 100), folder / "train.parquet")
    return folder


def loss(run: Path, plain: Path) -> float:
    """Nats a token on headlines without football."""
    return float(json.loads(faisca("evaluate", str(run), "--data", str(plain), "--json"))["validation_loss"])


def records(run: Path) -> list[dict[str, Any]]:
    """The steps of GRPO."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["stage"] == "grpo" and "reward_mean" in line]


def ended(run: Path, stage: str = "grpo") -> bool:
    """Whether the run came to the end of its last stage."""
    path = run / "summary.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["stages"][-1]["stage"] == stage


def row(name: str, run: Path, before: float, plain: Path) -> str:
    """A line of the table."""
    stage = json.loads((run / "summary.json").read_text(encoding="utf-8"))["stages"][-1]
    shares = [
        f"{stage[what]:.1%}" for what in ("football_share_before", "football_share_after", "distinct_share_after")
    ]
    after = loss(run, plain)
    return f"| {name} | {' | '.join(shares)} | {before:.3f} | {after:.3f} | {after - before:+.3f} |"


HEAD = """| | football before | after | distinct after | loss without football before | after | change |
|---|---:|---:|---:|---:|---:|---:|"""


def draw(runs: dict[tuple[str, int], Path], path: Path) -> None:
    """The curves of all runs, a panel for each measure."""
    figure, panels = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for panel, (measure, title) in zip(panels.flat, CURVES.items(), strict=True):
        for (backend, seed), run in runs.items():
            points = [(record["step"], record[measure]) for record in records(run) if record.get(measure) is not None]
            label = backend if seed == SEEDS[0] else None
            panel.plot(*zip(*points, strict=True), color=COLORS[backend], alpha=0.75, linewidth=1.4, label=label)
        panel.set(title=title, xlabel="step")
        if measure in ("football_share", "distinct_share"):
            panel.set_ylim(0, 1.03)
        panel.grid(alpha=0.25)
    panels.flat[0].legend(frameon=False)
    figure.suptitle("GRPO towards football on real headlines: three seeds on each backend, one model before")
    figure.savefig(path, dpi=80)


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    out, base = options.out, options.out / "base"
    out.mkdir(exist_ok=True)
    plain = write_plain(options.data, out / "plain")
    if not ended(base, "sft"):
        faisca("run", *BASE.split(), "--data", str(options.data), "--out", str(base), "--backend", "torch")
    runs = {(backend, seed): out / f"{backend}-{seed}" for backend in BACKENDS for seed in SEEDS}
    with ThreadPoolExecutor(len(BACKENDS)) as lanes:
        list(lanes.map(partial(reinforce, out, options.data), BACKENDS))
    before = loss(base, plain)
    lines = [row(f"{backend}, seed {seed}", run, before, plain) for (backend, seed), run in runs.items()]
    (out / "study.md").write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")
    draw(runs, out / "study.png")
    print((out / "study.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
