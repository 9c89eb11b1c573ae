"""Writes `benchmarks/RESULTS.md` from the files in `benchmarks/results/`: `python benchmarks/results_table.py`.

A file that does not fit `faisca/bench/schema.json` is refused in one line, with the field that does not.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from faisca.backends import BACKENDS
from faisca.bench.power import power_words
from faisca.bench.results import TITLES, Results, format_value, read_results, work_line
from faisca.cli import exit_status
from faisca.text import format_bytes

FOLDER = Path(__file__).parent
MEASURES = ("pretrain", "sustained", "energy", "rollout", "generate_1", "peak_resident", "peak_device")
HEAD = """# Results of `faisca bench`, by machine

`python benchmarks/results_table.py` writes this file from `benchmarks/results/`.
[docs/benchmarks.md](../docs/benchmarks.md#add-your-machine) says how to add a machine, and what each measure is.
Speeds are tokens/s, medians over the rounds, and comparable within a section only; – was not measured.
"""


def write_table(folder: Path) -> str:
    """The whole document, a section for each work and a row for each file's backends, the fastest first."""
    sections: dict[str, list[tuple[float, list[str]]]] = defaultdict(list)
    works: dict[str, Results] = {}
    for path in sorted(folder.glob("*.json")):
        results = read_results(path)
        work = json.dumps(results["work"], sort_keys=True)
        works.setdefault(work, results)
        for name, subject in results["subjects"].items():
            if name in BACKENDS:
                sections[work].append((_speed(subject), _row(path, results, name)))
    text = HEAD
    for work in sorted(sections, key=lambda work: work_line(works[work])):
        titles = ["machine", "backend", *(TITLES[key][0] for key in MEASURES), "power", "date", "file"]
        rows = [cells for _, cells in sorted(sections[work], key=lambda found: -found[0])]
        lines = [titles, ["---", "---", *["---:"] * len(MEASURES), "---", "---", "---"], *rows]
        text += f"\n## {work_line(works[work])}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return text


def _speed(subject: dict[str, Any]) -> float:
    return float((subject["measured"].get("pretrain") or {}).get("median") or 0)


def _row(path: Path, results: Results, name: str) -> list[str]:
    machine, subject = results["machine"], results["subjects"][name]
    return [
        _machine(machine),
        _backend(name, subject["computed_with"]),
        *(_cell(subject, key) for key in MEASURES),
        power_words(machine),
        machine["date"][:10],
        f"[{path.stem}](results/{path.name})",
    ]


def _machine(machine: dict[str, Any]) -> str:
    gpu = f", {machine['gpu_cores']} GPU cores" if machine.get("gpu_cores") else ""
    return f"{machine['processor']}, {machine['cores']} cores{gpu}, {format_bytes(machine['memory_bytes'])}"


def _backend(name: str, chosen: dict[str, Any]) -> str:
    words = [f"{name} {chosen.get(name, '')}".strip(), chosen.get("gpu") or chosen["device"], chosen["dtype"]]
    return ", ".join(words + ([f"TF32 {chosen['tf32'].partition(' ')[0]}"] if "tf32" in chosen else []))


def _cell(subject: dict[str, Any], key: str) -> str:
    median = (subject["measured"].get(key) or {}).get("median")
    if median is None:
        return "–"
    drop = f" (drop {subject['sustained']['drop_percent']:.0f} %)" if key == "sustained" else ""
    return format_value(median, TITLES[key][1]) + drop


def main() -> int:
    """Write the document."""
    target = FOLDER / "RESULTS.md"
    target.write_text(write_table(FOLDER / "results"), encoding="utf-8")
    print(f"written: {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
