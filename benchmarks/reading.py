"""How much there is to read: `python benchmarks/reading.py [--json | --map]`, from the source alone.

It prints modules in each folder, lengths and parameters of functions, the files that explain
pre-training and GRPO on one backend, and all source lines, beside the goals. The exit status is 1
where a goal is missed. With `--map` it prints the rooms of the repository, for docs/ARCHITECTURE.md.
"""

import ast
import json
import statistics
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("faisca", "faisca_torch", "faisca_mlx")
LESSONS = ("lessons",)
READING = {
    "pre-training": """
        faisca/training/stages.py faisca/training/setup.py faisca/training/train.py faisca/training/stage.py
        faisca/training/schedule.py faisca/training/evaluate.py faisca/data/windows.py faisca/parameters.py
        faisca/streams.py faisca/backend.py
        {twin}/model.py {twin}/losses.py {twin}/optimizer.py {twin}/train.py
    """,
    "GRPO": """
        faisca/training/setup.py faisca/training/grpo.py faisca/training/grpo_update.py faisca/training/generate.py
        faisca/rewards/advantages.py
        faisca/training/schedule.py faisca/streams.py faisca/backend.py
        {twin}/model.py {twin}/losses.py {twin}/optimizer.py {twin}/log_probs.py {twin}/generate.py {twin}/grpo.py
    """,
}
"""what someone reads who wants to understand a stage: its loop, its step, and what decides a number between them"""
AROUND = {
    "pre-training": """
        faisca/config/sections.py faisca/config/optimizer.py faisca/data/headlines.py faisca/data/tokenizer.py
        faisca/training/run.py faisca/training/generate.py faisca/runs/state.py {twin}/device.py {twin}/sums.py
    """,
    "GRPO": """
        faisca/config/sections.py faisca/config/optimizer.py faisca/training/run.py faisca/training/stage.py
        faisca/training/evaluate.py faisca/runs/state.py {twin}/device.py {twin}/sums.py
    """,
}
"""what stands around that: options, titles and tokens, how a run is opened, noted, measured and saved, and helpers"""
GOALS = {"pre-training": (15, 1800), "GRPO": (13, 1600)}
"""files and lines of each at most"""
MOST_MODULES, MOST_PARAMETERS = 14, 6


@dataclass(frozen=True)
class Function:
    """A function or method: where it is, how long, and its parameters besides `self`, `cls` and autograd's `ctx`."""

    path: str
    name: str
    lines: int
    parameters: int


@dataclass(frozen=True)
class Goal:
    """A number, beside the most that it should be."""

    title: str
    value: int
    most: int

    @property
    def met(self) -> bool:
        return self.value <= self.most


def modules(folders: tuple[str, ...], root: Path = ROOT) -> list[Path]:
    """All Python files, sorted; relative to the root."""
    return sorted(path.relative_to(root) for folder in folders for path in (root / folder).rglob("*.py"))


def lines(path: Path | str, root: Path = ROOT) -> int:
    """Lines of a file, blank ones included."""
    return len((root / path).read_text(encoding="utf-8").splitlines())


def functions(path: Path | str, root: Path = ROOT) -> list[Function]:
    """All functions of a file, methods and inner ones too."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [Function(str(path), node.name, node.end_lineno - node.lineno + 1, _parameters(node)) for node in found]


def reading(names: str, twin: str) -> dict[str, int]:
    """Lines by file, of a value of READING or AROUND; an error where a file has moved and these have not."""
    paths = names.format(twin=twin).split()
    absent = [path for path in paths if not (ROOT / path).is_file()]
    if absent:
        sys.exit(f"{', '.join(absent)}: no such file; adapt READING or AROUND in {Path(__file__).name}")
    return {path: lines(path) for path in paths}


def measure() -> dict:
    """Everything that is printed, and the goals."""
    ours = modules(PACKAGES)
    folders = Counter(str(path.parent) for path in ours if not path.name.startswith("__"))
    known = [function for path in ours for function in functions(path)]
    lengths = sorted((function.lines for function in known), reverse=True)
    paths, around = (
        {stage: {twin: reading(names, twin) for twin in PACKAGES[1:]} for stage, names in lists.items()}
        for lists in (READING, AROUND)
    )
    lesson = {path for twins in paths.values() for found in twins.values() for path in found}
    lesson |= {str(path) for path in modules(LESSONS)}
    wide = [f for path in [*ours, *modules(LESSONS)] for f in functions(path) if f.parameters > MOST_PARAMETERS]
    goals = [Goal("modules in the fullest folder", max(folders.values()), MOST_MODULES)]
    for stage, (most_files, most_lines) in GOALS.items():
        counts = [(len(found), sum(found.values())) for found in paths[stage].values()]
        goals.append(Goal(f"files of {stage}", max(files for files, _ in counts), most_files))
        goals.append(Goal(f"lines of {stage}", max(total for _, total in counts), most_lines))
    title = f"functions with more than {MOST_PARAMETERS} parameters, in these files and the lessons"
    goals.append(Goal(title, sum(function.path in lesson for function in wide), 0))
    return {
        "modules": dict(folders),
        "functions": {
            "count": len(known),
            "median": statistics.median(lengths),
            "p90": lengths[len(lengths) // 10],
            "longest": asdict(max(known, key=lambda function: function.lines)),
            "wide": [asdict(function) | {"in_lesson": function.path in lesson} for function in wide],
        },
        "reading": {stage: {twin: _count(found) for twin, found in twins.items()} for stage, twins in paths.items()},
        "around": {stage: {twin: _count(found) for twin, found in twins.items()} for stage, twins in around.items()},
        "source_lines": {folder: sum(map(lines, modules((folder,)))) for folder in (*PACKAGES, *LESSONS)},
        "goals": [asdict(goal) | {"met": goal.met} for goal in goals],
    }


def show(found: dict) -> None:
    """The same for people."""
    print("modules in each folder")
    for folder, count in sorted(found["modules"].items(), key=lambda item: (-item[1], item[0])):
        print(f"  {count:3}  {folder}")
    known = found["functions"]
    longest = known["longest"]
    print(f"functions: {known['count']}, lines: median {known['median']:g}, 90 % at most {known['p90']}")
    print(f"  longest {longest['lines']}: {longest['name']} in {longest['path']}")
    print(f"  with more than {MOST_PARAMETERS} parameters (* in what a learner reads)")
    for wide in known["wide"]:
        print(f"   {'*' if wide['in_lesson'] else ' '}{wide['parameters']:3}  {wide['name']} in {wide['path']}")
    for stage in READING:
        for title, key in ((f"to understand {stage}", "reading"), ("  and what stands around it", "around")):
            counts = found[key][stage].items()
            print(f"{title}: " + ", ".join(f"{twin} {n['files']} files, {n['lines']:,} lines" for twin, n in counts))
    each = found["source_lines"]
    print(f"source lines: {sum(each[folder] for folder in PACKAGES):,} in all, the lessons aside")
    print("  " + ", ".join(f"{folder} {count:,}" for folder, count in each.items()))
    print("goals")
    for goal in found["goals"]:
        print(f"  {'met' if goal['met'] else 'MISSED':7} {goal['title']}: {goal['value']:,} (at most {goal['most']:,})")


def show_map() -> None:
    """The rooms of the repository as a Markdown table: what each README calls its room, and the lines of its code."""
    rooms = [path.parent.relative_to(ROOT) for path in sorted((ROOT / "faisca").glob("*/README.md"))]
    rooms += [Path(name) for name in (*PACKAGES[1:], *LESSONS)]
    print("| folder | lines | what |\n| --- | ---: | --- |")
    for room in rooms:
        title = (ROOT / room / "README.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"| `{room}/` | {sum(map(lines, modules((str(room),)))):,} | {title} |")


def _count(found: dict[str, int]) -> dict[str, int]:
    return {"files": len(found), "lines": sum(found.values())}


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    rest = [argument for argument in (given.vararg, given.kwarg) if argument is not None]
    return len([name for name in names if name not in ("self", "cls", "ctx")]) + len(rest)


def main(argv: list[str]) -> int:
    """Print the table, or JSON, and 1 where a goal is missed; or the map of the repository."""
    if argv == ["--map"]:
        show_map()
        return 0
    if argv not in ([], ["--json"]):
        sys.exit("usage: python benchmarks/reading.py [--json | --map]")
    found = measure()
    print(json.dumps(found, indent=2)) if argv else show(found)
    return 0 if all(goal["met"] for goal in found["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
