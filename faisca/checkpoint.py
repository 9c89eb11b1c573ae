"""Checkpoints: whole or absent, checksummed, and free of the framework and device that wrote them.

A checkpoint is a folder of safetensors and JSON (`docs/checkpoints.md` is the format). It is
written under a temporary name, flushed to disk and renamed, so a crash leaves either the old
state or the new one. `manifest.json` has the SHA-256 of every other file: what does not match
is reported and never loaded. No pickle anywhere, so loading a stranger's checkpoint runs no code.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from faisca.config import STAGES
from faisca.errors import FaiscaError, VerificationError
from faisca.files import flush_folder, write_atomically, write_flushed

FORMAT = 1
MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best"
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds, verified against its manifest."""

    folder: Path
    state: dict[str, Any]
    parameters: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    reference: dict[str, np.ndarray] | None
    """GRPO's frozen model"""
    tokenizer_json: str | None
    """absent where the tokenizer is GPT-2's"""

    @property
    def stage(self) -> str:
        return str(self.state["stage"])

    @property
    def step(self) -> int:
        return int(self.state["step"])


def save_checkpoint(
    run_folder: Path,
    *,
    state: Mapping[str, Any],
    parameters: Arrays,
    optimizer: Arrays,
    reference: Arrays | None,
    tokenizer_json: str | None,
    best: bool = False,
) -> Path:
    """Write `checkpoints/{stage}-{step:06d}` and make it the latest, and the best where it is.

    A FaiscaError leaves the earlier checkpoints as they were.
    """
    files = {
        "model.safetensors": safetensors.numpy.save(dict(parameters)),
        "optimizer.safetensors": safetensors.numpy.save(dict(optimizer)),
        "state.json": (json.dumps({"format": FORMAT} | dict(state), indent=2, ensure_ascii=False) + "\n").encode(),
    }
    if reference is not None:
        files["reference.safetensors"] = safetensors.numpy.save(dict(reference))
    if tokenizer_json is not None:
        files["tokenizer.json"] = tokenizer_json.encode()
    target = run_folder / "checkpoints" / f"{state['stage']}-{state['step']:06d}"
    temporary = target.with_name(f".saving-{target.name}-{os.getpid()}")
    try:
        _write_folder(temporary, files)
        _swap(temporary, target)
        for name in [LATEST] + [BEST] * best:
            write_atomically(run_folder / name, f"{target.relative_to(run_folder).as_posix()}\n".encode())
        flush_folder(run_folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise FaiscaError(
            f"checkpoint {target} cannot be saved ({error.strerror}): make room or name another folder with --out; "
            "earlier checkpoints are as they were, and --resume continues from the newest"
        ) from error
    return target


def load_checkpoint(path: Path, say: Callable[[str], None] = print) -> Checkpoint:
    """The checkpoint at `path`: a checkpoint folder, or a run folder, see `find_checkpoint`."""
    folder = find_checkpoint(path, say)
    reference, tokenizer = folder / "reference.safetensors", folder / "tokenizer.json"
    return Checkpoint(
        folder=folder,
        state=read_state(folder),
        parameters=safetensors.numpy.load_file(folder / "model.safetensors"),
        optimizer=safetensors.numpy.load_file(folder / "optimizer.safetensors"),
        reference=safetensors.numpy.load_file(reference) if reference.is_file() else None,
        tokenizer_json=tokenizer.read_text() if tokenizer.is_file() else None,
    )


def find_checkpoint(path: Path, say: Callable[[str], None] = print) -> Path:
    """The folder of a good checkpoint: `path` itself, or the newest one of the run folder `path`.

    A damaged checkpoint of a run is named through `say` and the one before it is taken; a damaged
    checkpoint that was named itself is an error.
    """
    if (path / "checkpoints").is_dir():
        return _newest_good(path, say)
    if not path.is_dir() or not (path / MANIFEST).is_file():
        raise FaiscaError(f"{path} is no checkpoint: name a run folder, or one of its checkpoints/STAGE-STEP folders")
    problems = find_damage(path)
    if problems:
        raise VerificationError(f"checkpoint {path} is damaged ({problems[0]}): use an earlier one of its run")
    return path


def read_state(folder: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint folder says."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    if state.get("format") != FORMAT:
        raise FaiscaError(
            f"checkpoint {folder} has format {state.get('format')}, but this version reads {FORMAT}: update faisca-mlx"
        )
    return state


def find_damage(folder: Path) -> list[str]:
    """What is wrong with a checkpoint folder, one text a file; empty where every checksum matches."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        wanted = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read: {type(error).__name__}"]
    problems = []
    for name, (size, digest) in wanted.items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
        elif _sha256(file.read_bytes()) != digest:
            problems.append(f"{name} does not match its checksum")
    required = {"model.safetensors", "optimizer.safetensors", "state.json"}
    return problems + [f"{MANIFEST} does not list {name}" for name in sorted(required - set(wanted))]


def checkpoint_folders(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in (run_folder / "checkpoints").iterdir() if re.fullmatch(r"\w+-\d{6,}", path.name)]
    return sorted((path for path in found if _order(path)[0] >= 0), key=_order)


def prune_checkpoints(run_folder: Path, keep: int, ends: set[Path]) -> None:
    """Delete checkpoints along the way: all before the last end of a stage, and the oldest beyond `keep`.

    The ends of stages stay, and so does the best checkpoint.
    """
    folders = checkpoint_folders(run_folder)
    spare = ends | {run_folder / read_pointer(run_folder / BEST)}
    last_end = max((folders.index(end) for end in ends if end in folders), default=-1)
    old = folders[: last_end + 1] + folders[last_end + 1 : -keep]
    for folder in (path for path in old if path not in spare):
        doomed = folder.with_name(f".deleting-{folder.name}")
        folder.replace(doomed)  # a half-deleted checkpoint must not look like one
        shutil.rmtree(doomed)


def read_pointer(path: Path) -> str:
    """The checkpoint that `latest` or `best` names, relative to the run folder; a dot where there is no file."""
    return path.read_text(errors="replace").strip() if path.is_file() else "."


def remove_leftovers(run_folder: Path) -> None:
    """Delete what a crash left half-written or half-deleted."""
    for path in [*run_folder.glob("checkpoints/.*"), *run_folder.glob(".*.tmp")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _newest_good(run_folder: Path, say: Callable[[str], None]) -> Path:
    folders = checkpoint_folders(run_folder)
    latest = run_folder / LATEST
    if latest.is_file():
        named = run_folder / read_pointer(latest)
        if named in folders:
            folders = folders[: folders.index(named) + 1]
        else:
            say(f"{latest} names no checkpoint of this run: taking the newest one")
    elif folders:
        say(f"{latest} is missing: taking the newest checkpoint")
    for folder in reversed(folders):
        problems = find_damage(folder)
        if not problems:
            return folder
        say(f"checkpoint {folder} is damaged ({problems[0]}): trying the one before it")
    raise FaiscaError(f"{run_folder} has no good checkpoint: start the run anew, with another --out")


def _order(folder: Path) -> tuple[int, int]:
    stage, _, step = folder.name.rpartition("-")
    return (STAGES.index(stage) if stage in STAGES else -1, int(step))


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        write_flushed(folder / name, content)
    entries = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in files.items()}
    write_flushed(folder / MANIFEST, (json.dumps({"format": FORMAT, "files": entries}, indent=2) + "\n").encode())
    flush_folder(folder)


def _swap(temporary: Path, target: Path) -> None:
    """Put `temporary` in the place of `target`, which a resumed run may write a second time."""
    if target.exists():
        old = target.with_name(f".replaced-{target.name}-{os.getpid()}")
        target.replace(old)
        temporary.replace(target)
        shutil.rmtree(old)
    else:
        temporary.replace(target)
    flush_folder(target.parent)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
