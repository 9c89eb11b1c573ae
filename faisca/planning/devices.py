"""What one of N devices takes and sends, where each trains on its rows of the same step.

Two ways. Data parallel: every device has weights, gradients and optimiser state, and gradients are averaged in buckets.
Sharded: a device keeps 1/N of all three, and gathers a block's weights while it computes with them (ZeRO's third stage:
Rajbhandari et al. 2020, arXiv 1910.02054, sections 5 and 7); it sends 1.5 times as much in a step (section 7.2.2).
"""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, prod

from faisca.backend import Runtime
from faisca.config import Config, ModelConfig
from faisca.errors import FaiscaError
from faisca.parameters import parameter_shapes
from faisca.planning.fit import possible_rows, with_rows
from faisca.planning.links import Traffic, all_gather, all_reduce, reduce_scatter
from faisca.planning.load import FLOAT, Load, rows_of
from faisca.planning.plan import StagePlan, plan

WAYS = {"torch": ("data parallel", "sharded"), "mlx": ("data parallel",)}
"""in which a backend trains on several devices"""
BUCKETS = {"torch": 25 * 2**20, "mlx": 32 * 2**20}
"""bytes of gradients that are averaged at a time: DistributedDataParallel's bucket_cap_mb, and average_gradients'
all_reduce_size"""
GATHERED_BLOCKS = 2
"""blocks whose weights are whole at a time: the one that computes, and the next, on its way"""
TOKEN, SCORE = 4, 4
"""bytes of a completion's token id, and of its log-probability or of a reward"""


def on_device(config: Config, stage: str, devices: int) -> Config:
    """The configuration as one device computes a stage: its share of rows; FaiscaError where they cannot be shared."""
    name = "minibatch_size" if stage == "grpo" else "batch_size"
    section = getattr(config, stage)
    whole = getattr(section, name)
    if devices < 1 or whole % devices:
        fitting = ", ".join(str(count) for count in range(1, whole + 1) if whole % count == 0)
        raise FaiscaError(
            f"{stage}.{name} {whole} cannot be shared by {devices} devices: use a multiple, or {fitting} devices"
        )
    rows = whole // devices
    at_once = min(section.micro_batch_size, rows)
    if at_once and rows % at_once:
        raise FaiscaError(
            f"{stage}.micro_batch_size {at_once} does not divide the {rows} rows that each of {devices} devices has: "
            f"use a divisor of {rows}"
        )
    changed = {name: rows, "micro_batch_size": at_once}
    if stage == "grpo" and config.grpo.prompts_per_step % devices == 0:  # else at most all of them are planned
        changed["prompts_per_step"] = config.grpo.prompts_per_step // devices
    shared = replace(config, **{stage: replace(section, **changed)})
    if stage == "pretrain":
        return shared
    # Evaluations, which are split too, have the rows of pre-training.
    rows = ceil(rows_of(config, "pretrain") / devices)
    measured = replace(shared.pretrain, batch_size=rows, micro_batch_size=rows)
    return replace(shared, pretrain=measured)


def device_plan(config: Config, model: ModelConfig, runtime: Runtime, stage: str, devices: int, way: str) -> StagePlan:
    """The plan of a stage on one of N devices."""
    return planned(on_device(config, stage, devices), model, runtime, stage, devices, way)


def planned(own: Config, model: ModelConfig, runtime: Runtime, stage: str, devices: int, way: str) -> StagePlan:
    """The same, of the configuration as the device computes it."""
    alone = plan(own, model, runtime, stage)
    if devices == 1:
        return alone
    change = _sharded if way == "sharded" else _with_buckets
    return replace(alone, moments=change(alone.load, alone.moments, devices))


def largest_rows(
    config: Config, model: ModelConfig, runtime: Runtime, stage: str, devices: int, way: str, memory: float
) -> int | None:
    """The largest micro-batch of a device that fits so many bytes; None where none does."""
    own = on_device(config, stage, devices)
    for rows in possible_rows(own, stage):
        if planned(with_rows(own, stage, rows), model, runtime, stage, devices, way).total <= memory:
            return rows
    return None


def _with_buckets(
    load: Load, moments: Mapping[str, Mapping[str, float]], devices: int
) -> dict[str, Mapping[str, float]]:
    """Buckets: torch's are the gradients themselves, and stay between steps; MLX's are a copy, while it averages."""
    if load.backend == "torch":
        kept = {name: load.trained - parts.get("gradients", 0) for name, parts in moments.items()}
        return {name: {**parts, "buckets": max(0, kept[name])} for name, parts in moments.items()}
    state = {name: size for name, size in moments["update"].items() if name != "gradients"}
    return {**moments, "average": {**state, "gradients": load.trained, "buckets": load.trained}}


def _sharded(load: Load, moments: Mapping[str, Mapping[str, float]], devices: int) -> dict[str, Mapping[str, float]]:
    """Weights, moments and waiting gradients by N; what lies outside of blocks, and two blocks, gathered.

    Of gradients, those of one block, those outside of blocks, and what is computed beside them are whole. To sample,
    all weights are gathered once. GRPO's reference is whole: nothing shards what nothing trains.
    """
    block, outside = block_bytes(load.model)
    computing = outside + min(GATHERED_BLOCKS, load.model.num_layers) * block
    changed: dict[str, Mapping[str, float]] = {}
    for name, parts in moments.items():
        shards = {part: parts[part] / devices for part in ("parameters", "optimiser")}
        gradients = parts.get("gradients", 0)
        beside = max(0, gradients - load.trained)
        whole = min(gradients - beside, block + outside)
        left = {"gradients": beside + whole + (gradients - beside - whole) / devices} if gradients else {}
        gathered = load.parameters if name == "sampling" else computing
        changed[name] = {**parts, **shards, **left, "gathered": gathered}
    return changed


def block_bytes(model: ModelConfig) -> tuple[float, float]:
    """Bytes of a block's weights, and of those outside of blocks: tables, head and last norm."""
    sizes = {name: FLOAT * prod(shape) for name, shape in parameter_shapes(model).items()}
    blocks = sum(size for name, size in sizes.items() if name.startswith("transformer_blocks."))
    return blocks / model.num_layers, sum(sizes.values()) - blocks


# --- what is sent -------------------------------------------------------------------------------


def gradient_width(config: Config) -> int:
    """Bytes of a number of the gradients that are averaged."""
    return 2 if config.run.reduce_dtype == "bfloat16" else FLOAT


def step_traffic(config: Config, stage: str, devices: int, way: str, backend: str, trained: int) -> Traffic:
    """What a process sends in a step that trains so many numbers; in GRPO a step has several updates."""
    own = on_device(config, stage, devices)
    if way == "sharded":
        section = getattr(own, stage)
        rows = section.minibatch_size if stage == "grpo" else section.batch_size
        layers = config.model.num_layers + 1
        update = sharded_update(devices, trained, gradient_width(config), layers, rows // rows_of(own, stage))
    else:
        size = trained * gradient_width(config)
        update = all_reduce(devices, size, ceil(size / BUCKETS[backend]))
    if stage != "grpo":
        return update
    weights = all_gather(devices, trained * FLOAT, config.model.num_layers + 1) if way == "sharded" else Traffic()
    return update.times(updates(config)) + rollout_gather(config, devices) + weights


def sharded_update(devices: int, trained: int, width: int, groups: int, micro_batches: int = 1) -> Traffic:
    """Weights in float32 are gathered before the forward and before the backward pass, gradients scattered after it.

    3 (N - 1) / N · 4 bytes a weight, in groups of a block each, again for every micro-batch.
    """
    gathers = all_gather(devices, trained * FLOAT, groups).times(2)
    return (gathers + reduce_scatter(devices, trained * width, groups)).times(micro_batches)


def rollout_gather(config: Config, devices: int) -> Traffic:
    """GRPO's completions at their longest: token ids and log-probabilities, three arrays with the rewards."""
    grpo = config.grpo
    rows = grpo.group_size * grpo.prompts_per_step
    return all_gather(devices, rows * (grpo.max_new_tokens * (TOKEN + SCORE) + SCORE), 3)


def updates(config: Config) -> int:
    """Optimiser steps of one GRPO step."""
    grpo = config.grpo
    return grpo.epochs * (grpo.group_size * grpo.prompts_per_step // grpo.minibatch_size)
