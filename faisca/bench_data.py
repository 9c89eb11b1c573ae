"""Data preparation as `faisca bench` times it: the core's own, so it is the same for every backend."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from faisca.batches import Windows, tokenise
from faisca.bench_twin import timed
from faisca.config import DataConfig, TrainConfig
from faisca.headlines import load_headlines, stage_titles
from faisca.tokenizer import Tokenizer

VOCABULARY = 4096


def measure_preparation(source: str, rounds: int) -> dict[str, Any]:
    """Titles a second from a source to training windows, and the seconds of a second start, with the cache.

    Read, filter, clean, split, tokenise with a BPE trained on them (its training is not timed), pack.
    """
    config = DataConfig(source=source)
    headlines = load_headlines(config, 0)
    titles, _ = stage_titles(headlines, TrainConfig(), seed=0, stage="pretrain")
    tokenizer = Tokenizer.train(titles.to_pylist(), VOCABULARY)

    def prepare(cache: Path) -> None:
        found = load_headlines(config, 0)
        kept, _ = stage_titles(found, TrainConfig(), seed=0, stage="pretrain")
        Windows(tokenise(kept, tokenizer, cache=cache), config.window, config.stride)

    first, second = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            first.append(timed(lambda: prepare(Path(folder))))  # noqa: B023  # called at once
            second.append(timed(lambda: prepare(Path(folder))))  # noqa: B023
    rates = [len(titles) / seconds for seconds in first]
    return {
        "source": source,
        "titles": len(titles),
        "titles_per_second": statistics.median(rates),
        "rounds": rates,
        "second_start_seconds": statistics.median(second),
    }
