"""The commands that use a trained model: `faisca generate` and `faisca evaluate`."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, arg

from faisca.commands.chat import ask, converse, opening
from faisca.commands.options import (
    OF_THE_RUN,
    AddressOptions,
    BackendName,
    Checkpoint,
    DeviceName,
    HeadlineOptions,
    Source,
    WeightsName,
    given,
)
from faisca.commands.parse import parse, print_json
from faisca.config import Config
from faisca.errors import FaiscaError
from faisca.text import in_one_line, printable, reward_name, reward_title, titles_name

if TYPE_CHECKING:
    from faisca.loaded_model import LoadedModel


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Options of `faisca generate`; None leaves a choice to the run."""

    checkpoint: Checkpoint
    prompt: Annotated[str | None, arg(metavar="TEXT", aliases=["-p"], help_behavior_hint=OF_THE_RUN)] = None
    """what the headlines begin with, a space at its end left out; an empty text lets the model begin"""
    prompts: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """a file with a prompt a line, or - for standard input; empty lines are passed over"""
    chat: FlagCreatePairsOff[bool] = False
    """take each prompt for a user's message, and answer it as the model's chat template asks; without a prompt, a
    conversation: a line of standard input a turn, until Ctrl-D"""
    system: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None
    """with --chat, the system's message before it"""
    n: Annotated[int, arg(metavar="N", aliases=["-n"])] = 5
    """headlines, of each prompt; --chat answers once"""
    temperature: Annotated[float | None, arg(metavar="T", help_behavior_hint=OF_THE_RUN)] = None
    """above 1 is bolder, below 1 is safer; 0 takes the likeliest token each time"""
    top_k: Annotated[int | None, arg(metavar="K", help_behavior_hint=OF_THE_RUN)] = None
    """sample among the K likeliest tokens; 0 is off"""
    top_p: Annotated[float | None, arg(metavar="P", help_behavior_hint=OF_THE_RUN)] = None
    """sample among the likeliest tokens that together have this probability; 1 is off"""
    max_new_tokens: Annotated[int | None, arg(metavar="N", help_behavior_hint=OF_THE_RUN)] = None
    """longest headline, in tokens; with --chat, longest answer (default: 256)"""
    seed: Annotated[int, arg(metavar="N")] = 0
    """the same seed writes the same headlines"""
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead: settings, and each prompt with its headlines"""
    backend: BackendName = "auto"
    device: DeviceName = "auto"
    weights: WeightsName = "float32"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `faisca evaluate`."""

    checkpoint: Checkpoint
    source: Source
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead of a table"""
    backend: BackendName = "auto"
    device: DeviceName = "auto"
    weights: WeightsName = "float32"
    data: HeadlineOptions = field(default_factory=HeadlineOptions)
    pretrain: AddressOptions = field(default_factory=AddressOptions)
    sft: AddressOptions = field(default_factory=AddressOptions)


def generate(argv: list[str]) -> int:
    """Write headlines with a trained model, one a line, as they are finished.

    examples:
      faisca generate runs/spark
      faisca generate runs/spark -p Governo -n 10 --temperature 0.8
      faisca generate runs/spark --prompt Governo -n 10 --temperature 0.8
      faisca generate runs/spark/checkpoints/pretrain-000300 --prompt ""
      faisca generate runs/spark --prompts prompts.txt -n 1 --json
      faisca generate runs/instruct --chat -p "What is the capital of Portugal?"
      faisca generate runs/instruct --chat --system "Answer in one word."
    """
    options = parse(GenerateOptions, argv, command="generate", help=generate.__doc__)
    prompts = _prompts(options)
    _check_chat(options, prompts)
    from faisca.loaded_model import load

    model = load(options.checkpoint, backend=options.backend, device=options.device, weights=options.weights)
    settings = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "max_new_tokens")}
    if options.chat:
        from faisca.loaded_model import LONGEST_ANSWER

        settings |= {"max_new_tokens": LONGEST_ANSWER if options.max_new_tokens is None else options.max_new_tokens}
    if options.chat and not prompts:
        return converse(model, options.system, options.seed, settings)
    prompts = prompts or [model.config.sample.prompt]
    streams = [_texts(model, prompt, options, settings) for prompt in prompts]
    if options.json:
        print_json(
            {
                "checkpoint": str(model.checkpoint.folder),
                **{"backend": model.setup.runtime.backend, "device": model.setup.runtime.device, "seed": options.seed},
                "settings": asdict(model.sampling(**settings)),
                "generated": [{"prompt": p, "texts": list(s)} for p, s in zip(prompts, streams, strict=True)],
            }
        )
        return 0
    for headline in chain.from_iterable(streams):
        print(printable(headline), flush=True)
    return 0


def _texts(model: "LoadedModel", prompt: str, options: GenerateOptions, settings: Mapping[str, Any]) -> Iterator[str]:
    """What the model makes of a prompt: its headlines, or its answer."""
    if options.chat:
        messages = [*opening(options.system), {"role": "user", "content": prompt}]
        yield ask(model, messages, options.seed, settings)
    else:
        yield from model.stream(prompt, options.n, seed=options.seed, **settings)


def _check_chat(options: GenerateOptions, prompts: list[str]) -> None:
    """FaiscaError for options that mean nothing together."""
    if options.system is not None and not options.chat:
        raise FaiscaError("--system is for conversations: add --chat, or leave it out")
    if options.chat and options.n not in (1, GenerateOptions.n):
        raise FaiscaError(f"-n {options.n} does not go with --chat, which answers once: leave it out")
    if options.chat and options.json and not prompts:
        raise FaiscaError("--json does not go with a conversation: name what to answer with --prompt or --prompts")


def _prompts(options: GenerateOptions) -> list[str]:
    """The prompts that were given, in order; none leaves it to the run."""
    if options.prompts is None:
        return [] if options.prompt is None else [options.prompt]
    if options.prompt is not None:
        raise FaiscaError("--prompt does not go with --prompts, which has its own: leave one of them out")
    try:
        raw = sys.stdin.buffer.read() if str(options.prompts) == "-" else options.prompts.read_bytes()
        lines = raw.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FaiscaError(
            f"--prompts {options.prompts} cannot be read ({in_one_line(error)}): name a text file in UTF-8"
        ) from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise FaiscaError(f"--prompts {options.prompts} has no prompt: write one a line")
    return prompts


def evaluate(argv: list[str]) -> int:
    """Measure a trained model on the validation headlines of a source.

    examples:
      faisca evaluate runs/spark --data sample
      faisca evaluate runs/spark --data headlines.parquet --json
      faisca evaluate runs/spark --data titles.csv --data.language "" --data.title-column headline
    """
    options = parse(EvaluateOptions, argv, command="evaluate", help=evaluate.__doc__)
    from faisca.loaded_model import load

    model = load(options.checkpoint, backend=options.backend, device=options.device, weights=options.weights)
    sections = {name: given(getattr(options, name)) for name in ("data", "pretrain", "sft")}
    measured = model.evaluate(options.source, **sections)
    if options.json:
        print_json(measured)
    else:
        _print_table(_named(measured, model.config), title=f"{options.checkpoint} on {options.source}")
    return 0


def _named(measured: dict[str, float], config: Config) -> dict[str, float]:
    """The measures by the names that people see, which follow the run's configuration."""
    names = {"portugal_validation_loss": f"{titles_name(config.sft.url_contains)} validation loss"}
    if config.grpo.reward != ("football",):
        names |= {"reward": reward_title(reward_name(config.grpo.reward)), "reward_std": "its spread"}
        measured = {name: value for name, value in measured.items() if name != "football_share"}
    return {names.get(name, name.replace("_", " ")): value for name, value in measured.items()}


def _print_table(measured: dict[str, float], title: str) -> None:
    from rich.table import Table

    from faisca.system.tables import PlainConsole

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in measured.items():
        table.add_row(name, f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
    PlainConsole().print(table)
