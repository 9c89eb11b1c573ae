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

FORMAT = 1
MANIFEST = "manifest.json"
LATEST = "latest"
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
) -> Path:
    """Write `checkpoints/{stage}-{step:06d}` and make it the latest; a FaiscaError leaves the old ones as they were."""
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
        _write_file(run_folder / f".{LATEST}-{os.getpid()}", f"{target.relative_to(run_folder).as_posix()}\n".encode())
        (run_folder / f".{LATEST}-{os.getpid()}").replace(run_folder / LATEST)
        _flush_folder(run_folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise FaiscaError(
            f"checkpoint {target} cannot be saved ({error.strerror}): make room or name another folder with --out; "
            "earlier checkpoints are as they were, and --resume continues from the newest"
        ) from error
    return target


def load_checkpoint(path: Path, say: Callable[[str], None] = print) -> Checkpoint:
    """The checkpoint at `path`, a checkpoint folder or a run folder (its newest good one).

    A damaged checkpoint of a run is named through `say` and the one before it is taken; a damaged
    checkpoint named itself is an error.
    """
    if (path / "checkpoints").is_dir():
        return _load_newest_good(path, say)
    if not path.is_dir() or not (path / MANIFEST).is_file():
        raise FaiscaError(f"{path} is no checkpoint: name a run folder, or one of its checkpoints/STAGE-STEP folders")
    problems = find_damage(path)
    if problems:
        raise VerificationError(f"checkpoint {path} is damaged ({problems[0]}): use an earlier one of its run")
    return _read(path)


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


def prune_checkpoints(run_folder: Path, keep: int, spare: set[Path]) -> None:
    """Delete the oldest checkpoints beyond `keep`; those in `spare` stay and do not count."""
    for folder in [path for path in checkpoint_folders(run_folder) if path not in spare][:-keep]:
        doomed = folder.with_name(f".deleting-{folder.name}")
        folder.replace(doomed)  # a half-deleted checkpoint must not look like one
        shutil.rmtree(doomed)


def remove_leftovers(run_folder: Path) -> None:
    """Delete what a crash left half-written or half-deleted."""
    for path in [*run_folder.glob("checkpoints/.*"), *run_folder.glob(f".{LATEST}-*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _load_newest_good(run_folder: Path, say: Callable[[str], None]) -> Checkpoint:
    folders = checkpoint_folders(run_folder)
    latest = run_folder / LATEST
    if latest.is_file():
        named = run_folder / latest.read_text(errors="replace").strip()
        if named in folders:
            folders = folders[: folders.index(named) + 1]
        else:
            say(f"{latest} names no checkpoint of this run: taking the newest one")
    elif folders:
        say(f"{latest} is missing: taking the newest checkpoint")
    for folder in reversed(folders):
        problems = find_damage(folder)
        if not problems:
            return _read(folder)
        say(f"checkpoint {folder} is damaged ({problems[0]}): trying the one before it")
    raise FaiscaError(f"{run_folder} has no good checkpoint yet: start the run anew with another --out")


def _read(folder: Path) -> Checkpoint:
    state = json.loads((folder / "state.json").read_text())
    if state.get("format") != FORMAT:
        raise FaiscaError(f"checkpoint {folder} has format {state.get('format')}, this version reads {FORMAT}: update")
    reference, tokenizer = folder / "reference.safetensors", folder / "tokenizer.json"
    return Checkpoint(
        folder=folder,
        state=state,
        parameters=safetensors.numpy.load_file(folder / "model.safetensors"),
        optimizer=safetensors.numpy.load_file(folder / "optimizer.safetensors"),
        reference=safetensors.numpy.load_file(reference) if reference.is_file() else None,
        tokenizer_json=tokenizer.read_text() if tokenizer.is_file() else None,
    )


def _order(folder: Path) -> tuple[int, int]:
    stage, _, step = folder.name.rpartition("-")
    return (STAGES.index(stage) if stage in STAGES else -1, int(step))


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        _write_file(folder / name, content)
    entries = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in files.items()}
    _write_file(folder / MANIFEST, (json.dumps({"format": FORMAT, "files": entries}, indent=2) + "\n").encode())
    _flush_folder(folder)


def _swap(temporary: Path, target: Path) -> None:
    """Put `temporary` in the place of `target`, which a resumed run may write a second time."""
    if target.exists():
        old = target.with_name(f".replaced-{target.name}-{os.getpid()}")
        target.replace(old)
        temporary.replace(target)
        shutil.rmtree(old)
    else:
        temporary.replace(target)
    _flush_folder(target.parent)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
