"""`faisca tune`: measure which settings are fastest on this machine, and write them as a configuration to lay over."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, arg

from faisca.commands.configuration import ConfigOptions, read_config
from faisca.commands.parse import print_json
from faisca.config import Config
from faisca.config.files import config_to_dict, load_preset
from faisca.errors import FaiscaError
from faisca.system.files import write_named
from faisca.system.progress_bar import track
from faisca.system.tables import PlainConsole, print_table
from faisca.text import format_bytes
from faisca.tuning.opening import Opened, open_config
from faisca.tuning.search import Result, Search
from faisca.tuning.trial import LOSS_TOLERANCE, NORM_TOLERANCE, bfloat16_tolerances


@dataclass(frozen=True, kw_only=True)
class TuneOptions(ConfigOptions):
    """Options of `faisca tune`."""

    memory: Annotated[float | None, arg(metavar="GB", help_behavior_hint="(default: what the device may use)")] = None
    """memory that nothing that is tried may exceed, by the plan, in GB"""
    minutes: Annotated[float, arg(metavar="N")] = 2.5
    """time for all of it; what does not get its turn is said"""
    out: Annotated[Path, arg(metavar="FILE")] = Path("tuned.toml")
    """the TOML file for --config: the settings found, and all that differs from the preset"""
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead of a table"""


def tune(argv: list[str]) -> int:
    """Measure on this machine what nobody can choose for you: dtype, attention, compilation, loss
    chunk, gradient checkpointing, micro-batch and rollout batch. Each value is timed in turns with
    the best so far, on a few windows of random tokens. Only what computes the same loss is taken,
    and what fits the memory. Writes a TOML file, with which faisca run learns the same, faster.

    examples:
      faisca tune --preset faisca
      faisca tune --preset faisca --memory 2 --minutes 10 --out mine.toml
      faisca run --preset faisca --config tuned.toml
    """
    options, config = read_config(TuneOptions, argv, command="tune", help=tune.__doc__)
    if not 0 < options.minutes < float("inf"):
        raise FaiscaError(f"--minutes {options.minutes} is out of range: use a number above 0")
    opened, began = open_config(config, options.memory, options.start_from), time.perf_counter()
    console = PlainConsole(stderr=True)
    search = Search(opened, 60 * options.minutes)
    with track(console, "tuning", search.duels) as tracker:
        best = search.run(lambda words, done: tracker.update(done, now=words))
        tracker.update(search.duels)
    text = tuned_text(best)
    write_named("--out", options.out, text.encode())
    seconds = time.perf_counter() - began
    if options.json:
        facts = {"windows": search.windows, "memory_bytes": opened.memory, "seconds": seconds, "file": str(options.out)}
        print_json({**facts, "results": [vars(result) for result in search.results]})
    else:
        _print(opened, search, seconds)
        print(f"\nwritten to {options.out}: faisca run --preset {best.preset} --config {options.out}")
    return 0


def tuned_text(config: Config) -> str:
    """TOML of all in which a configuration differs from its preset, and the preset's name."""
    preset, values = config_to_dict(load_preset(config.preset)), config_to_dict(config)
    sections: dict[str, Any] = {"preset": config.preset}
    for section, options in values.items():
        if section != "preset":
            changed = {name: value for name, value in options.items() if value != preset[section][name]}
            sections |= {section: changed} if changed else {}
    return f"# by faisca tune; for --config, alone or with --preset {config.preset}\n" + tomli_w.dumps(sections)


def _print(opened: Opened, search: Search, seconds: float) -> None:
    console, runtime = PlainConsole(), opened.runtime
    narrow = "/".join(f"{tolerance:g}" for tolerance in bfloat16_tolerances())
    console.print(
        f"{runtime.backend} on {runtime.device}, {search.windows} windows a timed step, {seconds:.0f} s; memory: "
        f"{format_bytes(opened.memory)}, {opened.memory_words}\nthe same loss and gradient norm: within "
        f"{LOSS_TOLERANCE:g}/{NORM_TOLERANCE:g} of each other, bfloat16 within {narrow} of float32",
        soft_wrap=True,
    )
    table = Table("option", "value", "so far", "with it", "noise", "verdict")
    for result in search.results:
        table.add_row(*_cells(result))
    print_table(console, table)


def _cells(result: Result) -> tuple[str, ...]:
    times = ("–" if value is None else f"{1000 * value:.0f} ms" for value in (result.before, result.seconds))
    noise = "–" if result.noise is None else f"{100 * result.noise:.0f} %"
    value = str(result.value).lower() if isinstance(result.value, bool) else str(result.value)
    return result.option, value, *times, noise, result.verdict
