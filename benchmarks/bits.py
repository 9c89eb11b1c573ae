"""What a conversion costs: `python benchmarks/bits.py FOLDER [FOLDER …]`, bits a byte of exported folders, as JSON.

mlx-lm loads each folder itself, so quantised folders can be measured too. A title is predicted from
an end-of-text on, its own end-of-text included, which counts one byte.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

from faisca.cli import exit_status
from faisca.config import DataConfig
from faisca.data.headlines import load_headlines
from faisca.errors import FaiscaError
from faisca.porting.formats import read_json
from faisca.porting.libraries import Reader, open_exported

TITLES = 500


def validation_titles(count: int) -> list[str]:
    """The first validation headlines of the embedded sample."""
    titles = load_headlines(DataConfig(), seed=0).validation.column("title")
    return [str(title) for title in titles.to_pylist()[:count]]


def bits_per_byte(reader: Reader, titles: list[str], context: int) -> float:
    """Bits that the model needs for a byte of the titles, which are cut where the context ends."""
    end = reader.end_of_text_ids[-1]
    bits, counted = 0.0, 0
    for title in titles:
        ids = [end, *reader.encode(title), end][:context]
        logits = reader.logits(ids[:-1]).astype(np.float64)
        top = logits.max(1)
        log_sums = top + np.log(np.exp(logits - top[:, None]).sum(1))
        bits += float((log_sums - logits[np.arange(len(ids) - 1), ids[1:]]).sum()) / math.log(2)
        counted += len(title.encode()) + 1 if ids[-1] == end else len(reader.decode(ids[1:]).encode())
    return bits / counted


def main(folders: list[str]) -> int:
    """Print the bits a byte of each folder."""
    if not folders:
        raise FaiscaError("name the folders that faisca port exported: python benchmarks/bits.py FOLDER [FOLDER …]")
    titles, measured = validation_titles(TITLES), {}
    for folder in folders:
        context = read_json(Path(folder) / "config.json").get("n_positions")
        if not isinstance(context, int):
            raise FaiscaError(f"{folder}/config.json has no n_positions: name a folder that faisca port exported")
        measured[folder] = bits_per_byte(open_exported("mlx_lm", Path(folder)), titles, context)
    print(json.dumps(measured, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
