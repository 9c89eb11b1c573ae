"""Checkable tasks for a chat model: `python benchmarks/tasks.py FOLDER [--count N] [--seed N]`, for GRPO.

It writes train.jsonl and held_out.jsonl (a tenth, none of it in train) of three kinds of lines with `messages`,
`answer` and `kind`: copy a word, count a letter in it, add a digit. Each question comes after an answered one of its
kind, which shows what form an answer has: SmolLM2-135M-Instruct writes sentences otherwise. The same seed writes the
same files. Then:

    faisca grpo --from CHECKPOINT --out runs/tasks --grpo.prompts-file FOLDER/train.jsonl --grpo.reward exact:answer
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from faisca.streams import generator

SYLLABLES = "ba be bo ca co da de do fa fe ga go la le lo ma me mo na no pa pe po ra re ro sa so ta te to va vi".split()
HELD_OUT = 10
"""one of so many lines is held out"""


def copy(random: np.random.Generator) -> tuple[str, str]:
    """Write a word again."""
    word = _word(random)
    return f"Repeat: {word}", word


def count_letters(random: np.random.Generator) -> tuple[str, str]:
    """How often a letter is in a word; it is there at least once."""
    word = _word(random)
    letter = word[random.integers(len(word))]
    return f"How many {letter} in {word}?", str(word.count(letter))


def add(random: np.random.Generator) -> tuple[str, str]:
    """A digit added to a number below 50."""
    left, right = random.integers(50), random.integers(10)
    return f"{left} + {right} = ?", str(left + right)


KINDS = {"copy": copy, "count": count_letters, "sum": add}


def lines(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Conversations that all differ, the kinds in turn; no last question of one is the last of another."""
    asked, row = set[str](), 0
    while len(asked) < count:
        kind = list(KINDS)[row % len(KINDS)]
        random = generator(seed, "checkable tasks", row=row)
        (example, shown), (question, answer) = KINDS[kind](random), KINDS[kind](random)
        row += 1
        if question not in asked and question != example:
            asked.add(question)
            texts = {"user": example, "assistant": shown}, {"user": question}
            messages = [{"role": role, "content": text} for turn in texts for role, text in turn.items()]
            yield {"messages": messages, "answer": answer, "kind": kind}


def write(folder: Path, count: int, seed: int) -> dict[str, Path]:
    """Both files, by name."""
    rows = list(lines(count, seed))
    splits = {"train": [row for i, row in enumerate(rows) if i % HELD_OUT], "held_out": rows[::HELD_OUT]}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in splits}
    for name, some in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        paths[name].write_text(text, encoding="utf-8", newline="\n")
    return paths


def _word(random: np.random.Generator) -> str:
    return "".join(SYLLABLES[i] for i in random.integers(len(SYLLABLES), size=random.integers(2, 5)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1337)
    options = parser.parse_args()
    for path in write(options.folder, options.count, options.seed).values():
        print(path)


if __name__ == "__main__":
    main()
