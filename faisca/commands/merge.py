"""`faisca merge`: a run's adapter added to the weights that it belongs to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.commands.parse import parse, print_json


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options of `faisca merge`."""

    source: Annotated[
        Positional[Path], arg(metavar="RUN", help="a run or checkpoint whose last stage trained an adapter")
    ]
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: RUN-merged)")] = None
    """the run folder to write: it must not exist yet"""
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object"""


def merge(argv: list[str]) -> int:
    """Add a run's adapter (LoRA) to the weights that it was trained on, W + alpha / rank · B A,
    and write the one model that this makes as a new run. Both are asked the same: where their
    logits differ by more than rounding, nothing is written.

    examples:
      faisca merge runs/tuned
      faisca merge runs/tuned --out runs/whole
      faisca port runs/whole whole-hf --to hf
    """
    options = parse(MergeOptions, argv, command="merge", help=merge.__doc__)
    from faisca.porting import adapters

    source = options.source.resolve()
    target = options.out or options.source.with_name(f"{source.name}-merged")
    done, gap = adapters.merge(options.source, target)
    if options.json:
        verified = bool(done.comparisons)
        print_json({"source": str(options.source), "target": str(target), "apart": gap, "verified": verified})
    else:
        print(f"{target}: {options.source} with its adapter added; logits are {gap:.1e} apart, of the largest")
    return 0
