"""`faisca bench`: speed and memory of both backends, and of baselines, on the same work and machine.

The machine's speed changes while it is measured, so what is compared is timed in turns: a round
times one case in each process after the other, and the table has medians over the rounds. A
baseline is timed only where it computes the same loss from the same weights.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.backend import PACKAGES, REMEDY, load_backend
from faisca.bench.chart import draw_chart
from faisca.bench.measure import ALL, run_benchmark
from faisca.bench.results import Results, Row, format_value, merge, rows
from faisca.bench.work import make_work
from faisca.bench.worker import BASELINES, find_baseline
from faisca.cli import parse
from faisca.config import RunConfig
from faisca.errors import FaiscaError
from faisca.files import write_atomically
from faisca.memory import format_bytes
from faisca.porting.libraries import missing_package


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `faisca bench`."""

    backends: str = "auto"
    """torch, mlx, or torch,mlx; auto takes those that are installed"""
    peers: str = ""
    """baselines to time beside them, as in reference,transformers: benchmarks/baselines of a checkout has them"""
    preset: str = "spark"
    """whose sizes to measure"""
    quick: FlagCreatePairsOff[bool] = False
    """smaller batches and fewer rounds: under two minutes for spark"""
    rounds: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 5, with --quick 3)")] = None
    """times that each case is timed"""
    cases: str = ""
    """measure only these, as in pretrain,rollout; empty takes all"""
    device: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """where to compute"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """what activations are computed in"""
    compile: Literal["auto", "on", "off"] = "auto"
    """compile the training step"""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: bench-DATE-TIME.json)")] = None
    """where the results go; the chart goes beside them, as .png"""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `faisca bench compare`."""

    results: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE…", help="JSON files of faisca bench")]
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead of a table"""


def bench(argv: list[str]) -> int:
    """Measure speed and memory of both backends on this machine: training, sampling,
    GRPO and data preparation, in turns, medians over rounds. Results go to a JSON
    file and a chart.

    examples:
      faisca bench --quick
      faisca bench --preset faisca --json mine.json
      faisca bench --peers reference,transformers --cases pretrain,rollout
      faisca bench compare mine.json yours.json
    """
    if argv[:1] == ["compare"]:
        return compare(argv[1:])
    options = parse(BenchOptions, argv, command="bench", help=bench.__doc__)
    _check(options)
    work = make_work(options.preset, quick=options.quick)
    path = options.json or Path(f"bench-{datetime.now():%Y%m%d-%H%M%S}.json")
    names = [*_backends(options.backends), *_listed(options.peers)]
    run = RunConfig(device=options.device, dtype=options.dtype, compile=options.compile)
    rounds = options.rounds or (3 if options.quick else 5)
    results = run_benchmark(work, names, run, rounds, _listed(options.cases) or ALL)
    _write(path, (json.dumps(results, indent=2) + "\n").encode())
    columns = {name: subject["measured"] for name, subject in results["subjects"].items()}
    table = rows(columns)
    _print_header(results)
    _print_table(table, list(columns))
    title = f"{work.config.preset}{' (quick)' if work.quick else ''} on {results['machine']['processor']}"
    draw_chart(table, list(columns), title, path.with_suffix(".png"))
    print(f"\nresults: {path}, chart: {path.with_suffix('.png')}")
    return 0


def compare(argv: list[str]) -> int:
    """Put results of faisca bench side by side: of machines, versions or settings.

    examples:
      faisca bench compare mine.json yours.json
      faisca bench compare before.json after.json --json
    """
    options = parse(CompareOptions, argv, command="bench compare", help=compare.__doc__)
    if not options.results:
        raise FaiscaError("faisca bench compare needs results: name the JSON files of faisca bench")
    columns = merge(list(options.results))
    if options.json:
        print(json.dumps(columns, indent=2))
    else:
        _print_table(rows(columns), list(columns))
    return 0


def _check(options: BenchOptions) -> None:
    if options.rounds is not None and options.rounds < 1:
        raise FaiscaError(f"--rounds {options.rounds} is out of range: use a number at least 1")
    for case in _listed(options.cases):
        if case not in ALL:
            raise FaiscaError(f"--cases {case!r} is unknown: choose among {', '.join(ALL)}")
    for peer in _listed(options.peers):
        find_baseline(peer, BASELINES)


def _backends(text: str) -> list[str]:
    """The backends that were asked for, or are installed; FaiscaError where one cannot be had."""
    names = [name for name in PACKAGES if missing_package(name) is None] if text == "auto" else _listed(text)
    for name in names:
        if name not in PACKAGES or missing_package(name):
            load_backend(name)  # raises, with the remedy
    if not names:
        raise FaiscaError(f"no backend to measure: {' or '.join(REMEDY.values())}")
    return names


def _listed(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise FaiscaError(f"--json {path} cannot be written ({error.strerror}): name another file") from error


def _print_header(results: Results) -> None:
    machine = results["machine"]
    print(
        f"{machine['processor']}, {machine['cores']} cores, {format_bytes(machine['memory_bytes'])}, "
        f"{machine['system']}; power: {machine['power']}; load before: {machine['load_average']}"
    )
    for name, subject in results["subjects"].items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in subject["computed_with"].items()))
    if prepared := results["data_preparation"]:
        print(
            f"data preparation: {prepared['titles_per_second']:,.0f} titles/s ({prepared['titles']:,} titles), "
            f"with the cache {prepared['second_start_seconds']:.2f} s"
        )


def _print_table(table: list[Row], columns: list[str]) -> None:
    """A line a measure; × says how many times better than the first column, faster or smaller."""
    printed = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    printed.add_column("")
    for name in columns:
        printed.add_column(name, justify="right", no_wrap=True)
    for row in table:
        title = f"{row.title} (tokens/s)" if row.unit == "tokens/s" else row.title
        printed.add_row(title, *(_cell(row, name, columns[0]) for name in columns))
    console = Console()
    console.width = max(console.width, Measurement.get(console, console.options.update_width(1000), printed).maximum)
    console.print(printed)


def _cell(row: Row, column: str, base: str) -> str:
    if column not in row.values:
        return "–"
    spread = f" ±{100 * row.spreads[column]:.0f}%" if column in row.spreads else ""
    ratio = row.ratio(column, base) if column != base and row.unit != "%" else None
    times = f" {ratio:{'.2f' if ratio >= 0.1 else '.3f'}}×" if ratio else ""
    return format_value(row.values[column], row.unit) + spread + times
