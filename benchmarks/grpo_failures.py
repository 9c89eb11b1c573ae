"""What goes wrong in GRPO, and the guard: `python benchmarks/grpo_failures.py OUT --data HEADLINES`, where

OUT is the folder of `grpo_study.py`, whose base model is reinforced with bad rewards: one that counts a word, one that
likes length, one that likes a single text, all without a reference. Each is trained twice, as it is and with the remedy
that its warning names. failures.png has the measures and where the warning came, failures.md what the model writes.
Runs that are there stay. About 6 minutes on two idle cores.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from grpo_study import BACKENDS, from_base, records

matplotlib.use("Agg")
from matplotlib import pyplot as plt

REWARDS = """from difflib import SequenceMatcher


def benfica(texts):
    return [float(text.lower().split().count("benfica")) for text in texts]


def long(texts):
    return [float(len(text.split())) for text in texts]


def alike(texts):
    return [SequenceMatcher(None, text, "Benfica vence o Porto").ratio() for text in texts]
"""
COMMON = (
    "--grpo.steps 60 --sample.counted 24 --sft.max-validation-titles 200 --grpo.kl-weight 0 --grpo.learning-rate 3e-4"
)
COLORS = {"as it is": "#c0504d", "with the remedy": "#2c7fb8"}


@dataclass(frozen=True)
class Failure:
    """Its warning's name, the measures that show it, and the options that provoke and prevent it."""

    name: str
    measures: dict[str, str]
    provoked: str
    remedy: str


FAILURES = (
    Failure(
        "keyword spam",
        {"repeated_word_share": "share of words that repeat another", "reward_mean": "reward"},
        "--grpo.reward {file}:benfica",
        "--grpo.reward keywords:benfica distinct length:30-90 --grpo.reward-weights 1 1 1",
    ),
    Failure(
        "length bias",
        {"completion_length_mean": "length, tokens", "reward_mean": "reward"},
        "--grpo.reward {file}:long",
        "--grpo.reward {file}:long length:30-90 --grpo.reward-weights 0.1 10 --grpo.kl-weight 0.3",
    ),
    Failure(
        "entropy collapse",
        {"entropy": "entropy, nats a token", "distinct_share": "share of distinct completions"},
        "--grpo.reward {file}:alike",
        "--grpo.reward {file}:alike --grpo.kl-weight 0.3",
    ),
)


def train(out: Path, headlines: Path, failure: Failure, how: str) -> Path:
    """A failure's run, unless it is there."""
    run = out / "failures" / f"{failure.name} {how}".replace(" ", "-")
    options = (failure.provoked if how == "as it is" else failure.remedy).format(file=out / "bad_rewards.py")
    return from_base(out, headlines, run, *COMMON.split(), *options.split())


def draw(found: dict[str, dict[str, Path]], path: Path) -> None:
    """A column for each failure: its measures by step, and where its warning came."""
    figure, panels = plt.subplots(2, len(FAILURES), figsize=(13, 7), layout="constrained")
    for failure, column in zip(FAILURES, panels.T, strict=True):
        for panel, (measure, title) in zip(column, failure.measures.items(), strict=True):
            for how, run in found[failure.name].items():
                steps = records(run)
                points = [(r["step"], r[measure]) for r in steps if r.get(measure) is not None]  # no update, no entropy
                panel.plot(*zip(*points, strict=True), color=COLORS[how], label=how)
                warned = [r["step"] for r in steps if failure.name in r.get("warnings", ())]
                if warned:
                    panel.axvline(warned[0], color=COLORS[how], linestyle=":", label="the warning")
            panel.set(title=title, xlabel="step")
            panel.grid(alpha=0.25)
        column[0].set_title(f"{failure.name}\n{column[0].get_title()}")
    panels[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def written(run: Path) -> str:
    """A line of what the policy wrote last, from the run's own completions."""
    lines = (run / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return str(json.loads(lines[-1])["completion"]).strip()


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    (options.out / "bad_rewards.py").write_text(REWARDS, encoding="utf-8")
    with ThreadPoolExecutor(len(BACKENDS)) as lanes:
        work = {
            failure.name: {how: lanes.submit(train, options.out, options.data, failure, how) for how in COLORS}
            for failure in FAILURES
        }
        found = {name: {how: run.result() for how, run in runs.items()} for name, runs in work.items()}
    draw(found, options.out / "failures.png")
    rows = [f"| {name} | {how} | {written(run)} |" for name, runs in found.items() for how, run in runs.items()]
    text = "\n".join(["| failure | | a completion at the end |", "|---|---|---|", *rows]) + "\n"
    (options.out / "failures.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
