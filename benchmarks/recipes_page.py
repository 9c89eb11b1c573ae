"""Writes the tables of `docs/recipes.md` from the results in `benchmarks/recipes/` and the law in `faisca/planning/`.

    python benchmarks/recipes_page.py [--adopt OUT]

`--adopt OUT` first takes the results of a finished study from its folder: recipes.py's, ablations.py's or
scaling_law.py's, whichever it is. A part that nobody has measured says so.
"""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import ablations
from recipes_report import draw, read_runs, table
from recipes_trainees import RECIPES

from faisca.bench.machine import machine_line
from faisca.cli import exit_status
from faisca.errors import FaiscaError
from faisca.planning.law import STORED

ROOT = Path(__file__).parent.parent
PAGE, IMAGES = ROOT / "docs" / "recipes.md", ROOT / "docs" / "images"
WIDEST = 138
"""characters of a line of the page"""
QUALITIES = (2.2, 2.06, 1.9)
UNMEASURED = "Not measured yet.\n"


def recipes_part(results: Path, image: str) -> str:
    """The table of a comparison, where it was measured, and its chart."""
    runs = read_runs(results)
    return f"{_where(runs)}\n\n{table(runs, QUALITIES)}\n![Bits per byte by what was spent](images/{image})\n"


def ablations_part(results: Path) -> str:
    """Every change with its verdict, and where it was measured."""
    runs = read_runs(results)
    (base,) = {run["recipe"] for run in runs if not run["configuration"]["changes"]}
    return f"{_where(runs)}\n\n{ablations.table(runs, base)}"


def law_part(results: Path) -> str:
    """The law's constants with the range of the bootstrap's."""
    law = json.loads(results.read_text(encoding="utf-8"))
    lines = ["| constant | fit | 95 % of the bootstrap |", "| --- | ---: | ---: |"]
    for place, name in enumerate(("E", "A", "a", "B", "b")):
        found = sorted(fit[place] for fit in law["bootstrap"])
        low, high = found[len(found) // 40], found[-1 - len(found) // 40]
        lines.append(f"| {name} | {law['constants'][place]:.4g} | {low:.3g} to {high:.3g} |")
    count, error = len(law["points"]), law["largest_error"]
    chart = "![Bits per byte by tokens, a line a size](images/scaling_law.png)"
    text = f"`{law['law']}`, recipe {law['recipe']}, {count} runs, none further than {error:.1%} from the law."
    return "\n".join([text, "", *lines, "", chart, ""])


PARTS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "time": ("time.jsonl", lambda path: recipes_part(path, "recipes-time.png")),
    "flops": ("flops.jsonl", lambda path: recipes_part(path, "recipes-flops.png")),
    "ablations": ("ablations.jsonl", ablations_part),
    "law": (str(STORED), law_part),
}
"""parts of the page by the name in their marks: the file of results, and what makes text of it"""


def page(text: str, folder: Path = RECIPES) -> str:
    """The page with its parts as the results are now."""
    for name, (file, words) in PARTS.items():
        begin, end = marks(name)
        before, found, rest = text.partition(begin)
        if not found or end not in rest:
            raise FaiscaError(f"docs/recipes.md has no part {name}: put {begin} and {end} where its table belongs")
        part = words(folder / file) if (folder / file).exists() else UNMEASURED
        text = f"{before}{begin}\n\n{part}\n{end}{rest.partition(end)[2]}"
    return text


def marks(name: str) -> tuple[str, str]:
    """Between which a part stands."""
    return f"<!-- {name}: `python benchmarks/recipes_page.py` writes this -->", f"<!-- end of {name} -->"


def adopt(out: Path) -> None:
    """Take a study's results, and its chart."""
    if (out / "scaling_law.json").exists():
        shutil.copy(out / "scaling_law.json", STORED)
        shutil.copy(out / "scaling_law.png", IMAGES / "scaling_law.png")
        return
    runs = read_runs(out / "results.jsonl")
    if not runs:
        raise FaiscaError(f"{out} has no finished runs: name the folder of a study")
    if (out / "ablations.md").exists():
        shutil.copy(out / "results.jsonl", RECIPES / "ablations.jsonl")
        return
    name = "flops" if runs[0]["budget"]["kind"] == "flops" else "time"
    table(runs, QUALITIES)  # refuses runs that cannot be compared
    shutil.copy(out / "results.jsonl", RECIPES / f"{name}.jsonl")
    draw(runs, IMAGES / f"recipes-{name}.png")


def _where(runs: list[dict]) -> str:
    """Machine, budget and titles of a study."""
    (budget, *_), facts = [run["budget"] for run in runs], runs[0]["facts"]
    machines = sorted({machine_line(run["machine"]) for run in runs})
    amount = (
        f"{budget['amount']:,.0f} seconds"
        if budget["kind"] == "seconds"
        else f"{budget['amount']:.3g} {budget['kind']}"
    )
    words = f"{amount} of training each, on {' and '.join(machines)}; {facts['data']}."
    return textwrap.fill(words, WIDEST, break_long_words=False, break_on_hyphens=False)


def main(argv: list[str]) -> int:
    """Take results where asked, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adopt", type=Path, metavar="OUT")
    options = parser.parse_args(argv)
    if options.adopt:
        adopt(options.adopt)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
