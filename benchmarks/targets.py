"""Our targets against what `faisca bench` measured: `python benchmarks/targets.py RESULTS.json …`.

The results must be of `--preset faisca --peers reference,naive_mlx,transformers,mlx_lm`; where
several files have a ratio, the last counts, and both sides of a ratio come from one file. The exit
status is 1 where a target is missed or was not measured.
"""

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from faisca.bench.results import TITLES, read_results, rows

TARGETS = (
    ("torch", "pretrain", "reference", 2.0),
    ("torch", "peak_resident", "reference", 5.0),
    ("mlx", "pretrain", "naive_mlx", 2.0),
    ("mlx", "peak_device", "naive_mlx", 8.0),
    ("torch", "rollout", "reference", 20.0),
    ("mlx", "rollout", "reference", 12.0),
    ("torch", "grpo_full", "reference", 5.0),
    ("mlx", "grpo_full", "reference", 5.0),
    ("torch", "grpo_ending", "reference", 10.0),
    ("mlx", "grpo_ending", "reference", 10.0),
    ("torch", "generate_1", "transformers", 2.0),
    ("torch", "generate_24", "transformers", 2.0),
    ("mlx", "generate_1", "mlx_lm", 2.0),
    ("mlx", "generate_24", "mlx_lm", 2.0),
)
"""backend, measure, baseline, and how many times better it should be"""
VERDICT = {True: "met", False: "MISSED"}
PRODUCTS_SHARE = 65.0
"""per cent of torch's training step that its matrix products take"""


def main(paths: list[Path]) -> int:
    """Print the table; 1 where a target is missed or was not measured."""
    runs = [{name: subject["measured"] for name, subject in read_results(path)["subjects"].items()} for path in paths]
    lines = [{row.key: row for row in rows(run)} for run in runs]
    table = Table("", "measured", "target", "", box=box.SIMPLE_HEAD)
    met = []
    for backend, key, baseline, target in TARGETS:
        found = [by_key[key].ratio(backend, baseline) for by_key in lines if key in by_key]
        ratios = [ratio for ratio in found if ratio is not None]
        met.append(bool(ratios) and ratios[-1] >= target)
        shown = f"{ratios[-1]:.1f}×" if ratios else "not measured"
        table.add_row(f"{backend}: {TITLES[key][0]} against {baseline}", shown, f"≥ {target:g}×", VERDICT[met[-1]])
    shares = [run["torch"]["products_share"]["median"] for run in runs if "products_share" in run.get("torch", {})]
    met.append(bool(shares) and shares[-1] >= PRODUCTS_SHARE)
    shown = f"{shares[-1]:.0f} %" if shares else "not measured"
    table.add_row(f"torch: {TITLES['products_share'][0]}", shown, f"≥ {PRODUCTS_SHARE:g} %", VERDICT[met[-1]])
    Console(width=100).print(table)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
