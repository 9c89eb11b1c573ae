"""`faisca merge`: a run's adapter added to the weights that it belongs to."""

from dataclasses import asdict, dataclass
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
    from faisca.porting.command import show_comparisons

    source = options.source.resolve()
    target = options.out or options.source.with_name(f"{source.name}-merged")
    done = adapters.merge(options.source, target)
    if options.json:
        comparisons = [asdict(comparison) for comparison in done.comparisons]
        print_json({"source": str(options.source), "target": str(target), "comparisons": comparisons})
        return 0
    print(f"{target}: {options.source} with its adapter added, verified")
    show_comparisons(done.comparisons)
    return 0
