"""`faisca report`: runs as one page for a browser."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.commands.parse import parse, print_json
from faisca.errors import FaiscaError
from faisca.runs.checkpoint import warn


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `faisca report`."""

    runs: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="RUN [RUN …]", help="run folders; several are drawn together", help_behavior_hint=""),
    ] = ()
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: report.html in the first run)")] = (
        None
    )
    """the file to write"""
    no_probabilities: FlagCreatePairsOff[bool] = False
    """leave out how probable the headlines' tokens are: it loads each stage's model, on the backend that trained it"""
    json: FlagCreatePairsOff[bool] = False
    """print what was written as JSON"""


def report(argv: list[str]) -> int:
    """Write what runs recorded as one page for a browser: measures, curves, headlines
    over time and their tokens by probability, time and memory, certificates, machines
    and options. The file needs no network; several runs are drawn over each other.

    examples:
      faisca report runs/spark
      faisca report runs/torch runs/mlx --out twins.html
    """
    options = parse(ReportOptions, argv, command="report", help=report.__doc__)
    if not options.runs:
        raise FaiscaError("no run is named: name its folder, as in faisca report runs/spark")
    from faisca.report.write import write_report

    path, runs = write_report(options.runs, options.out, warn, 0.0 if options.no_probabilities else math.inf)
    size = path.stat().st_size
    if options.json:
        print_json({"report": str(path), "bytes": size, "runs": [str(run.folder) for run in runs]})
    else:
        print(f"{path}: {len(runs)} run{'s' * (len(runs) > 1)}, {size / 1000:.0f} kB; open it in a browser")
    return 0
