"""One change at a time to a recipe: which pay by more than their noise.

    python benchmarks/ablations.py OUT --data HEADLINES --seconds 600 --seeds 1,2,3

`ablations.toml` names the base recipe and has a row a change, options as on the command line. Each row is trained like
the recipes of `recipes.py`, of which this is another list: the same files, budgets and turns. A row's gain is the
base's bits per byte minus its own, seed by seed; it "keeps" where the 95 % interval of the gain lies above 0, and
otherwise "goes", worse or within the noise. OUT/ablations.md has all of them, the negative ones too.
"""

import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import StudyOptions, find_recipe, study
from recipes_report import Estimate, check_comparable, estimate
from recipes_trainees import Recipe

from faisca.cli import exit_status
from faisca.commands.parse import parse
from faisca.errors import FaiscaError

ROWS = Path(__file__).parent / "ablations.toml"


@dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Options of the ablations."""

    table: Path = ROWS
    """the base and the rows, a TOML file"""
    rows: str = ""
    """only rows whose names contain one of these texts, as in Muon,vocabulary"""
    base: str = ""
    """another base than the file's: a name or a TOML file"""
    backend: str = "torch"
    """torch or mlx"""


@dataclass(frozen=True)
class Verdict:
    """What a change is worth."""

    name: str
    changes: str
    bits_per_byte: Estimate
    gain: Estimate
    """bits per byte fewer than the base, over pairs of equal seeds"""

    @property
    def words(self) -> str:
        """keeps, or goes and why."""
        if self.gain.half is None:
            return "one seed: no verdict"
        if self.gain.low > 0:
            return "keeps"
        return "goes: worse" if self.gain.high < 0 else "goes: within the noise"


def read_rows(options: Options) -> tuple[Recipe, list[Recipe]]:
    """The base, and a recipe for each row that this checkout has the options of; the others are named."""
    values = tomllib.loads(options.table.read_text(encoding="utf-8"))
    base = find_recipe(options.base or values["base"], options.backend)
    asked = [part.strip() for part in options.rows.split(",") if part.strip()]
    recipes = []
    for row in values["row"]:
        if asked and not any(part.lower() in row["name"].lower() for part in asked):
            continue
        recipe = Recipe(row["name"], base.path, row["changes"], options.backend)
        try:
            recipe.described(options.data)
        except FaiscaError as error:
            if asked:
                raise FaiscaError(f"row {row['name']}: {error}") from error
            print(f"left out: {row['name']}: {error}")
            continue
        recipes.append(recipe)
    if not recipes:
        raise FaiscaError(f"no row of {options.table} is left of --rows {options.rows}: name one of its rows")
    return base, recipes


def judge(base: Sequence[dict[str, Any]], changed: Sequence[dict[str, Any]]) -> Verdict:
    """Pair the runs of a row with the base's by their seeds."""
    check_comparable([*base, *changed])
    ends = {run["seed"]: run["curve"][-1]["bits_per_byte"] for run in base}
    gains = [ends[run["seed"]] - run["curve"][-1]["bits_per_byte"] for run in changed]
    bits = estimate([run["curve"][-1]["bits_per_byte"] for run in changed])
    return Verdict(changed[0]["recipe"], changed[0]["configuration"]["changes"], bits, estimate(gains))


def table(runs: Sequence[dict[str, Any]], base: str) -> str:
    """A row a change, the best first, in Markdown."""
    of_base = [run for run in runs if run["recipe"] == base]
    names = dict.fromkeys(run["recipe"] for run in runs if run["recipe"] != base)
    verdicts = [judge(of_base, [run for run in runs if run["recipe"] == name]) for name in names]
    bits = estimate([run["curve"][-1]["bits_per_byte"] for run in of_base])
    lines = ["| change | options | bits per byte | gain | verdict |", "| --- | --- | ---: | ---: | --- |"]
    lines.append(f"| base: {base} | | {bits.words(4)} | | |")
    for verdict in sorted(verdicts, key=lambda verdict: -verdict.gain.mean):
        cells = (
            verdict.name,
            f"`{verdict.changes}`",
            verdict.bits_per_byte.words(4),
            verdict.gain.words(4),
            verdict.words,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Train, and write the table."""
    options = parse(Options, argv, command="python benchmarks/ablations.py", help=__doc__)
    base, rows = read_rows(options)
    runs = study(options, [base, *rows])
    text = table(runs, base.name)
    (options.out / "ablations.md").write_text(text, encoding="utf-8", newline="\n")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
