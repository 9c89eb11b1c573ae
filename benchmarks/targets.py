"""Our targets against what `faisca bench` measured: `python benchmarks/targets.py RESULTS.json`.

The results must be of `--preset faisca --peers reference,naive_mlx,transformers,mlx_lm`. The exit
status is 1 where a target is missed or was not measured.
"""

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from faisca.bench.results import LESS_IS_BETTER, TITLES, read_results

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
PRODUCTS_SHARE = 65.0
"""per cent of torch's training step that its matrix products take"""


def main(path: Path) -> int:
    """Print the table; 1 where a target is missed or was not measured."""
    measured = {name: subject["measured"] for name, subject in read_results(path)["subjects"].items()}
    table = Table("", "measured", "target", "", box=box.SIMPLE_HEAD)
    met = []
    for backend, key, baseline, target in TARGETS:
        title, unit = TITLES[key]
        ours, theirs = (measured.get(name, {}).get(key) for name in (backend, baseline))
        ratio = None if ours is None or theirs is None else ours["median"] / theirs["median"]
        if ratio is not None and unit in LESS_IS_BETTER:
            ratio = 1 / ratio
        met.append(ratio is not None and ratio >= target)
        shown = "not measured" if ratio is None else f"{ratio:.1f}×"
        table.add_row(f"{backend}: {title} against {baseline}", shown, f"≥ {target:g}×", "met" if met[-1] else "MISSED")
    share = measured.get("torch", {}).get("products_share", {}).get("median")
    met.append(share is not None and share >= PRODUCTS_SHARE)
    shown = "not measured" if share is None else f"{share:.0f} %"
    table.add_row(
        f"torch: {TITLES['products_share'][0]}", shown, f"≥ {PRODUCTS_SHARE:g} %", "met" if met[-1] else "MISSED"
    )
    Console(width=100).print(table)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
