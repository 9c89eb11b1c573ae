"""The files of one checkpoint folder: written to disk, listed with their checksums, read only if they match.

`manifest.json` has the size and SHA-256 of every other file. Reading takes each file once and
checks those very bytes, so nothing can change between the check and the use; files that the
manifest does not list do not exist for the reader.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from faisca.system.files import flush_folder, write_flushed

FORMAT = 1
MANIFEST = "manifest.json"
REQUIRED = ("model.safetensors", "optimizer.safetensors", "state.json")


def write_files(folder: Path, files: Mapping[str, bytes | Iterable[bytes]]) -> None:
    """Make `folder` with these files, whole or in pieces, and their manifest, all of it on disk at return."""
    folder.mkdir(parents=True)
    entries = {name: _write(folder / name, content) for name, content in files.items()}
    write_flushed(folder / MANIFEST, [(json.dumps({"format": FORMAT, "files": entries}, indent=2) + "\n").encode()])
    flush_folder(folder)


def read_files(folder: Path, keep: bool = True) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files of a checkpoint folder by name, and what is wrong with those that are damaged, by name too.

    Without `keep`, files of arrays are checked a piece at a time, and are not among those returned.
    """
    try:
        entries = _read_manifest(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, {MANIFEST: f"{MANIFEST} cannot be read: {type(error).__name__}"}
    files, problems = {}, {name: f"{MANIFEST} does not list {name}" for name in REQUIRED if name not in entries}
    for name, (size, digest) in entries.items():
        try:
            if keep or not name.endswith(".safetensors"):
                files[name] = (folder / name).read_bytes()
                found = len(files[name]), sha256(files[name])
            else:
                found = _measured(folder / name)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            problems[name] = f"{name} is missing" if missing else f"{name} cannot be read: {error.strerror}"
            continue
        if found[0] != size:
            problems[name] = f"{name} has {found[0]} bytes instead of {size}"
        elif found[1] != digest:
            problems[name] = f"{name} does not match its checksum"
    return files, problems


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes | Iterable[bytes]) -> dict[str, Any]:
    """Write a file, and say what the manifest says of it."""
    digest, size = hashlib.sha256(), 0

    def pieces() -> Iterator[bytes]:
        nonlocal size
        for piece in [content] if isinstance(content, bytes) else content:
            digest.update(piece)
            size += len(piece)
            yield piece

    write_flushed(path, pieces())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _measured(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Size and checksum by file name; ValueError for a name that leads out of the folder."""
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    for name in entries:
        if Path(name).name != name or "\0" in name:
            raise ValueError(f"{name!r} is not the name of a file")
    return entries
