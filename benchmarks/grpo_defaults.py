"""What GRPO's options change on real headlines: `python benchmarks/grpo_defaults.py OUT --data HEADLINES`, where OUT

is the folder of `grpo_study.py`, whose base model each row starts from: 30 steps of 24 completions towards football,
torch, three seeds, the preset `modern` but for the option that a row names. The table (defaults.md) has differences
from the preset's own options on the same seeds, with a 95 % interval. Runs that are there stay. About 25 minutes on
two idle cores.
"""

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from grpo_study import BACKENDS, SEEDS, from_base, records
from recipes_report import estimate

LAST = 5
"""steps at the end whose means count"""
ROWS = {
    "as the preset has it": "",
    "loss dapo": "--grpo.loss dapo",
    "loss dr_grpo, rewards not scaled": "--grpo.loss dr_grpo --grpo.scale-rewards none",
    "RLOO": "--grpo.baseline leave_one_out --grpo.scale-rewards none --grpo.objective reinforce",
    "clip_high 0.28": "--grpo.clip-high 0.28",
    "CISPO": "--grpo.objective cispo",
    "SAPO": "--grpo.objective sapo",
    "GMPO, clipped at 0.4": "--grpo.objective gmpo --grpo.clip-low 0.4 --grpo.clip-high 0.4",
    "one ratio a sequence": "--grpo.importance sequence",
    "KL weight 0.3": "--grpo.kl-weight 0.3",
    "KL with its bias corrected": "--grpo.kl-bias-correction",
    "entropy 0.01": "--grpo.entropy-weight 0.01",
}
MEASURES = {"football_share": "football", "distinct_share": "distinct", "kl": "KL, nats", "entropy": "entropy, nats"}


def train(out: Path, headlines: Path, name: str, seed: int) -> Path:
    """The run of a row and a seed, unless it is there."""
    run = out / "defaults" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    common = "--sft.max-validation-titles 200 --grpo.steps 30 --sample.counted 24".split()
    return from_base(out, headlines, run, *common, "--seed", str(seed), *ROWS[name].split())


def ends(run: Path) -> dict[str, float]:
    """Means of the last steps."""
    last = records(run)[-LAST:]
    return {measure: statistics.fmean(step[measure] for step in last) for measure in MEASURES}


def lines(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """The table: the preset's means, and the others' differences from it, seed by seed."""
    head = ["| options | " + " | ".join(MEASURES.values()) + " |", "|---|" + "---:|" * len(MEASURES)]
    base, rows = next(iter(found.values())), []
    for name, ended_with in found.items():
        cells = []
        for measure in MEASURES:
            own = [one[measure] for one in ended_with]
            change = own if ended_with is base else [a - b[measure] for a, b in zip(own, base, strict=True)]
            words = estimate(change).words(2)
            cells.append(words if ended_with is base or words.startswith("-") else f"+{words}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return head + rows


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(ROWS), help="rows to train; all where none is named")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    names = list(dict.fromkeys([next(iter(ROWS)), *options.names]))
    with ThreadPoolExecutor(len(BACKENDS)) as lanes:  # as many at a time as the study has, each with its share of cores
        work = {name: [lanes.submit(train, options.out, options.data, name, seed) for seed in SEEDS] for name in names}
        found = {name: [ends(run.result()) for run in runs] for name, runs in work.items()}
    (options.out / "defaults.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "defaults.md").write_text("\n".join(lines(found)) + "\n", encoding="utf-8")
    print((options.out / "defaults.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
