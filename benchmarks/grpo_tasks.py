"""Does a real small model learn checkable tasks? `python benchmarks/grpo_tasks.py OUT --model RUN [--steps N]`, where

RUN is SmolLM2-135M-Instruct, brought in with `faisca port` (smollm2.py makes it without the hub). GRPO trains it on
the questions of tasks.py, one reward: whether the answer is exactly right. The accuracy on the 100 held-out questions,
likeliest tokens, is measured before and after, with 95 % intervals (Wilson 1927): tasks.md and tasks.json.
A run that is there goes on where it stopped. A step of 32 answers takes about 15 s on two idle cores.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tasks

import faisca

Z = 1.96
"""the normal distribution's 97.5 %"""
OPTIONS = (
    "--grpo.reward exact:answer --grpo.prompts-per-step 4 --grpo.group-size 8 --grpo.minibatch-size 16 --grpo.epochs 1 "
    "--grpo.max-new-tokens 8 --grpo.learning-rate 5e-6 --grpo.kl-weight 0.01 --grpo.scale-rewards none "
    "--sft.max-validation-titles 100 --sample.counted 32 --run.checkpoint-every 10 --run.log-every 5"
)


def right(run: Path, backend: str, questions: Path) -> dict[str, list[bool]]:
    """Whether each answer is right, by kind of question."""
    model = faisca.load(run, backend=backend)
    found: dict[str, list[bool]] = {kind: [] for kind in tasks.KINDS}
    for line in questions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answer = model.chat(row["messages"], temperature=0.0, max_new_tokens=8)
        found[row["kind"]].append(answer.strip() == row["answer"])
    return found


def interval(hits: Sequence[bool]) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    n, share = len(hits), sum(hits) / len(hits)
    centre, spread = share + Z**2 / (2 * n), Z * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5
    return (centre - spread) / (1 + Z**2 / n), (centre + spread) / (1 + Z**2 / n)


def cell(hits: Sequence[bool]) -> str:
    """A share and its interval, in per cent."""
    low, high = interval(hits)
    return f"{sum(hits) / len(hits):.0%} ({100 * low:.0f}–{100 * high:.0f})"


def train(out: Path, model: Path, backend: str, steps: int) -> None:
    """The run, begun or gone on with."""
    command = [sys.executable, "-m", "faisca"]
    if (out / "run" / "latest").exists():
        command += ["run", "--resume", str(out / "run"), "--grpo.steps", str(steps)]
    else:
        command += ["grpo", "--from", str(model), "--out", str(out / "run"), "--backend", backend, *OPTIONS.split()]
        command += ["--grpo.prompts-file", str(out / "train.jsonl"), "--grpo.steps", str(steps)]
    subprocess.run(command, check=True)


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    questions = tasks.write(options.out, 1000, seed=1337)["held_out"]
    before = options.out / "before.json"
    if not before.exists():
        before.write_text(json.dumps(right(options.model, options.backend, questions)), encoding="utf-8")
    train(options.out, options.model, options.backend, options.steps)
    found = {"before": json.loads(before.read_text()), "after": right(options.out / "run", options.backend, questions)}
    (options.out / "tasks.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    rows = [f"| {kind} | {cell(found['before'][kind])} | {cell(found['after'][kind])} |" for kind in tasks.KINDS]
    both = [cell([hit for hits in kinds.values() for hit in hits]) for kinds in found.values()]
    text = (
        "\n".join(["| questions | before | after |", "|---|---:|---:|", *rows, f"| all | {' | '.join(both)} |"]) + "\n"
    )
    (options.out / "tasks.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
