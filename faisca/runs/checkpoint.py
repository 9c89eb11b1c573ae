"""A run's checkpoints: whole or absent, and free of the framework and device that wrote them.

A checkpoint is a folder of safetensors and JSON (`docs/checkpoints.md` is the format). It is
written under a temporary name, flushed to disk and renamed, so a crash leaves either the old
state or the new one; what does not match its checksums is named and never loaded. No pickle
anywhere, so loading a stranger's checkpoint runs no code.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from faisca.config import STAGES, adapter_of
from faisca.errors import FaiscaError, VerificationError
from faisca.runs.base import open_base
from faisca.runs.checks import check_weights
from faisca.runs.manifest import FORMAT, MANIFEST, read_files, write_files
from faisca.runs.nearby import no_checkpoint
from faisca.runs.pointers import BEST, LATEST, read_pointer, way_on, write_pointers
from faisca.runs.state import State
from faisca.system.files import flush_folder
from faisca.system.tensors import Tensors, check_finite, finite, open_safetensors, stored_chunks
from faisca.text import json_text

SET_ASIDE = ".replaced-"
NOTHING_SEEN = np.array([], np.uint64)
Arrays = Mapping[str, np.ndarray]
Say = Callable[[str], None]


def warn(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds, verified against its manifest."""

    folder: Path
    state: State = field(repr=False)
    parameters: Arrays = field(repr=False)
    """of the whole model: where the checkpoint holds an adapter alone, with the base that it belongs to"""
    optimizer: dict[str, np.ndarray] = field(repr=False)
    reference: dict[str, np.ndarray] | None = field(repr=False)
    """GRPO's frozen model"""
    tokenizer_files: dict[str, bytes] = field(repr=False)
    """tokenizer.json, and what belongs to it, by name; none where the tokenizer is GPT-2's"""
    seen: np.ndarray = field(repr=False)
    """hashes of the titles that it was trained on, uint64 [n]; none where an older version wrote it"""


def save_checkpoint(
    run_folder: Path,
    state: State,
    arrays: Mapping[str, Arrays | Iterable[bytes]],
    *,
    tokenizer_files: Mapping[str, bytes],
    best: str | None = None,
) -> Path:
    """Write `checkpoints/{stage}-{step:06d}` and make it the latest; `best` names the best one.

    `arrays` are those of `NAME.safetensors` by NAME: `model`, `optimizer`, in GRPO `reference`, and `seen`;
    or the bytes of that file, piece by piece.
    A FaiscaError leaves the earlier checkpoints as they were.
    """
    files: dict[str, bytes | Iterable[bytes]] = {
        f"{name}.safetensors": stored_chunks(content) if isinstance(content, Mapping) else content
        for name, content in arrays.items()
    }
    files |= {"state.json": (json_text(state.to_json(), indent=2) + "\n").encode(), **tokenizer_files}
    target = run_folder / "checkpoints" / state.progress.name
    temporary = target.with_name(f".saving-{target.name}-{os.getpid()}")
    try:
        write_files(temporary, files)
        _swap(temporary, target)
        write_pointers(run_folder, target.name, best)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise FaiscaError(f"checkpoint {target} cannot be saved ({error.strerror}): {way_on(run_folder)}") from error
    return target


def load_checkpoint(path: Path, say: Say = warn) -> Checkpoint:
    """The checkpoint at `path`: a checkpoint folder, or a run folder, see `find_checkpoint`."""
    folder, files = _find(path, say)
    state = _parse_state(folder, files["state.json"])
    arrays = {name: _parse_arrays(folder, name, files[name]) for name in files if name.endswith(".safetensors")}
    parameters: Arrays = arrays["model.safetensors"]
    if adapter_of(state.model):
        parameters = Tensors.joined([open_base(folder, state.base_sha256, state.model), Tensors.of(parameters)])
    check_weights(folder, parameters, state.model)
    check_finite(arrays["model.safetensors"], folder / "model.safetensors")
    return Checkpoint(
        folder=folder,
        state=state,
        parameters=parameters,
        optimizer=arrays["optimizer.safetensors"],
        reference=arrays.get("reference.safetensors"),
        tokenizer_files=_tokenizer_files(files),
        seen=arrays.get("seen.safetensors", {}).get("titles", NOTHING_SEEN),
    )


def open_checkpoint(path: Path, say: Say = warn) -> Checkpoint:
    """As `load_checkpoint`, for weights alone: each is read when it is asked for, and checked to be finite then.

    The files are verified one piece at a time, so that none of them is in memory as a whole.
    """
    folder, files = _find(path, say, keep=False)
    state, weights = _parse_state(folder, files["state.json"]), folder / "model.safetensors"
    try:
        parameters = open_safetensors(weights)[0]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise _unreadable(folder, weights.name, error) from error
    parameters = finite(parameters, weights)
    if adapter_of(state.model):
        parameters = Tensors.joined([open_base(folder, state.base_sha256, state.model), parameters])
    check_weights(folder, parameters, state.model)
    return Checkpoint(folder, state, parameters, {}, None, _tokenizer_files(files), NOTHING_SEEN)


def find_checkpoint(path: Path, say: Say = warn) -> Path:
    """The folder of a good checkpoint: `path` itself, or the newest one of the run folder `path`.

    A damaged checkpoint of a run is named through `say` and the one before it is taken; a damaged
    checkpoint that was named itself is an error.
    """
    return _find(path, say, keep=False)[0]


def read_state(folder: Path) -> State:
    """What `state.json` of a checkpoint folder says."""
    return _parse_state(folder, (folder / "state.json").read_bytes())


def checkpoint_folders(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first.

    One that a crash caught while it was being replaced still lies beside its place, under another name.
    """
    found = {path.name: path for path in (run_folder / "checkpoints").iterdir()}
    beside = {name.removeprefix(SET_ASIDE): path for name, path in found.items() if name.startswith(SET_ASIDE)}
    found = beside | found
    names = [name for name in found if re.fullmatch(r"\w+-\d{6,}", name) and _order(name)[0] >= 0]
    return [found[name] for name in sorted(names, key=_order)]


def prune_checkpoints(run_folder: Path, keep: int, ends: set[Path], newest: Path) -> None:
    """Delete checkpoints along the way: all before the last end of a stage, and the oldest beyond `keep`.

    The ends of stages stay, and so does the best checkpoint. What comes after `newest`, just
    saved, is of a future that the run has gone back from: it goes as well.
    """
    folders = checkpoint_folders(run_folder)
    until = folders.index(newest) + 1
    folders, abandoned = folders[:until], folders[until:]
    spare = ends | {run_folder / read_pointer(run_folder / BEST)}
    last_end = max((folders.index(end) for end in ends if end in folders), default=-1)
    old = folders[: last_end + 1] + folders[last_end + 1 : -keep]
    for folder in [path for path in old if path not in spare] + abandoned:
        doomed = folder.with_name(f".deleting-{folder.name}")
        folder.replace(doomed)  # a half-deleted checkpoint must not look like one
        shutil.rmtree(doomed)


def remove_leftovers(run_folder: Path) -> None:
    """Delete what a crash left half-written or half-deleted; only the run that holds the folder may."""
    for path in run_folder.glob(f"checkpoints/{SET_ASIDE}*"):
        place = path.with_name(path.name.removeprefix(SET_ASIDE))
        if not place.exists():
            path.replace(place)
    for path in [*run_folder.glob("checkpoints/.*"), *run_folder.glob(".*.tmp")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _find(path: Path, say: Say, keep: bool = True) -> tuple[Path, dict[str, bytes]]:
    """A good checkpoint's folder and files, see `find_checkpoint`; those with arrays only where they are to `keep`."""
    if os.path.isdir(path / "checkpoints"):  # False, not an error, where a name is impossible
        return _newest_good(path, say, keep)
    if not os.path.isfile(path / MANIFEST):
        raise no_checkpoint(path)
    files, problems = read_files(path, keep)
    if problems:
        raise VerificationError(f"checkpoint {path} is damaged ({_first(problems)}): use an earlier one of its run")
    return path, files


def _newest_good(run_folder: Path, say: Say, keep: bool) -> tuple[Path, dict[str, bytes]]:
    pointer = read_pointer(run_folder / LATEST)
    for folder in reversed(_candidates(run_folder, pointer, say)):
        files, problems = read_files(folder, keep)
        if not problems:
            return folder, files
        if pointer != read_pointer(run_folder / LATEST):  # a run at work here has deleted it meanwhile
            return _newest_good(run_folder, say, keep)
        say(f"checkpoint {folder} is damaged ({_first(problems)}): trying the one before it")
    raise FaiscaError(f"{run_folder} has no good checkpoint: start the run anew, with another --out")


def _candidates(run_folder: Path, pointer: str, say: Say) -> list[Path]:
    """The checkpoints up to the one that `latest` points to, oldest first; all where it points to none."""
    folders, latest = checkpoint_folders(run_folder), run_folder / LATEST
    if run_folder / pointer in folders:
        return folders[: folders.index(run_folder / pointer) + 1]
    if folders:
        problem = "names no checkpoint of this run" if latest.is_file() else "is missing"
        say(f"{latest} {problem}: taking the newest checkpoint")
    return folders


def _order(name: str) -> tuple[int, int]:
    stage, _, step = name.rpartition("-")
    return (STAGES.index(stage) if stage in STAGES else -1, int(step))


def _parse_state(folder: Path, content: bytes) -> State:
    try:
        values: dict[str, Any] = json.loads(content)
        written = values.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise FaiscaError(f"checkpoint {folder} has a state.json that is no JSON object: take another one") from error
    if written != FORMAT:
        raise FaiscaError(
            f"checkpoint {folder} has format {written}, but this version reads {FORMAT}: update faisca-mlx"
        )
    try:
        return State.from_json(values)
    except FaiscaError as error:
        raise FaiscaError(f"checkpoint {folder}: {error}") from error


def _parse_arrays(folder: Path, name: str, content: bytes) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(folder, name, error) from error


def _unreadable(folder: Path, name: str, error: Exception) -> FaiscaError:
    return FaiscaError(f"checkpoint {folder} has a {name} that cannot be read ({error}): take another one")


def _tokenizer_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """All but arrays and state."""
    return {name: files[name] for name in files if name != "state.json" and not name.endswith(".safetensors")}


def _first(problems: Mapping[str, str]) -> str:
    return next(iter(problems.values()))


def _swap(temporary: Path, target: Path) -> None:
    """Put `temporary` in the place of `target`, which a resumed run may write a second time."""
    aside = target.with_name(f"{SET_ASIDE}{target.name}")
    if target.exists():
        target.replace(aside)
    temporary.replace(target)
    flush_folder(target.parent)
    if aside.exists():
        shutil.rmtree(aside)
