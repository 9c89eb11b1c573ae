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

from faisca.batches import Windows, tokenise
from faisca.bench.twin import timed
from faisca.config import DataConfig, TrainConfig
from faisca.headline_sources import read_headlines
from faisca.headlines import load_headlines, stage_titles
from faisca.tokenizer import Tokenizer

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


def row_wise(table: "datasets.Dataset", language: str) -> int:
    """The original's way: strip, filter, tokenise row by row, then cut windows in a Python loop."""
    datasets.disable_caching()
    datasets.disable_progress_bars()
    encoding = tiktoken.get_encoding("gpt2")
    rows = table.map(lambda row: {"title": (row["title"] or "").strip()})
    rows = rows.filter(lambda row: row["language"] == language and row["title"]).shuffle(seed=1337)
    ids: list[int] = []
    for title in rows["title"]:
        ids += encoding.encode(title + "<|endoftext|>", allowed_special="all")
    starts = range(0, len(ids) - WINDOW, STRIDE)
    windows = [(ids[i : i + WINDOW], ids[i + 1 : i + WINDOW + 1]) for i in starts]
    assert len(windows) == len(starts)
    return len(rows)


def main(options: Options) -> int:
    """Print both times, medians of rounds in turns, and the ratio; 1 where it is below 10."""
    config = DataConfig(source=options.data)
    raw = read_headlines(config).train
    table = datasets.Dataset(raw)
    first, second, theirs = [], [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            first.append(timed(lambda: ours(config, Path(folder))))
            second.append(timed(lambda: ours(config, Path(folder))))
        theirs.append(timed(lambda: row_wise(table, config.language)))
    mine, cached, rows = (statistics.median(seconds) for seconds in (first, second, theirs))
    print(f"{raw.num_rows:,} rows, {os.cpu_count()} cores")
    print(f"row-wise mapping {rows:7.2f} s")
    print(f"ours             {mine:7.2f} s  {rows / mine:.1f} times as fast")
    print(f"second start     {cached:7.2f} s")
    return 0 if rows / mine >= 10 else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
