"""`faisca parity`: the parity ladder's core on the user's own machine and model, in under a minute.

The torch twin on the CPU, in float32, is the yardstick; every other twin and device found here is
compared with it. `parity_tests/` holds the whole ladder, and `docs/parity.md` explains it.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.backend import Runtime, load_backend
from faisca.backends import BACKENDS
from faisca.commands.parse import parse, print_json
from faisca.config import ModelConfig, RunConfig, plain
from faisca.config.files import load_preset
from faisca.errors import FaiscaError
from faisca.parameters import count_parameters
from faisca.parity.cases import Case, Side, uneven_parameters
from faisca.parity.certificates import certify_all, print_certificates, subject_of
from faisca.parity.differences import differences
from faisca.parity.rungs import RUNGS, Rung, logits, trajectory
from faisca.parity.sampling import NEW_TOKENS, ROWS, agreement, settings
from faisca.system.tables import PlainConsole

BFLOAT16_RUNGS = (
    Rung(10, "bfloat16: logits", logits, 5e-2),
    Rung(10, "bfloat16: training", trajectory, 2e-2),
)

PARTED, NEAR = 0.2, 0.1
"""shares of rows and of draws: more than that, and the rule for ties would excuse too much"""

LARGE = 3_000_000
"""parameters above which there are fewer rows and steps, to stay within a minute"""

ENVIRONMENT = {
    "MLX_ENABLE_TF32": "0",  # products in full float32, and in NVIDIA's libraries under torch as well
    "NVIDIA_TF32_OVERRIDE": "0",
    "OMP_NUM_THREADS": "1",  # on a busy machine, threads spend minutes waiting for one another over small products
}
"""what the frameworks read when they start, unless it is set already"""


@dataclass(frozen=True, kw_only=True)
class ParityOptions:
    """Options of `faisca parity`."""

    checkpoint: Annotated[
        Positional[Path | None],
        arg(metavar="CHECKPOINT", help="a checkpoint or run folder; left out: a small model", help_behavior_hint=""),
    ] = None
    preset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """compare a small model of the preset's kind, and certify the preset's own steps, before there is a run"""
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead of tables"""


@dataclass(frozen=True)
class RungResult:
    """One rung between the yardstick and one other side."""

    rung: int
    title: str
    side: str
    difference: float
    tolerance: float
    where: str

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


def parity(argv: list[str]) -> int:
    """Prove on this machine that the torch and MLX twins compute the same: weights,
    logits, losses, gradients, optimiser, training, sampling and GRPO, on a small
    model or on your own. Takes less than a minute; the exit status is 1 where
    something differs by more than its tolerance.

    Of a run or a preset it prints the certificate as well: its own steps, in their
    full shapes, on the best device of each backend and on the CPU. A run does that
    by itself on a GPU, before each stage (--run.preflight).

    examples:
      faisca parity
      faisca parity runs/spark
      faisca parity --preset modern     # Qwen3's layout
      faisca parity --json
    """
    options = parse(ParityOptions, argv, command="parity", help=parity.__doc__)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if options.preset is not None and options.checkpoint is not None:
        raise FaiscaError(f"--preset {options.preset} does not go with {options.checkpoint}: leave one of them out")
    subject = subject_of(options.preset, options.checkpoint)
    sides, case = find_sides(), make_case(options.checkpoint, options.preset)
    runtimes = {name: side.open() for name, side in sides.items()}
    rows = compare_sides(sides, case)
    if not options.json:
        _print_table(rows, runtimes, case)
    found = [] if subject is None else certify_all(subject, PlainConsole(stderr=options.json))
    passed = all(row.passed for row in rows) and all(one.certificate.passed for one in found)
    if options.json:
        certificates = [one.to_json() for one in found]
        print_json({"passed": passed, **_report(rows, runtimes, case), "certificates": certificates})
    elif subject is not None:
        print_certificates(subject, found, PlainConsole())
    return 0 if passed else 1


def find_sides() -> dict[str, Side]:
    """The yardstick, then every other twin and device, by name; FaiscaError where a twin is not installed."""
    sides = {}
    for name, row in BACKENDS.items():
        try:
            backend = load_backend(name)
        except FaiscaError as error:
            raise FaiscaError(f"parity compares both backends, and {error}") from error
        best = backend.open_runtime(config=RunConfig()).device
        for device in dict.fromkeys(("cpu", best)):
            # as users run it, except where compiling takes longer than all rungs
            compiled = "auto" if row.compiles_quickly and device != "cpu" else "off"
            config = RunConfig(device=device, dtype="float32", compile=compiled)  # type: ignore[arg-type]
            sides[f"{name} {device}"] = Side(backend, config)
    return sides


def make_case(path: Path | None, preset: str | None = None) -> Case:
    """The model of a checkpoint; or a small one, built as a preset's, or with every option that GPT-2 has."""
    if path is None:
        model = ModelConfig(attention_bias=True) if preset is None else load_preset(preset).model
        small = {"vocabulary_size": 509, "context": 64, "dim": 64, "num_layers": 2, "hidden_dim": 256, "head_dim": 0}
        config = dataclasses.replace(model, **small, dropout=0.0, attention_dropout=0.0)  # type: ignore[arg-type]
        return Case(config, uneven_parameters(config, seed=0), end_of_text=0)
    from faisca.lora import merged
    from faisca.runs.checkpoint import load_checkpoint
    from faisca.training.run import checkpoint_tokenizer

    checkpoint = load_checkpoint(path)
    parameters = dict(merged(checkpoint.parameters, checkpoint.state.model))
    config = dataclasses.replace(plain(checkpoint.state.model), dropout=0.0, attention_dropout=0.0)
    first, *more = checkpoint_tokenizer(checkpoint).ends
    rows, steps = (2, 6) if count_parameters(config) > LARGE else (8, 20)
    length = min(32, config.context)
    return Case(config, parameters, first, rows=rows, length=length, steps=steps, ends=tuple(more))


def compare_sides(sides: dict[str, Side], case: Case) -> list[RungResult]:
    """Every rung, for every side but the first, which is the yardstick."""
    (_, yardstick), *others = sides.items()
    rows = []
    for rung in (*RUNGS, *BFLOAT16_RUNGS):
        expected = rung.arrays(yardstick, case)
        for name, side in others:
            found = differences(expected, rung.arrays(in_bfloat16(side) if rung in BFLOAT16_RUNGS else side, case))
            worst = max(found, key=lambda difference: float(getattr(difference, rung.measure)))
            row = RungResult(rung.number, rung.title, name, getattr(worst, rung.measure), rung.tolerance, str(worst))
            rows.append(row)
    for name, side in others:
        rows += _sampling_rows(yardstick, side, name, case)
    return sorted(rows, key=lambda row: row.rung)


def in_bfloat16(side: Side) -> Side:
    """The same twin and device with bfloat16 activations."""
    return dataclasses.replace(side, config=dataclasses.replace(side.config, dtype="bfloat16"))


def _sampling_rows(yardstick: Side, side: Side, name: str, case: Case) -> list[RungResult]:
    """How many of the completions part where there is no tie; how many at one; how many draws are ties at all."""
    ways = settings(min(NEW_TOKENS, case.model.context))
    rows = ROWS // 8 if count_parameters(case.model) > LARGE else ROWS
    found = [agreement(yardstick, side, case, sampling, rows) for sampling in ways]
    wrong = [line for one in found for line in one.wrong]
    tokens, near = sum(one.tokens for one in found), sum(one.near for one in found)
    sampled, parted = sum(one.rows for one in found), sum(one.ties for one in found)
    listing = "".join(f"; {line}" for line in wrong[:3])
    return [
        RungResult(7, "tokens that differ", name, float(len(wrong)), 0.0, f"{tokens:,} tokens{listing}"),
        RungResult(7, "rows that part at a tie", name, parted / max(sampled, 1), PARTED, f"{parted} of {sampled} rows"),
        RungResult(7, "draws that are ties", name, near / max(tokens, 1), NEAR, f"{near:,} of {tokens:,} tokens"),
    ]


def _report(rows: list[RungResult], runtimes: dict[str, Runtime], case: Case) -> dict[str, Any]:
    return {
        "model": dataclasses.asdict(case.model),
        "parameters": count_parameters(case.model),
        "yardstick": next(iter(runtimes)),
        "sides": {name: dict(runtime.details) for name, runtime in runtimes.items()},
        "rungs": [dataclasses.asdict(row) | {"passed": row.passed} for row in rows],
    }


def _print_table(rows: list[RungResult], runtimes: dict[str, Runtime], case: Case) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console, (yardstick, *_) = PlainConsole(), runtimes
    for name, runtime in runtimes.items():
        console.print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in runtime.details.items()))
    console.print(f"compared with {yardstick}, on a model of {count_parameters(case.model):,} parameters:")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    table.add_column("rung", no_wrap=True)
    table.add_column("what", min_width=len("log-probabilities"))  # breaks at words in a narrow terminal
    table.add_column("side")
    for heading in ("largest", "allowed", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        verdict = Text("pass") if row.passed else Text("FAIL", style="bold red")
        table.add_row(str(row.rung), row.title, row.side, f"{row.difference:.1e}", f"{row.tolerance:.0e}", verdict)
    console.print(table)
    for row in rows:
        if not row.passed:
            console.print(f"rung {row.rung}, {row.title}, {row.side}: {row.where}")
    failed = sum(not row.passed for row in rows)
    console.print(f"{failed} of {len(rows)} comparisons FAILED" if failed else f"all {len(rows)} comparisons pass")
