"""Writes the tables of `docs/scaling.md`: what one of N devices takes and sends, up to 1.7B parameters.

`python benchmarks/scaling_table.py` takes a second; nothing is trained. All numbers are by the formulas of
`faisca plan --devices N`; the rows on each device stay the same, so the batch grows with the devices.
"""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from sizes import LLAMA, SIZES

from faisca.backend import Runtime
from faisca.config import Config, ModelConfig, RunConfig, TrainConfig
from faisca.config.files import load_preset
from faisca.data.tokenizer import expected_tokens
from faisca.parameters import count_parameters
from faisca.planning.devices import BUCKETS, device_plan, sharded_update
from faisca.planning.links import LINKS, all_reduce

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN = "<!-- devices: `python benchmarks/scaling_table.py` writes these tables -->"
END = "<!-- end of devices -->"
SHARDS, SENDERS = (2, 4, 8), (2, 8, 64)
"""devices of the tables of memory and of bytes"""
PRESETS = ("spark", "faisca", "modern", "moe")
ROWS, WINDOW = 8, 256
"""windows on each device for the published sizes, and their tokens"""
SMOLLM2_360M = ModelConfig(
    dim=960, num_layers=32, num_heads=15, num_kv_heads=5, hidden_dim=2560, vocabulary_size=49_152, **LLAMA
)
CHUNKS = {"torch": 512, "mlx": 128}
"""the backends' own loss chunks"""


@dataclass(frozen=True)
class Subject:
    """A row: a configuration, and its model with the real vocabulary size."""

    name: str
    config: Config
    model: ModelConfig

    def of(self, devices: int) -> Config:
        """The configuration whose every device has as many rows as one alone."""
        train = self.config.pretrain
        whole = replace(train, batch_size=devices * train.batch_size, micro_batch_size=train.micro_batch_size)
        return replace(self.config, pretrain=whole)

    def planned(self, backend: str, devices: int, way: str = "data parallel") -> int:
        """Bytes of a device in pre-training."""
        runtime = Runtime(backend, "cpu", "float32", False, loss_chunk=CHUNKS[backend])
        return device_plan(self.of(devices), self.model, runtime, "pretrain", devices, way).total


def subjects() -> list[Subject]:
    """Presets, with their own batches, then SmolLM2's sizes."""
    found = []
    for name in PRESETS:
        config = load_preset(name)
        vocabulary = config.model.vocabulary_size or expected_tokens(config.tokenizer)
        found.append(Subject(name, config, replace(config.model, vocabulary_size=vocabulary)))
    train = TrainConfig(batch_size=ROWS)
    data = replace(Config().data, window=WINDOW, stride=WINDOW)
    for name, model in {"135M": SIZES["135M"], "360M": SMOLLM2_360M, "1.7B": SIZES["1.7B"]}.items():
        context = replace(Config().model, context=model.context)
        config = Config(model=context, data=data, pretrain=train, run=RunConfig(dtype="float32"))
        found.append(Subject(f"SmolLM2 {name}", config, model))
    return found


def memory_table() -> str:
    """GB of a device: alone, data parallel, sharded over several."""
    heads = ["torch", "torch, data parallel", *(f"sharded, {count}" for count in SHARDS), "mlx", "mlx, data parallel"]
    lines = ["### Memory of a device in pre-training", "", f"| GB | parameters | {' | '.join(heads)} |"]
    lines.append("| --- |" + " ---: |" * (1 + len(heads)))
    for subject in subjects():
        sizes = [subject.planned("torch", count) for count in (1, 2)]
        sizes += [subject.planned("torch", count, "sharded") for count in SHARDS]
        sizes += [subject.planned("mlx", count) for count in (1, 2)]
        cells = " | ".join(f"{size / 1e9:.2f}" for size in sizes)
        lines.append(f"| {subject.name} | {count_parameters(subject.model):,} | {cells} |")
    return "\n".join(lines)


def traffic_table() -> str:
    """What a process sends in a step, and how long an all-reduce of float32 gradients takes over each link."""
    heads = ["all-reduce", "in bfloat16", "sharded", *(f"{link.name}" for link in LINKS)]
    lines = ["### What a process sends in a step, in MB, and the time of the all-reduce in float32, in ms", ""]
    lines += [f"| | devices | {' | '.join(heads)} |", "| --- |" + " ---: |" * (1 + len(heads))]
    for subject in subjects():
        numbers = count_parameters(subject.model)
        for devices in SENDERS:
            averaged, narrow = (
                all_reduce(devices, width * numbers, ceil(width * numbers / BUCKETS["torch"])) for width in (4, 2)
            )
            sharded = sharded_update(devices, numbers, 4, subject.model.num_layers + 1)
            cells = [f"{traffic.sent / 1e6:,.0f}" for traffic in (averaged, narrow, sharded)]
            cells += [f"{1e3 * averaged.seconds(link):,.1f}" for link in LINKS]
            lines.append(f"| {subject.name} | {devices} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables as they are now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{memory_table()}\n\n{traffic_table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
