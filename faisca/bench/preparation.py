"""Data preparation as `faisca bench` times it: the core's own, so it is the same for every backend."""

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet

from faisca.bench.twin import timed
from faisca.config import DataConfig, TrainConfig
from faisca.data.headlines import load_headlines, stage_titles
from faisca.data.sources import read_headlines
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import Tokenizer
from faisca.data.windows import Windows

VOCABULARY = 4096


def measure_preparation(rounds: int) -> dict[str, Any]:
    """Titles a second from a file to training windows, and the seconds of a second start, with the cache.

    Read, filter, clean, split, tokenise with a BPE trained on them (its training is not timed), pack.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, cache = Path(folder) / "sample.parquet", Path(folder) / "cache"
        raw = read_headlines(DataConfig()).train
        pyarrow.parquet.write_table(raw.rename_columns({"url": "requested_url"}), file)
        config = DataConfig(source=str(file))
        titles, _ = stage_titles(load_headlines(config, 0), TrainConfig(), seed=0, stage="pretrain")
        tokenizer = Tokenizer.train(titles.to_pylist(), VOCABULARY)

        def prepare() -> None:
            kept, _ = stage_titles(load_headlines(config, 0), TrainConfig(), seed=0, stage="pretrain")
            Windows(tokenise(kept, tokenizer, cache=cache), config.window, config.stride)

        first, second = [], []
        for _ in range(rounds):
            shutil.rmtree(cache, ignore_errors=True)
            first.append(timed(prepare))
            second.append(timed(prepare))
    return {
        "titles": len(titles),
        "titles_per_second": len(titles) / statistics.median(first),
        "second_start_seconds": statistics.median(second),
        "rounds": first,
    }
