"""The commands that use a trained model: `faisca generate` and `faisca evaluate`."""

import json
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from faisca.cli import parse
from faisca.options import BackendName, Checkpoint, DeviceName, Source

OF_THE_RUN = "(default: the run's own)"


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Options of `faisca generate`; None leaves a choice to the run."""

    checkpoint: Checkpoint
    prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint=OF_THE_RUN)] = None
    """what the headlines begin with; an empty text lets the model begin"""
    n: Annotated[int, arg(metavar="N", aliases=["-n"])] = 5
    """headlines"""
    temperature: Annotated[float | None, arg(metavar="T", help_behavior_hint=OF_THE_RUN)] = None
    """above 1 is bolder, below 1 is safer; 0 takes the likeliest token each time"""
    top_k: Annotated[int | None, arg(metavar="K", help_behavior_hint=OF_THE_RUN)] = None
    """sample among the K likeliest tokens; 0 is off"""
    top_p: Annotated[float | None, arg(metavar="P", help_behavior_hint=OF_THE_RUN)] = None
    """sample among the likeliest tokens that together have this probability; 1 is off"""
    max_new_tokens: Annotated[int | None, arg(metavar="N", help_behavior_hint=OF_THE_RUN)] = None
    """longest headline, in tokens"""
    seed: Annotated[int, arg(metavar="N")] = 0
    """the same seed writes the same headlines"""
    backend: BackendName = "auto"
    device: DeviceName = "auto"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `faisca evaluate`."""

    checkpoint: Checkpoint
    source: Source
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead of a table"""
    backend: BackendName = "auto"
    device: DeviceName = "auto"


def generate(argv: list[str]) -> int:
    """Write headlines with a trained model, one a line, as they are finished.

    examples:
      faisca generate runs/spark
      faisca generate runs/spark --prompt "Governo " -n 10 --temperature 0.8
      faisca generate runs/spark/checkpoints/pretrain-000300 --prompt ""
    """
    options = parse(GenerateOptions, argv, command="generate", help=generate.__doc__)
    from faisca.loaded import load

    model = load(options.checkpoint, backend=options.backend, device=options.device)
    prompt = model.config.sample.prompt if options.prompt is None else options.prompt
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "max_new_tokens")}
    for headline in model.stream(prompt, options.n, seed=options.seed, **sampling):
        print(headline, flush=True)
    return 0


def evaluate(argv: list[str]) -> int:
    """Measure a trained model on the validation headlines of a source.

    examples:
      faisca evaluate runs/spark --data sample
      faisca evaluate runs/spark --data headlines.parquet --json
    """
    options = parse(EvaluateOptions, argv, command="evaluate", help=evaluate.__doc__)
    from faisca.loaded import load

    measured = load(options.checkpoint, backend=options.backend, device=options.device).evaluate(options.source)
    if options.json:
        print(json.dumps(measured, indent=2))
    else:
        _print_table(measured, title=f"{options.checkpoint} on {options.source}")
    return 0


def _print_table(measured: dict[str, float], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in measured.items():
        table.add_row(name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
