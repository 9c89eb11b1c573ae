"""Writes the tables of `docs/sizes.md`: what models of 135M, 0.6B and 1.7B parameters take.

`python benchmarks/sizes.py` writes what is planned, in a second; `--measure` first measures the smallest on this CPU,
a process for each row, with the counters of `tests/test_planning.py`, into `benchmarks/sizes.json`. Random weights.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from faisca.backend import Runtime, Sampling
from faisca.config import Config, GRPOConfig, ModelConfig, RunConfig, TrainConfig
from faisca.parameters import count_parameters, initial_parameters
from faisca.planning.load import load_of
from faisca.planning.plan import sampling, step_moments
from faisca.system.progress_bar import track
from faisca.system.tables import PlainConsole

ROOT = Path(__file__).parent.parent
PAGE, MEASURED = ROOT / "docs" / "sizes.md", ROOT / "benchmarks" / "sizes.json"
BEGIN, END = "<!-- sizes: `python benchmarks/sizes.py` writes these tables -->", "<!-- end of sizes -->"
WINDOW, CONTEXT = 256, 2048
TWINS = {"torch": 512, "mlx": 128}
"""and their loss chunks"""
MACS = (8, 16, 24, 32, 64)
"""GB of memory"""
SHARE = 2 / 3
"""of a Mac's memory, what the table lets a run use: about what Metal recommends on the smaller ones"""
LLAMA = {
    "context": CONTEXT,
    "norm": "rms",
    "positions": "rope",
    "activation": "swiglu",
    "feed_forward_bias": False,
    "tie_embeddings": True,
}
SIZES = {
    "135M": ModelConfig(
        dim=576, num_layers=30, num_heads=9, num_kv_heads=3, hidden_dim=1536, vocabulary_size=49_152, **LLAMA
    ),
    "0.6B": ModelConfig(
        dim=1024,
        num_layers=28,
        num_heads=16,
        head_dim=128,
        num_kv_heads=8,
        qk_norm=True,
        hidden_dim=3072,
        vocabulary_size=151_936,
        **LLAMA,
    ),
    "1.7B": ModelConfig(
        dim=2048, num_layers=24, num_heads=32, num_kv_heads=32, hidden_dim=8192, vocabulary_size=49_152, **LLAMA
    ),
}


@dataclass(frozen=True)
class Setting:
    """A row: what is done, rows of WINDOW tokens at a time, in which dtypes."""

    does: str
    """sft, grpo or generate"""
    rows: int
    dtype: str = "float32"
    weights: str = "float32"
    """of the model that nothing trains: GRPO's reference, or the one that generates"""
    checkpointing: bool = False

    @property
    def words(self) -> str:
        """The row's name in the table."""
        doing = {"sft": "SFT", "grpo": f"GRPO, reference {self.weights}", "generate": f"generate, {self.weights}"}
        return doing[self.does] + (", recomputed" if self.checkpointing else "")


def settings() -> Iterator[Setting]:
    """All rows of a table."""
    for rows in (1, 8):
        for dtype in ("float32", "bfloat16"):
            yield Setting("sft", rows, dtype)
            yield Setting("sft", rows, dtype, checkpointing=True)
        for dtype in ("float32", "bfloat16"):
            for weights in ("float32", "bfloat16"):
                yield Setting("grpo", rows, dtype, weights)
    for weights in ("float32", "bfloat16"):
        yield Setting("generate", 1, "bfloat16" if weights == "bfloat16" else "float32", weights)


def measurable() -> list[Setting]:
    """What `--measure` measures, cheapest first: all but many rows in bfloat16, which take a CPU very long."""
    possible = [each for each in settings() if each.rows == 1 or each.dtype == "float32"]
    return sorted(possible, key=lambda each: (each.rows, each.does != "generate", each.dtype != "float32"))


def prepared(setting: Setting) -> tuple[Config, str]:
    """The configuration, and its stage: gradients of an earlier micro-batch wait, as where a batch is larger."""
    train = TrainConfig(batch_size=2 * setting.rows, micro_batch_size=setting.rows)
    grpo = GRPOConfig(group_size=2 * setting.rows, minibatch_size=setting.rows, max_new_tokens=WINDOW)
    run = RunConfig(
        device="cpu",
        compile="off",
        dtype=setting.dtype,
        weights=setting.weights,
        gradient_checkpointing=setting.checkpointing,
    )
    data = replace(Config().data, window=WINDOW, stride=WINDOW)
    batch = replace(train, batch_size=setting.rows, micro_batch_size=0) if setting.does == "grpo" else train
    model = replace(Config().model, context=CONTEXT)
    stage = "grpo" if setting.does == "grpo" else "pretrain"
    return Config(model=model, data=data, pretrain=batch, grpo=grpo, run=run), stage


def planned(twin: str, model: ModelConfig, setting: Setting) -> float:
    """Bytes by formula."""
    config, stage = prepared(setting)
    runtime = Runtime(
        twin,
        "cpu",
        setting.dtype,
        False,
        loss_chunk=TWINS[twin],
        weights=setting.weights,
        gradient_checkpointing=setting.checkpointing,
    )
    load = load_of(config, model, runtime, stage)
    if setting.does == "generate":
        return load.frozen + sum(sampling(load, setting.rows, WINDOW).values())
    return max(sum(parts.values()) for parts in step_moments(load).values())


def measured(twin: str, model: ModelConfig, setting: Setting) -> int:
    """Bytes at the peak, by the counters of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_planning import act, open_twin, peak_of

    config, stage = prepared(setting)
    backend = open_twin(twin)
    runtime = backend.open_runtime(config=config.run)
    if setting.does != "generate":
        return peak_of(twin, lambda: act(backend, config, model, runtime, stage))
    parameters = initial_parameters(model, 0)

    def generate() -> None:
        made = backend.make_model(config=model, parameters=parameters, runtime=runtime)
        greedy = Sampling(0.0, 0, 1.0, 16)
        prompt, draws = [list(range(1, WINDOW - 15))], initial_parameters(TINY, 0)["token_embedding.weight"]
        list(
            backend.generate(
                model=made, prompts=prompt, uniforms=draws, sampling=greedy, end_of_text=(0,), log_probs=None
            )
        )

    return peak_of(twin, generate)


TINY = ModelConfig(vocabulary_size=1, dim=16, num_layers=1, hidden_dim=1)
"""whose one embedding stands for the 16 draws that a greedy sampler passes over"""


def key(twin: str, setting: Setting) -> str:
    """Name of a measurement in MEASURED."""
    return f"{twin}: {setting.words}, {setting.rows} x {WINDOW}, {setting.dtype}"


def measure() -> None:
    """Measure what MEASURED has not yet, each in a process of its own, and keep the numbers."""
    results = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    todo = [(twin, number) for number in range(len(measurable())) for twin in TWINS]
    todo = [(twin, number) for twin, number in todo if key(twin, measurable()[number]) not in results]
    with track(PlainConsole(), "measuring", len(todo)) as tracker:
        for done, (twin, number) in enumerate(todo, 1):
            name = key(twin, measurable()[number])
            command = [sys.executable, __file__, "--one", twin, str(number)]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[name] = int(printed.split()[-1])
            MEASURED.write_text(json.dumps(results, indent=2) + "\n")
            tracker.update(done, notes=[(name, f"{results[name] / 1e9:.2f} GB")])


def tables() -> str:
    """A table for each size, and which Mac holds what, in Markdown."""
    results = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    parts = [_table(size, model, results if size == "135M" else {}) for size, model in SIZES.items()]
    return "\n\n".join([*parts, _macs()])


def _table(size: str, model: ModelConfig, results: dict[str, int]) -> str:
    columns = [f"{twin}, {kind}" for twin in TWINS for kind in (("planned", "measured") if results else ("planned",))]
    lines = [f"### {size}: {count_parameters(model):,} parameters", ""]
    lines += [f"| GB | windows | products | {' | '.join(columns)} |", "| --- | ---: | --- |" + " ---: |" * len(columns)]
    for setting in settings():
        cells = []
        for twin in TWINS:
            cells.append(f"{planned(twin, model, setting) / 1e9:.2f}")
            if results:
                found = results.get(key(twin, setting))
                cells.append(f"{found / 1e9:.2f}" if found else "–")
        lines.append(f"| {setting.words} | {setting.rows} | {setting.dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _macs() -> str:
    """What fits two thirds of a Mac's memory, by the MLX plan."""
    heads = " | ".join(f"{memory} GB" for memory in MACS)
    lines = ["### Which Mac holds what, by MLX's plan", "", f"| | products | {heads} |"]
    lines.append("| --- | --- |" + " --- |" * len(MACS))
    for size, model in SIZES.items():
        for setting in settings():
            if setting.rows > 1 or (setting.weights == "float32" and setting.does == "grpo"):
                continue
            fits = [planned("mlx", model, setting) <= SHARE * 1e9 * memory for memory in MACS]
            cells = " | ".join("yes" if each else "–" for each in fits)
            lines.append(f"| {size} {setting.words} | {setting.dtype} | {cells} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables as they are now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the smallest first: half an hour, 8 GB")
    parser.add_argument("--one", nargs=2, metavar=("TWIN", "NUMBER"), help="measure one row, and print its bytes")
    options = parser.parse_args()
    if options.one:
        twin, number = options.one
        print(measured(twin, SIZES["135M"], measurable()[int(number)]))
        return
    if options.measure:
        measure()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
