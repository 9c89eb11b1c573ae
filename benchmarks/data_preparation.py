"""Data preparation against row-wise mapping: `python benchmarks/data_preparation.py --data FOLDER`.

Both read the same files, keep one language, tokenise with GPT-2's vocabulary and cut windows. The
row-wise way, the original's, is `datasets`' map and filter with a Python function a row; ours also
normalises the titles, drops what repeats, and holds some out.
"""

import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import datasets
import tiktoken
import tyro

from faisca.bench.twin import timed
from faisca.cli import exit_status
from faisca.config import DataConfig, TrainConfig
from faisca.data.headlines import load_headlines, stage_titles
from faisca.data.sources import read_headlines
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import Tokenizer
from faisca.data.windows import Windows

WINDOW, STRIDE = 256, 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the comparison."""

    data: str
    """headlines: a file or folder as `faisca run --data` takes it"""
    rounds: int = 3
    """times that each way is timed, in turns"""


def ours(config: DataConfig, cache: Path) -> int:
    """The core's way; returns the titles that it packed."""
    titles, _ = stage_titles(load_headlines(config, 0), TrainConfig(), seed=0, stage="pretrain")
    Windows(tokenise(titles, Tokenizer.gpt2(), cache=cache), WINDOW, STRIDE)
    return len(titles)


def row_wise(table: "datasets.Dataset", language: str, *, map_tokens: bool) -> int:
    """The original's way: strip, filter and tokenise a row at a time, then cut windows in a Python loop."""
    encoding = tiktoken.get_encoding("gpt2")

    def encode(title: str) -> list[int]:
        return encoding.encode(title + "<|endoftext|>", allowed_special="all")

    rows = table.map(lambda row: {"title": (row["title"] or "").strip()})
    rows = rows.filter(lambda row: row["language"] == language and row["title"]).shuffle(seed=1337)
    if map_tokens:
        rows = rows.map(lambda row: {"ids": encode(row["title"])})
    ids: list[int] = []
    for each in rows["ids"] if map_tokens else map(encode, rows["title"]):
        ids += each
    starts = range(0, len(ids) - WINDOW, STRIDE)
    windows = [(ids[i : i + WINDOW], ids[i + 1 : i + WINDOW + 1]) for i in starts]
    assert len(windows) == len(starts)
    return len(rows)


def main(options: Options) -> int:
    """Print all times, medians of rounds in turns, and the ratios; 1 where mapping is not 10 times as slow."""
    datasets.disable_caching()
    datasets.disable_progress_bars()
    Tokenizer.gpt2()  # first: without its vocabulary there is nothing to time
    config = DataConfig(source=options.data)
    raw = read_headlines(config).train
    table = datasets.Dataset(raw)
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", "second start", "all mapped", "tokens in a loop")}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("ours", "second start"):
                seconds[name].append(timed(lambda: ours(config, Path(folder))))
        for name, map_tokens in (("all mapped", True), ("tokens in a loop", False)):
            seconds[name].append(timed(lambda m=map_tokens: row_wise(table, config.language, map_tokens=m)))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{raw.num_rows:,} rows, {os.cpu_count()} cores")
    for name, median in medians.items():
        print(f"{name:17}{median:7.2f} s{median / medians['ours']:7.1f} × ours")
    return 0 if medians["all mapped"] >= 10 * medians["ours"] else 1


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Options))))
