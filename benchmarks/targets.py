"""Our targets against what `faisca bench` measured: `python benchmarks/targets.py RESULTS.json …`.

The results must be of the same work, `--preset faisca --peers reference,naive_mlx,transformers,mlx_lm,trl,mlx_lm_lora`.
Where several files have a ratio, the last counts, and both sides of a ratio come from one file,
which the table names. The exit status is 1 where a target is missed or was not measured.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from faisca.bench.results import TITLES, read_comparable, rows, short_names
from faisca.cli import exit_status
from faisca.errors import FaiscaError

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
    ("torch", "grpo_full", "trl", 1.0),
    ("torch", "grpo_once", "trl", 1.0),
    ("mlx", "grpo_full", "mlx_lm_lora", 1.0),
    ("mlx", "grpo_once", "mlx_lm_lora", 1.0),
    ("torch", "generate_1", "transformers", 2.0),
    ("torch", "generate_24", "transformers", 2.0),
    ("mlx", "generate_1", "mlx_lm", 2.0),
    ("mlx", "generate_24", "mlx_lm", 2.0),
)
"""backend, measure, baseline, and how many times better it should be"""
PRODUCTS_SHARE = 65.0
"""per cent of torch's training step that its matrix products take"""


Found = list[tuple[str, float]]
"""a measure in the files that have it: the file's name, and the ratio or share"""


def judge(paths: list[Path]) -> Iterator[tuple[str, Found, float, str]]:
    """Each target: its title, where it was measured, what it should be at least, and the unit."""
    names, results = short_names(paths), read_comparable(paths)
    runs = {
        name: {row.key: row for row in rows({key: value["measured"] for key, value in found["subjects"].items()})}
        for name, found in zip(names, results, strict=True)
    }
    for backend, key, baseline, target in TARGETS:
        ratios = {name: table[key].ratio(backend, baseline) for name, table in runs.items() if key in table}
        found = [(name, ratio) for name, ratio in ratios.items() if ratio is not None]
        yield f"{backend}: {TITLES[key][0]} against {baseline}", found, target, "×"
    shares = [(name, table["products_share"].values) for name, table in runs.items() if "products_share" in table]
    found = [(name, values["torch"]) for name, values in shares if "torch" in values]
    yield f"torch: {TITLES['products_share'][0]}", found, PRODUCTS_SHARE, " %"


def main(arguments: list[str]) -> int:
    """Print the table; 1 where a target is missed or was not measured."""
    if not arguments or any(argument.startswith("-") for argument in arguments):
        raise FaiscaError("name the JSON files of faisca bench: python benchmarks/targets.py RESULTS.json …")
    table = Table("", "measured", "target", "", "from", box=box.SIMPLE_HEAD)
    met = []
    for title, found, target, unit in judge([Path(argument) for argument in arguments]):
        name, value = found[-1] if found else ("", 0.0)
        met.append(bool(found) and value >= target)
        verdict = ("met" if met[-1] else "MISSED") if found else "not measured"
        measured = f"{value:.{1 if unit == '×' else 0}f}{unit}" if found else "–"
        table.add_row(title, measured, f"≥ {target:g}{unit}", verdict, name)
    Console(width=120).print(table)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
