"""The numbers of a benchmark: medians and spread over rounds, what follows from them, and comparisons."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from faisca.bench.products import training_flops
from faisca.bench.work import CASES, Work
from faisca.errors import FaiscaError
from faisca.text import format_bytes, one_line

FORMAT = "faisca bench 1"
SCHEMA = Path(__file__).with_name("schema.json")
MOST_WORDS = 160
"""characters of what the schema's validator says, for it quotes what it finds wrong"""
Results = dict[str, Any]

LESS_IS_BETTER = ("s", "bytes", "J")


@dataclass(frozen=True)
class Row:
    """A line of the table: a measure, and its value for each column that has it."""

    key: str
    title: str
    unit: str
    values: dict[str, float]
    spreads: dict[str, float]
    """half the range of the rounds, as a share of the median"""

    def ratio(self, column: str, base: str) -> float | None:
        """How many times better than the base; None where either was not measured."""
        if column not in self.values or not self.values.get(base):
            return None
        ratio = self.values[column] / self.values[base]
        return 1 / ratio if self.unit in LESS_IS_BETTER else ratio


FRESH = {
    "first_step": ("first training step", "s"),
    "peak_resident": ("training's peak memory, resident", "bytes"),
    "peak_device": ("training's peak memory, device", "bytes"),
}
SUSTAINED = {
    "sustained": ("training, sustained: its end", "tokens/s"),
    "energy": ("energy of 1,000 tokens", "J"),
}
DERIVED = {
    "utilisation": ("model FLOPs utilisation", "%"),
    "products_share": ("matrix products' share of step", "%"),
}
TITLES = {key: (case.title, case.unit) for key, case in CASES.items()} | FRESH | DERIVED | SUSTAINED


def summarise(work: Work, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Seconds of the rounds by case -> median, low, high and rounds in the case's unit, and what is derived."""
    measured: dict[str, Any] = {}
    for case, rounds in seconds.items():
        values = [CASES[case].value(work, value) for value in rounds]
        measured[case] = {
            "median": statistics.median(values),
            "low": min(values),
            "high": max(values),
            "rounds": values,
        }
    if {"pretrain", "peak"} <= seconds.keys():
        step = statistics.median(seconds["pretrain"])
        flops = training_flops(work) / step
        measured["utilisation"] = {"median": 100 * flops / measured["peak"]["high"]}
    if {"pretrain", "products"} <= seconds.keys():
        share = statistics.median(seconds["products"]) / statistics.median(seconds["pretrain"])
        measured["products_share"] = {"median": 100 * share}
    return measured


def rows(columns: dict[str, dict[str, Any]]) -> list[Row]:
    """The lines of the table, in the order of TITLES; measures that no column has are left out."""
    table = []
    for key, (title, unit) in TITLES.items():
        found = {name: measured[key] for name, measured in columns.items() if _is_number(measured.get(key))}
        if found:
            values = {name: value["median"] for name, value in found.items()}
            spreads = {name: _spread(value) for name, value in found.items() if "low" in value}
            table.append(Row(key, title, unit, values, spreads))
    return table


def read_results(path: Path) -> Results:
    """The JSON file of a benchmark; FaiscaError where it cannot be read or does not fit the schema."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FaiscaError(
            f"{path} cannot be read ({str(error).partition(':')[0]}): name a file of faisca bench"
        ) from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise FaiscaError(f"{path} is no result of this version's faisca bench: it lacks format {FORMAT!r}")
    if misfit := find_misfit(results):
        raise FaiscaError(f"{path} does not fit: {misfit}; mend it as faisca/bench/schema.json says, or measure again")
    return results


def find_misfit(results: Results) -> str:
    """Where a benchmark does not fit the schema, and what is wrong there; empty where it fits."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    error = best_match(Draft202012Validator(schema).iter_errors(results))
    if error is None:
        return ""
    place = ".".join(map(str, error.absolute_path))
    return f"{place + ': ' if place else ''}{one_line(error.message)[:MOST_WORDS]}"


def read_comparable(paths: list[Path]) -> list[Results]:
    """Several results of the same work; FaiscaError where they measured other work."""
    found = [read_results(path) for path in paths]
    for path, results in zip(paths, found, strict=True):
        for place, mine, theirs in _different(found[0]["work"], results["work"]):
            raise FaiscaError(
                f"{path} measured other work than {paths[0]}: {place} is {theirs}, not {mine}; "
                "compare results of the same preset, both quick or both not"
            )
    return found


def merge(names: list[str], found: list[Results]) -> dict[str, dict[str, Any]]:
    """The columns of several results, as NAME BACKEND."""
    return {
        f"{name} {backend}": subject["measured"]
        for name, results in zip(names, found, strict=True)
        for backend, subject in results["subjects"].items()
    }


def work_line(results: Results) -> str:
    """What was measured: preset, and whether quick."""
    work = results["work"]
    return f"preset {work['preset']}{', quick' if work['quick'] else ''}"


def short_names(paths: list[Path]) -> list[str]:
    """The files' names without ending, with as many of their folders as it takes to tell them apart."""
    absolute = [path.absolute() for path in paths]
    for path in paths:
        if absolute.count(path.absolute()) > 1:
            raise FaiscaError(f"{path} is named twice: name different files")
    for depth in range(1, max(len(path.parts) for path in absolute)):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in absolute]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]  # only their endings differ


def format_value(value: float, unit: str) -> str:
    """A number with three digits or so, in a unit that fits."""
    if unit == "bytes":
        return format_bytes(value)
    if unit == "FLOP/s":
        return f"{value / 1e9:,.0f} GFLOP/s" if value < 1e13 else f"{value / 1e12:,.0f} TFLOP/s"
    if unit == "s":
        return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"
    if unit == "J":
        return f"{value:.3g} J"
    if unit == "%":
        return f"{value:.0f} %"
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f}"


def _is_number(value: dict[str, float] | None) -> bool:
    """Whether something was measured; a file says null, or NaN, where nothing came of it."""
    return value is not None and value["median"] is not None and math.isfinite(value["median"])


def _spread(value: dict[str, float]) -> float:
    return (value["high"] - value["low"]) / 2 / value["median"]


def _different(left: Any, right: Any, place: str = "work") -> list[tuple[str, Any, Any]]:
    if isinstance(left, dict) and isinstance(right, dict):
        keys = list(dict.fromkeys([*left, *right]))
        return [d for key in keys for d in _different(left.get(key), right.get(key), f"{place}.{key}")]
    return [] if left == right else [(place, left, right)]
