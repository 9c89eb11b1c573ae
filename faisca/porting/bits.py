"""What a conversion costs: bits a byte of an exported folder, and of what others made of it.

    python -m faisca.porting.bits FOLDER [FOLDER …] [--library mlx_lm] [--data SOURCE] [--count N] [--json]

Each folder is loaded by the library itself, so quantised folders can be measured too. A title is
predicted from an end-of-text on, its own end-of-text included, which counts one byte.
"""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.commands.options import HeadlineOptions, Source, given
from faisca.commands.parse import parse, print_json
from faisca.config.files import config_from_dict
from faisca.errors import FaiscaError
from faisca.porting.formats import read_json
from faisca.porting.libraries import Reader, open_exported

PROGRAM = "python -m faisca.porting.bits"


@dataclass(frozen=True, kw_only=True)
class BitsOptions:
    """Options of this program."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="FOLDER")]
    """exported folders; the differences are to the first"""
    library: Literal["mlx_lm", "transformers"] = "mlx_lm"
    """what loads them"""
    source: Source = "sample"
    count: Annotated[int, arg(metavar="N")] = 500
    """headlines at most"""
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead of lines"""
    data: HeadlineOptions = field(default_factory=HeadlineOptions)
    """which headlines; what is left out is as in a new run"""


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


def validation_titles(source: str, count: int, **options: Any) -> list[str]:
    """The first validation headlines of a source, with other `options` than `faisca.config.DataConfig` has."""
    from faisca.data.headlines import load_headlines

    titles = load_headlines(config_from_dict({"data": {**options, "source": source}}).data, seed=0).validation.column(
        "title"
    )
    return [str(title) for title in titles.to_pylist()[:count]]


def main(argv: list[str]) -> int:
    """Print the bits a byte of each folder."""
    options = parse(BitsOptions, argv, command=PROGRAM, help=__doc__)
    if not options.folders or options.count < 1:
        raise FaiscaError("nothing to measure: name at least one folder, and at least one headline")
    titles = validation_titles(options.source, options.count, **given(options.data))
    measured = {}
    for folder in options.folders:
        context = read_json(folder / "config.json").get("n_positions")
        if not isinstance(context, int):
            raise FaiscaError(f"{folder / 'config.json'} has no n_positions: name a folder that faisca port exported")
        measured[str(folder)] = bits_per_byte(open_exported(options.library, folder), titles, context)
    if options.json:
        print_json(measured)
        return 0
    first = next(iter(measured.values()))
    for name, value in measured.items():
        print(f"{name}: {value:.4f} bits a byte ({value - first:+.4f})")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FaiscaError as error:
        print(f"faisca: {error}", file=sys.stderr)
        sys.exit(2)
