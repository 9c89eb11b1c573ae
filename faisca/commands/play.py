"""`faisca play`: a run's models on a page of this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.commands.options import DeviceName, WeightsName
from faisca.commands.parse import parse
from faisca.errors import FaiscaError
from faisca.system.packages import importable

LIBRARIES = ("starlette", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """Options of `faisca play`."""

    run: Annotated[
        Positional[Path],
        arg(metavar="RUN", help="a run folder: the newest checkpoint of each stage; or one checkpoint folder"),
    ]
    port: Annotated[int, arg(metavar="N")] = 0
    """the port of the page's address; 0 takes any that is free"""
    no_browser: FlagCreatePairsOff[bool] = False
    """print the address only, and open no browser"""
    device: DeviceName = "auto"
    weights: WeightsName = "float32"


def play(argv: list[str]) -> int:
    """Play with a run's models on a page of this machine, until Ctrl-C: the headlines
    of each stage, and of both backends, beside each other, the alternatives of every
    token, another token in its place; and conversations where a model has a template.

    examples:
      faisca play runs/spark
      faisca play runs/spark/checkpoints/sft-000600 --no-browser --port 8080
    """
    options = parse(PlayOptions, argv, command="play", help=play.__doc__)
    if missing := [name for name in LIBRARIES if not importable(name)]:
        raise FaiscaError(
            f'faisca play needs {" and ".join(missing)}, not installed here: pip install ".[play]" in the checkout'
        )
    from faisca.play.serve import Wish, serve

    wish = Wish(device=options.device, weights=options.weights, port=options.port, browser=not options.no_browser)
    serve(options.run, wish, lambda address: print(f"{address} (this machine alone; Ctrl-C ends it)", flush=True))
    return 0
