"""`faisca bench`: speed and memory of both backends, and of baselines, on the same work and machine.

The machine's speed changes while it is measured, so what is compared is timed in turns: a round
times one case in each process after the other, and the table has medians over the rounds. A
baseline is timed only where it computes the same loss from the same weights.
"""

import errno
import math
import os
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.backend import load_backend
from faisca.backends import BACKENDS
from faisca.bench.chart import draw_chart, draw_sustained
from faisca.bench.machine import machine_line
from faisca.bench.measure import ALL, run_benchmark
from faisca.bench.power import power_words
from faisca.bench.results import Results, merge, read_comparable, rows, short_names, work_line
from faisca.bench.sustained import sustained_line
from faisca.bench.table import markdown_table, print_table
from faisca.bench.work import LONG_PROMPT, make_work
from faisca.bench.worker import BASELINES, find_baseline
from faisca.commands.parse import parse, print_json
from faisca.config.sections import DeviceName
from faisca.errors import FaiscaError
from faisca.porting.libraries import missing_package
from faisca.system.files import write_named
from faisca.system.tables import PlainConsole
from faisca.text import explained, json_text

COMPUTED_WITH = ("device", "gpu", "dtype", "compile", "torch", "mlx", "blas", "tf32")
"""what `compare` says of a backend, where it has it"""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `faisca bench`."""

    backends: str = "auto"
    """torch, mlx, or torch,mlx; auto takes those that are installed"""
    peers: str = ""
    """baselines to time beside them, as in reference,transformers: benchmarks/baselines of a checkout has them"""
    preset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: spark)")] = None
    """whose sizes to measure"""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """a TOML file with other sizes, laid on the preset: benchmarks/smollm2.toml of a checkout has SmolLM2-135M's; its
    section run says how to compute, unless an option does"""
    quick: FlagCreatePairsOff[bool] = False
    """smaller batches and fewer rounds: a minute or so for spark on two idle cores, several on busy ones"""
    rounds: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 5, with --quick 3)")] = None
    """times that each case is timed"""
    sustained: Annotated[float, arg(metavar="SECONDS", help_behavior_hint="(default: not at all)")] = 0.0
    """after the rounds, train for so long: tokens/s over time, which heat lowers, and energy where it can be read"""
    cases: str = ""
    """measure only these, as in pretrain,rollout; empty takes all"""
    device: DeviceName = "auto"
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
    markdown: FlagCreatePairsOff[bool] = False
    """print the table as Markdown, to paste into an issue"""


def bench(argv: list[str]) -> int:
    """Measure speed and memory of both backends on this machine: training, sampling,
    GRPO and data preparation, in turns, medians over rounds. Pre-training and SFT
    steps are alike, so they are timed once. Results go to a JSON file and a chart.

    examples:
      faisca bench --quick
      faisca bench --preset faisca --json mine.json
      faisca bench --sustained 300 --cases pretrain
      faisca bench --peers reference,transformers --cases pretrain,rollout
      faisca bench --config benchmarks/smollm2.toml --peers transformers,mlx_lm \\
        --cases generate_1,generate_16,prefill,pretrain,fresh
      faisca bench compare mine.json yours.json
    """
    if argv[:1] == ["compare"]:
        return compare(argv[1:])
    options = parse(BenchOptions, argv, command="bench", help=bench.__doc__)
    _check(options)
    work = make_work(options.preset, quick=options.quick, file=options.config)
    if "prefill" in _listed(options.cases) and not work.has_prefill:
        raise FaiscaError(
            f"--cases prefill reads {LONG_PROMPT} tokens, and the context is {work.model.context}: measure a larger "
            "model, as with --config benchmarks/smollm2.toml"
        )
    path = options.json or Path(f"bench-{datetime.now():%Y%m%d-%H%M%S}.json")
    _check_writable(path)  # before minutes of measuring
    names = [*_backends(options.backends), *_listed(options.peers)]
    asked: dict[str, Any] = {"device": options.device, "dtype": options.dtype, "compile": options.compile}
    run = replace(work.config.run, **{name: value for name, value in asked.items() if value != "auto"})
    rounds = options.rounds or (3 if options.quick else 5)
    results = run_benchmark(work, names, run, rounds, _listed(options.cases) or ALL, options.sustained)
    write_named("--json", path, (json_text(explained(results), indent=2) + "\n").encode())
    subjects = results["subjects"].items()
    columns = {name: subject["measured"] for name, subject in subjects}
    table = rows(columns)
    console = PlainConsole()
    _print_header(results, console)
    print_table(table, list(columns), console)
    charts = [draw_chart(results, path.with_suffix(".png"))]
    if options.sustained:
        console.print("\n".join(sustained_line(name, subject["sustained"]) for name, subject in subjects))
        charts.append(draw_sustained(results, path.with_name(f"{path.stem}-sustained.png")))
    print(f"\nresults: {path}, chart: {', '.join(str(chart) for chart in charts if chart)}")
    return 0


def compare(argv: list[str]) -> int:
    """Put results of faisca bench side by side: of machines, versions or settings.

    examples:
      faisca bench compare mine.json yours.json
      faisca bench compare mine.json --markdown    # to paste into an issue
      faisca bench compare before.json after.json --json
    """
    options = parse(CompareOptions, argv, command="bench compare", help=compare.__doc__)
    if not options.results:
        raise FaiscaError("faisca bench compare needs results: name the JSON files of faisca bench")
    if options.json and options.markdown:
        raise FaiscaError("--json does not go with --markdown: choose one of them")
    paths = list(options.results)
    names, found = short_names(paths), read_comparable(paths)
    if options.json:
        print_json(merge(names, found))
        return 0
    legend, measured = _legend(paths, found), merge(_letters(len(paths)), found)
    backends = list(dict.fromkeys(name.partition(" ")[2] for name in measured))
    columns = sorted(measured, key=lambda name: backends.index(name.partition(" ")[2]))  # the same side by side
    if options.markdown:
        print("\n".join([f"`faisca bench`, {work_line(found[0])}", "", *(f"- {line}" for line in legend), ""]))
        print(markdown_table(rows(measured), columns))
    else:
        console = PlainConsole()
        console.print("\n".join([work_line(found[0]), *legend, ""]))
        print_table(rows(measured), columns, console)
    return 0


def _check(options: BenchOptions) -> None:
    if options.rounds is not None and options.rounds < 1:
        raise FaiscaError(f"--rounds {options.rounds} is out of range: use a number at least 1")
    if not 0 <= options.sustained < math.inf:
        raise FaiscaError(f"--sustained {options.sustained:g} is out of range: use seconds, as in --sustained 300")
    for case in _listed(options.cases):
        if case not in ALL:
            raise FaiscaError(f"--cases {case!r} is unknown: choose among {', '.join(ALL)}")
    for peer in _listed(options.peers):
        find_baseline(peer, BASELINES)


def _backends(text: str) -> list[str]:
    """The backends that were asked for, or are installed; FaiscaError where one cannot be had."""
    names = [name for name in BACKENDS if missing_package(name) is None] if text == "auto" else _listed(text)
    for name in names:
        if name not in BACKENDS or missing_package(name):
            load_backend(name)  # raises, with the remedy
    if not names:
        raise FaiscaError(f"no backend to measure: {' or '.join(row.remedy for row in BACKENDS.values())}")
    return names


def _listed(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _check_writable(path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise FaiscaError(f"--json {path} cannot be written ({error.strerror}): name another file") from error


def _print_header(results: Results, console: PlainConsole) -> None:
    machine = results["machine"]
    lines = [f"{machine_line(machine)}; power: {power_words(machine)}; load before: {machine['load_average']}"]
    for name, subject in results["subjects"].items():
        lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in subject["computed_with"].items()))
    if prepared := results["data_preparation"]:
        lines.append(
            f"data preparation: {prepared['titles_per_second']:,.0f} titles/s ({prepared['titles']:,} titles), "
            f"with the cache {prepared['second_start_seconds']:.2f} s"
        )
    console.print("\n".join(lines))


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + i) for i in range(count)]


def _legend(paths: list[Path], found: list[Results]) -> list[str]:
    """What each letter stands for: file, machine, and what each backend computed with."""
    lines = []
    for letter, path, results in zip(_letters(len(paths)), paths, found, strict=True):
        machine = results["machine"]
        lines.append(f"{letter} = {path}: {machine_line(machine)}; {machine['date'][:10]}")
        for name, subject in results["subjects"].items():
            said = {key: value for key, value in subject["computed_with"].items() if key in COMPUTED_WITH}
            lines.append(f"{letter} {name}: " + ", ".join(f"{key} {value}" for key, value in said.items()))
    return lines
