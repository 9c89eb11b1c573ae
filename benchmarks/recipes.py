"""Recipes against one another: bits per byte of unseen headlines by time, tokens and FLOPs.

    python benchmarks/recipes.py OUT --data HEADLINES --recipes spark,nanogpt --seconds 600 --seeds 1,2,3

HEADLINES is a file or folder, as for `faisca run --data` (`sample`: the embedded ones). Each recipe with each seed is
a process of its own. All of a seed take turns, so that they share the machine's noise, and a clock counts what each
has trained itself: steps and their batches, not evaluation, tokenising, or waiting. OUT/results.jsonl gets a line a
run when it has finished: called again, only what is missing is trained, so an interrupted study goes on, and further
recipes or seeds are added. OUT/table.md and OUT/recipes.png are made of it. docs/recipes.md says how to read them.
"""

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from recipes_report import draw, read_runs, table
from recipes_trainees import RECIPES, Recipe
from recipes_worker import Budget, Spec, Worker
from tyro.conf import Positional, arg

from faisca.bench.machine import describe_machine
from faisca.cli import exit_status
from faisca.commands.parse import parse
from faisca.config.files import config_from_dict
from faisca.errors import FaiscaError
from faisca.system.progress_bar import track
from faisca.system.tables import PlainConsole
from faisca.text import clock


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of every study."""

    out: Positional[Path]
    """folder of the study"""
    data: str
    """headlines: a file, a folder, or sample"""
    seeds: str = "1,2,3"
    """one run of each recipe for each seed"""
    seconds: Annotated[float | None, arg(metavar="N", help_behavior_hint="")] = None
    """budget of each run: seconds of training"""
    flops: Annotated[float | None, arg(metavar="N", help_behavior_hint="")] = None
    """or operations of its matrix products"""
    tokens: Annotated[float | None, arg(metavar="N", help_behavior_hint="")] = None
    """or tokens"""
    slices: int = 30
    """turns in which a run gets its budget"""
    evaluations: int = 13
    """measurements of a run on all validation titles, the last at its end"""
    at_once: int = 8
    """processes that take turns, and have their memory, at the same time"""

    @property
    def budget(self) -> Budget:
        """The one that is given."""
        given = {
            kind: getattr(self, kind) for kind in ("seconds", "flops", "tokens") if getattr(self, kind) is not None
        }
        if len(given) != 1:
            raise FaiscaError("a study has one budget: give --seconds, --flops or --tokens")
        return Budget(*given.popitem())

    @property
    def numbers(self) -> list[int]:
        """The seeds."""
        if not all(part.strip().isdigit() for part in self.seeds.split(",")):
            raise FaiscaError(f"--seeds {self.seeds} are no whole numbers: write them as in 1,2,3")
        return [int(part) for part in self.seeds.split(",")]


@dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Options of the comparison."""

    recipes: str = "spark,faisca,modern,nanogpt,nanochat,minimind"
    """names of benchmarks/recipes/NAME.toml, or TOML files of your own"""
    backends: str = "torch"
    """torch, mlx, or torch,mlx: what trains our recipes; peers are torch's"""
    qualities: str = "2.2,2.06,1.9"
    """bits per byte, whose time the table has"""


def study(options: StudyOptions, recipes: list[Recipe]) -> list[dict[str, Any]]:
    """Train what is missing, and return all runs of these recipes, seeds and budget."""
    if min(options.slices, options.evaluations, options.at_once) < 1:
        raise FaiscaError("--slices, --evaluations and --at-once are at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.jsonl"
    known = {run["key"]: run for run in read_runs(path)}
    specs = [spec_of(recipe, seed, options) for seed in options.numbers for recipe in recipes]
    wanted = {key(spec): spec for spec in specs}
    refuse_changes(known.values(), wanted)
    missing = deque(spec for name, spec in wanted.items() if name not in known)
    for run in take_turns(missing, options, len(wanted)):
        known[run["key"]] = run
        append(path, run)
    return [known[name] for name in wanted]


def spec_of(recipe: Recipe, seed: int, options: StudyOptions) -> Spec:
    """What one process trains."""
    log = options.out / "logs" / f"{_slug(recipe.name)}-{seed}.txt"
    return Spec(recipe, seed, options.data, options.budget, options.evaluations, log)


def take_turns(missing: deque[Spec], options: StudyOptions, total: int) -> Iterator[dict[str, Any]]:
    """Train these, so many at once, a slice of the budget each in turn; yields each run when it has finished."""
    machine, alive = describe_machine(), list[Worker]()
    turns = options.slices * (total - len(missing))
    with track(PlainConsole(stderr=True), "turns", options.slices * total) as tracker, closing_all(alive):
        while missing or alive:
            while missing and len(alive) < options.at_once:
                alive.append(Worker(missing.popleft()))
            for worker in list(alive):
                worker.turn((worker.turns + 1) / options.slices)
                turns += 1
                tracker.update(turns, now=worker.progress)
                if worker.result is not None:
                    turns += options.slices - worker.turns
                    yield described(worker.spec) | {"machine": machine} | worker.result
                    worker.close()
                    alive.remove(worker)


@contextmanager
def closing_all(workers: list[Worker]) -> Iterator[None]:
    """End the processes that are left, whatever happens."""
    try:
        yield
    finally:
        for worker in workers:
            worker.close()


def described(spec: Spec) -> dict[str, Any]:
    """What a line of the results says of how a run came about."""
    recipe = spec.recipe
    what = recipe.described("sample") | {"changes": recipe.changes}  # no path of anybody's computer
    return {
        "key": key(spec),
        "recipe": recipe.name,
        "backend": recipe.backend,
        "peer": bool(recipe.peer),
        "seed": spec.seed,
        "budget": asdict(spec.budget),
        "configuration": what,
    }


def key(spec: Spec) -> str:
    """The name of a run in the results."""
    return f"{spec.recipe.name}/{spec.recipe.backend}/{spec.seed}/{spec.budget.amount:g} {spec.budget.kind}"


def refuse_changes(known: Iterable[dict[str, Any]], wanted: dict[str, Spec]) -> None:
    """FaiscaError where a recipe that has results is another one by now."""
    for run in known:
        if run["key"] in wanted and not same_recipe(run, described(wanted[run["key"]])):
            raise FaiscaError(
                f"recipe {run['recipe']} has changed since {run['key']} was trained: name another folder, or the "
                "recipe's copy under another name"
            )


def same_recipe(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two runs have equal recipes: options that came since are at their defaults."""
    known = [json.loads(json.dumps(run["configuration"])) for run in (then, now)]  # lists in place of tuples
    if then["peer"] or now["peer"] or known[0].pop("changes") != known[1].pop("changes"):
        return known[0] == known[1]
    return config_from_dict(known[0]) == config_from_dict(known[1])


def append(path: Path, run: dict[str, Any]) -> None:
    """Add a line, at once on the disk."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(run, ensure_ascii=False) + "\n")
        file.flush()


def find_recipe(name: str, backend: str) -> Recipe:
    """A recipe by its name or file; of ours, the name has the backend where it is not torch."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    recipe = Recipe(path.stem, path)
    return (
        recipe
        if recipe.peer or backend == "torch"
        else replace(recipe, name=f"{path.stem} ({backend})", backend=backend)
    )


def chosen(options: Options) -> list[Recipe]:
    """Every recipe once, ours with each backend."""
    found = [
        find_recipe(name, backend) for name in options.recipes.split(",") for backend in options.backends.split(",")
    ]
    return list({recipe.name: recipe for recipe in found}.values())


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def main(argv: list[str]) -> int:
    """Train, and write the table and the chart."""
    options = parse(Options, argv, command="python benchmarks/recipes.py", help=__doc__)
    recipes = chosen(options)
    for recipe in recipes:
        recipe.described(options.data)  # refuses what is wrong in one of them before any is trained
    count = len(recipes) * len(options.numbers)
    if options.budget.kind == "seconds":
        spent = clock(count * options.budget.amount)
        print(
            f"{count} runs: {spent} of training, and evaluations; what {options.out} has already is not trained again"
        )
    runs = study(options, recipes)
    qualities = [float(part) for part in options.qualities.split(",")]
    text = table(runs, qualities)
    (options.out / "table.md").write_text(text, encoding="utf-8", newline="\n")
    draw(runs, options.out / "recipes.png")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
