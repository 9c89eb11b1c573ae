"""`faisca runs` and `faisca inspect`: what lies in a folder of runs, and what is inside a checkpoint."""

import math
import os
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import safetensors
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from faisca.commands.parse import parse, print_json
from faisca.config import Adapter, adapter_of, plain
from faisca.errors import FaiscaError, VerificationError
from faisca.runs.checkpoint import checkpoint_folders, find_checkpoint, read_state
from faisca.runs.manifest import MANIFEST, read_files
from faisca.runs.nearby import no_checkpoint, run_folders
from faisca.runs.pointers import LATEST, read_pointer
from faisca.runs.state import IMPORTED, State
from faisca.system.tables import PlainConsole, print_table
from faisca.text import format_bytes, titles_name

DEPTH = 2
"""how deep below the folder `faisca runs` looks for runs"""

ROW = "stage step total_steps validation_loss portugal_validation_loss sft_url_contains backend device dtype".split()
"""what is not known of a run without a good checkpoint"""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""what safetensors calls them, and everybody else"""


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """Options of `faisca runs`."""

    folder: Annotated[Positional[Path], arg(metavar="DIR", help_behavior_hint="(default: runs)")] = Path("runs")
    """a folder with runs in it, or a run"""
    json: FlagCreatePairsOff[bool] = False
    """print one JSON list instead of a table"""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of `faisca inspect`."""

    checkpoint: Annotated[
        Positional[Path], arg(metavar="CHECKPOINT", help="a checkpoint folder, or a run folder (its latest checkpoint)")
    ]
    json: FlagCreatePairsOff[bool] = False
    """print one JSON object instead of tables"""


def runs(argv: list[str]) -> int:
    """List the runs in a folder: how far each is, its losses on validation titles
    (all, and those of fine-tuning, by default from Portugal), what computed it,
    its size, and whether it can be resumed.

    examples:
      faisca runs runs
      faisca runs experiments --json
    """
    options = parse(RunsOptions, argv, command="runs", help=runs.__doc__)
    found = [describe_run(folder) for folder in find_runs(options.folder)]
    if options.json:
        print_json(found)
    else:
        _print_runs(found, options.folder)
    return 0


def inspect(argv: list[str]) -> int:
    """Show what is inside a checkpoint, down to its tensors, and verify its checksums.
    The exit status is 1 where it is damaged.

    examples:
      faisca inspect runs/spark
      faisca inspect runs/spark/checkpoints/pretrain-000300 --json
    """
    options = parse(InspectOptions, argv, command="inspect", help=inspect.__doc__)
    folder = named_checkpoint(options.checkpoint)
    described = describe_checkpoint(folder)
    print_json(described) if options.json else _print_checkpoint(described)
    if described["damage"]:
        raise VerificationError(f"checkpoint {folder} is damaged ({described['damage'][0]}): use an earlier one")
    return 0


def find_runs(folder: Path) -> list[Path]:
    """The run folders at and below `folder`, by name; FaiscaError where there is no such folder."""
    if not os.path.isdir(folder):
        raise FaiscaError(f"{folder} is no folder: name one with runs in it, as in faisca runs .")
    return run_folders(folder, DEPTH)


def describe_run(folder: Path) -> dict[str, Any]:
    """What `faisca runs` says of a run; `resumable` is yes, finished or no (no good checkpoint); unknown is None."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    known: dict[str, Any] = {"run": str(folder), "bytes": size}
    try:
        state = read_state(find_checkpoint(folder, say=lambda _: None))
    except FaiscaError:
        return known | dict.fromkeys(ROW) | {"resumable": "no"}
    done = state.finished and state.stage == state.config.run.stages[-1]
    return known | {
        **{"stage": state.stage, "step": state.step, "total_steps": state.progress.total_steps},
        **_losses(state),
        "sft_url_contains": state.config.sft.url_contains,
        **{"backend": state.backend, "device": state.device, "dtype": state.dtype},
        "resumable": "finished" if done else "yes",
    }


def named_checkpoint(path: Path) -> Path:
    """The checkpoint that a path names, good or not: of a run the one that `latest` names, else its newest."""
    if not os.path.isdir(path / "checkpoints"):
        if not os.path.isfile(path / MANIFEST) and not os.path.isfile(path / "state.json"):
            raise no_checkpoint(path)
        return path
    folders, latest = checkpoint_folders(path), path / read_pointer(path / LATEST)
    if not folders:
        raise FaiscaError(f"{path} has no checkpoints yet")
    return latest if latest in folders else folders[-1]


def describe_checkpoint(folder: Path) -> dict[str, Any]:
    """What `faisca inspect` says: every file with its size and check, what undamaged ones hold: state, tensors."""
    files, problems = read_files(folder)
    listed = {
        name: {"bytes": len(files[name]) if name in files else None, "check": problems.get(name, "ok")}
        for name in sorted(files.keys() | problems.keys())
    }
    whole = files.keys() - problems.keys()
    state = read_state(folder).to_json() if "state.json" in whole else {}
    tensors = _tensors(folder / "model.safetensors") if "model.safetensors" in whole else {}
    return {
        **{"checkpoint": str(folder), "damage": list(problems.values()), "files": listed, "state": state},
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors.values()),
        "tensors": tensors,
    }


def _tensors(path: Path) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each tensor in a .safetensors file, by name, block 2 before block 10."""
    with safetensors.safe_open(path, framework="np") as file:
        names = sorted(file.keys(), key=lambda name: [part.zfill(9) for part in name.split(".")])
        slices = {name: file.get_slice(name) for name in names}
        return {
            name: {"shape": part.get_shape(), "dtype": DTYPES.get(part.get_dtype(), part.get_dtype())}
            for name, part in slices.items()
        }


def _losses(state: State) -> dict[str, float | None]:
    """The newest validation losses: of a stage under way, else those after the last that has finished."""
    names = ("validation_loss", "portugal_validation_loss")
    measured, last = state.progress.measured, state.stages[-1] if state.stages else {}
    return {name: measured.get(name, last.get(f"{name}_after")) for name in names}


def _print_runs(found: list[dict[str, Any]], folder: Path) -> None:
    table = Table(box=None, pad_edge=False)
    kinds = {titles_name(run["sft_url_contains"]) for run in found if run["stage"]}
    portugal = f"{kinds.pop() if len(kinds) == 1 else 'SFT'} loss"
    for name in ("run", "stage", "step", "loss", portugal, "backend", "size", "resumable"):
        numbers = name in ("step", "loss", portugal, "size")
        table.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for run in found:
        steps = f"{run['step']}/{run['total_steps']}" if run["total_steps"] else str(run["step"] or "–")
        losses = [
            "–" if run[name] is None else f"{run[name]:.3f}" for name in ("validation_loss", "portugal_validation_loss")
        ]
        where = " ".join(dict.fromkeys((run["backend"], run["device"]))) if run["backend"] else "–"  # imported, once
        name = Path(run["run"]).relative_to(folder).as_posix()
        cells = [name if name != "." else run["run"], run["stage"] or "–", steps, *losses, where]
        table.add_row(*cells, format_bytes(run["bytes"]), run["resumable"])
    console = PlainConsole()
    if found:
        print_table(console, table)
    else:
        console.print(f"no runs in {folder}", soft_wrap=True)


def _print_checkpoint(described: dict[str, Any]) -> None:
    console, files = PlainConsole(), described["files"]
    console.print(described["checkpoint"], style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in (_facts(State.from_json(described["state"])) if described["state"] else {}).items():
        table.add_row(name, value)
    table.add_row()
    for name, file in files.items():
        size = "–" if file["bytes"] is None else format_bytes(file["bytes"])
        table.add_row(name, f"{size:>8}  {file['check']}")
    console.print(table)
    if described["tensors"]:
        console.print()
        console.print(_tensor_table(described["tensors"], described["parameters"]))


def _tensor_table(tensors: dict[str, dict[str, Any]], parameters: int) -> Table:
    """Names, shapes and types; blocks that are alike stand there once."""
    table = Table(box=None, pad_edge=False, title=f"{parameters:,} parameters", title_justify="left")
    for title in ("tensor", "shape", "type"):
        table.add_column(title, no_wrap=True)
    groups: dict[str, dict[str, tuple[str, str]]] = {}
    for name, tensor in tensors.items():
        block = re.match(r"\w+\.\d+(?=\.)", name)
        group, inner = (block[0], f"  {name[block.end() + 1 :]}") if block else (name, name)
        groups.setdefault(group, {})[inner] = (str(tensor["shape"]), tensor["dtype"])
    for content, alike in groupby(groups.items(), key=lambda item: item[1]):
        names = [name for name, _ in alike]
        if names[0] not in content:
            table.add_row(
                names[0] if len(names) == 1 else f"{names[0]} … {names[-1].rpartition('.')[2]} ({len(names)} alike)"
            )
        for inner, cells in content.items():
            table.add_row(inner, *cells)
    return table


def _computed_with(state: State) -> str:
    """What computed the weights, in words."""
    if state.backend == IMPORTED:
        return f"imported from {state.ported_from or 'another format'}"
    return f"{state.backend} on {state.device}, {state.dtype}"


def _adapter_words(adapter: Adapter, state: State) -> str:
    """An adapter's options, and which base it belongs to."""
    options = f"rank {adapter.rank}, alpha {adapter.alpha:g}, dropout {adapter.dropout:g}, {' '.join(adapter.targets)}"
    options += ", DoRA" if adapter.dora else ""
    return f"{options}; of the base {(state.base_sha256 or 'unknown')[:16]}"


def _facts(state: State) -> dict[str, str]:
    total = state.progress.total_steps
    names = ("validation loss", f"{titles_name(state.config.sft.url_contains)} validation loss")
    losses = zip(names, _losses(state).values(), strict=True)
    return {
        "stage": f"{state.stage}, step {state.step}" + (f" of {total}" if total else ""),
        "finished": "yes" if state.finished else "no",
        **{name: f"{loss:.4f}" for name, loss in losses if loss is not None},
        "best": state.best["checkpoint"] if state.best else "–",
        "skipped steps": str(state.progress.skipped),
        "computed with": _computed_with(state),
        "seed": str(state.config.run.seed),
        "model": ", ".join(f"{name} {value}" for name, value in vars(plain(state.model)).items()),
        **({"adapter": _adapter_words(adapter, state)} if (adapter := adapter_of(state.model)) else {}),
        "tokenizer": state.tokenizer["kind"],
        "versions": ", ".join(f"{name} {value}" for name, value in state.versions.items()),
    }
