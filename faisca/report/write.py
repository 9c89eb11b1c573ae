"""Writing a report: of runs that are named, or of a run that has just come to its end."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from faisca.bench.machine import describe_machine
from faisca.report.page import render
from faisca.report.recorded import MACHINE, Recorded, read_runs
from faisca.report.tokens import score_stages
from faisca.runs.state import IMPORTED
from faisca.system.files import write_atomically, write_named
from faisca.system.output import LastingOutput
from faisca.system.tables import PlainConsole
from faisca.text import in_one_line, json_text

REPORT = "report.html"
LARGEST = 2e9
"""bytes of a checkpoint that a run loads once more at its end, where little memory may be left"""


def write_report(
    folders: Sequence[Path], out: Path | None, say: Callable[[str], None], largest: float = math.inf
) -> tuple[Path, list[Recorded]]:
    """Write the report of runs, beside the first one's record unless `out` says where; returns its path and the runs.

    Checkpoints of up to `largest` bytes score their headlines; with 0 none is asked. `say` is told what was
    left out. FaiscaError for a folder that is no run's, or where nothing can be written.
    """
    runs = read_runs(folders)
    scored = [score_stages(run, largest) if largest and run.backend != IMPORTED else None for run in runs]
    for run, stages in zip(runs, scored, strict=True):
        for stage in stages or []:
            if stage.left_out:
                say(f"{run.name}: token probabilities after {stage.title} are left out: {stage.left_out}")
    path = out or folders[0] / REPORT
    page = render(runs, scored, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    write_named("--out" if out else "report", path, page.encode())
    return path, runs


def report_after_run(folder: Path) -> None:
    """Write what a finished run's folder lacks: where it was trained, and its report. It says so in a line.

    Whatever goes wrong here, the run is done: what failed is said, and nothing is raised.
    """
    console = PlainConsole(file=LastingOutput())
    say = partial(console.print, soft_wrap=True)
    try:
        write_atomically(folder / MACHINE, (json_text(describe_machine(), indent=2) + "\n").encode())
        path, _ = write_report([folder], None, say, LARGEST)
    except Exception as error:
        say(f"the run is done, but its report is not: {in_one_line(error)}")
    else:
        say(f"its report, for a browser: {path}")
