"""`faisca plan`: what a run will take, before it runs: memory by formula, and time from a measured speed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from tyro.conf import FlagCreatePairsOff, arg

from faisca.commands.configuration import ConfigOptions, read_config
from faisca.commands.parse import print_json
from faisca.config import Config
from faisca.errors import FaiscaError
from faisca.parameters import count_parameters
from faisca.planning.fit import largest_rows, remedy
from faisca.planning.law import best_for, flops_per_token, hours_words, read_law
from faisca.planning.load import rows_of
from faisca.planning.plan import PARTS, StagePlan
from faisca.planning.plan import plan as plan_stage
from faisca.system.tables import PlainConsole, print_table
from faisca.text import clock, format_bytes
from faisca.tuning.devices_command import Devices, own_link, plan_devices
from faisca.tuning.opening import Opened, model_config, open_config


@dataclass(frozen=True, kw_only=True)
class PlanOptions(ConfigOptions):
    """Options of `faisca plan`."""

    memory: Annotated[float | None, arg(metavar="GB", help_behavior_hint="(default: what the device may use)")] = None
    """memory that may be used, in GB"""
    tokens_per_second: Annotated[float | None, arg(metavar="N", help_behavior_hint="")] = None
    """speed of training, for the time"""
    bench: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """a JSON file of faisca bench, for the time"""
    hours: Annotated[float | None, arg(metavar="H", help_behavior_hint="")] = None
    """how large a model, and how many headlines, for so much time at that speed: by the law of docs/recipes.md"""
    devices: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """what each of N devices takes that share every step, what it sends, and how long that takes (docs/scaling.md)"""
    bandwidth: Annotated[float | None, arg(metavar="GB/s", help_behavior_hint="(default: some links by name)")] = None
    """between these devices, in one direction"""
    latency: Annotated[float | None, arg(metavar="US", help_behavior_hint="")] = None
    """microseconds of a message between them"""
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead of a table"""


def plan(argv: list[str]) -> int:
    """Say what a run will take: memory of each stage by formula, the largest micro-batch
    that fits, and the time, where a speed is known. Nothing is trained or read; takes all
    options of faisca run. The formulas are compared in tests with what both backends take.

    examples:
      faisca plan --preset faisca
      faisca plan --preset faisca --memory 1 --backend mlx
      faisca plan --model.dim 512 --model.num-layers 12 --pretrain.max-steps 1000 --tokens-per-second 20000
      faisca plan --preset faisca --bench mine.json --json
      faisca plan --hours 1 --tokens-per-second 20000
      faisca plan --preset faisca --devices 4 --tokens-per-second 20000
    """
    options, config = read_config(PlanOptions, argv, command="plan", help=plan.__doc__)
    speed, devices = _speed(options, config), _devices(options)
    if options.hours is not None:
        return _plan_hours(options, config, speed)
    opened = open_config(config, options.memory, options.start_from)
    if devices is not None:
        plan_devices(opened, devices, speed, options.json)
        return 0
    plans = [plan_stage(config, opened.model, opened.runtime, stage) for stage in config.run.stages]
    found = [_stage_facts(opened, made, speed) for made in plans]
    if options.json:
        runtime = {key: getattr(opened.runtime, key) for key in ("backend", "device", "dtype", "loss_chunk")}
        numbers = {"parameters": count_parameters(opened.model), "memory_bytes": opened.memory}
        print_json({**runtime, **numbers, "stages": found})
    else:
        _print(opened, plans, found, speed)
    return 0


def _devices(options: PlanOptions) -> Devices | None:
    """The devices asked for; FaiscaError where options about them mean nothing."""
    if options.devices is None:
        if options.bandwidth is not None or options.latency is not None:
            raise FaiscaError("--bandwidth and --latency are of links between devices: add --devices N")
        return None
    if options.hours is not None:
        raise FaiscaError("--hours does not go with --devices: its law is of one device; leave one of them out")
    return Devices(options.devices, own_link(options.bandwidth, options.latency))


def _plan_hours(options: PlanOptions, config: Config, speed: float | None) -> int:
    """Say what an amount of time buys."""
    if options.hours is None or not 0 < options.hours < float("inf"):
        raise FaiscaError(f"--hours {options.hours} is out of range: use a number above 0")
    if speed is None:
        raise FaiscaError("--hours needs a speed: add --tokens-per-second N, of this configuration, or --bench FILE")
    law = read_law()
    flops = speed * flops_per_token(model_config(config, options.start_from), config.data.window)
    answer = best_for(law, options.hours, flops)
    if options.json:
        print_json({"hours": options.hours, "flops_per_second": flops, **vars(answer)})
    else:
        print("\n".join(hours_words(law, answer, options.hours, flops)))
    return 0


def _speed(options: PlanOptions, config: Config) -> float | None:
    """Training tokens a second, as they were given or measured; FaiscaError where they do not belong to this run."""
    if options.tokens_per_second is not None:
        if options.bench is not None:
            raise FaiscaError("--tokens-per-second does not go with --bench, which has its own: leave one of them out")
        if not 0 < options.tokens_per_second < float("inf"):
            raise FaiscaError(f"--tokens-per-second {options.tokens_per_second} is out of range: use a number above 0")
        return options.tokens_per_second
    return None if options.bench is None else _bench_speed(options.bench, config)


def _bench_speed(path: Path, config: Config) -> float:
    from faisca.backends import choose_backend
    from faisca.bench.results import read_results

    results, backend = read_results(path), choose_backend(config.run.backend)[0]
    measured = results["subjects"].get(backend, {}).get("measured", {}).get("pretrain")
    if not measured or not measured.get("median"):
        raise FaiscaError(f"--bench {path} has no pre-training step of {backend}: name --backend, or another file")
    theirs = {name: results["work"]["model"].get(name) for name in ("dim", "num_layers", "hidden_dim", "context")}
    ours = {name: getattr(config.model, name) for name in theirs}
    if theirs != ours:
        name = next(name for name in ours if ours[name] != theirs[name])
        raise FaiscaError(
            f"--bench {path} measured another model: model.{name} is {theirs[name]}, not {ours[name]}; "
            "measure this one with faisca bench, or give --tokens-per-second"
        )
    return float(measured["median"])


def _stage_facts(opened: Opened, made: StagePlan, speed: float | None) -> dict[str, Any]:
    """What is known of a stage, as --json has it."""
    config, stage = opened.config, made.stage
    fits = made.total <= opened.memory
    most = largest_rows(config, opened.model, opened.runtime, stage, opened.memory)
    return {
        "stage": stage,
        "total_bytes": made.total,
        "moment": made.peak,
        "bytes": {name: round(size) for name, size in made.parts.items()},
        "moments": {name: round(sum(parts.values())) for name, parts in made.moments.items()},
        "fits": fits,
        "rows": rows_of(config, stage),
        "largest_rows": most,
        "remedy": None if fits else remedy(config, opened.model, opened.runtime, stage, opened.memory),
        **_time_facts(config, stage, speed),
    }


def _time_facts(config: Config, stage: str, speed: float | None) -> dict[str, Any]:
    """Tokens and seconds of a step, and of the stage where its steps are known without its titles."""
    if stage == "grpo":  # a rollout samples, scores and learns: another speed than training's, and not guessed
        grpo = config.grpo
        tokens = grpo.group_size * grpo.prompts_per_step * grpo.max_new_tokens
        return {"steps": grpo.steps, "tokens_per_step": tokens, "seconds_per_step": None, "seconds": None}
    train = getattr(config, stage)
    tokens = train.batch_size * config.data.window
    a_step = tokens / speed if speed else None
    return {
        "steps": train.max_steps or None,
        "tokens_per_step": tokens,
        "seconds_per_step": a_step,
        "seconds": a_step * train.max_steps if a_step and train.max_steps else None,
        "seconds_per_million_tokens": 1e6 / speed if speed else None,
    }


def _print(opened: Opened, plans: list[StagePlan], found: list[dict[str, Any]], speed: float | None) -> None:
    console, runtime = PlainConsole(), opened.runtime
    console.print(
        f"{count_parameters(opened.model):,} parameters, {runtime.backend} on {runtime.device}, {runtime.dtype}, "
        f"loss chunk {runtime.loss_chunk}; memory: {format_bytes(opened.memory)}, {opened.memory_words}",
        soft_wrap=True,
    )
    table = Table("", *(made.stage for made in plans))
    for column in table.columns[1:]:
        column.justify = "right"
    for part in (*PARTS, *dict.fromkeys(name for made in plans for name in made.parts if name not in PARTS)):
        if any(part in made.parts for made in plans):
            table.add_row(part, *(format_bytes(made.parts[part]) if part in made.parts else "–" for made in plans))
    table.add_row("total", *(format_bytes(made.total) for made in plans), style="bold")
    table.add_row("most is alive at", *(made.peak for made in plans))
    table.add_row("rows at a time", *(str(facts["rows"]) for facts in found))
    table.add_row("most rows that fit", *(str(facts["largest_rows"] or "none") for facts in found))
    table.add_row("steps", *(f"{facts['steps']:,}" if facts["steps"] else "by its titles" for facts in found))
    table.add_row("tokens in a step", *(f"{facts['tokens_per_step']:,}" for facts in found))
    if speed:
        for name in ("seconds_per_step", "seconds_per_million_tokens", "seconds"):
            values = (facts.get(name) for facts in found)
            table.add_row(name.replace("_", " "), *(_seconds(value) for value in values))
    print_table(console, table, by="columns")
    for facts in found:
        if not facts["fits"]:
            total, most = format_bytes(facts["total_bytes"]), format_bytes(opened.memory)
            console.print(f"{facts['stage']} does not fit: {total} of {most}: {facts['remedy']}", soft_wrap=True)


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return clock(value) if value >= 60 else f"{value:.2f}"
