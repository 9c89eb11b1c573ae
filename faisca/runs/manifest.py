"""The files of one checkpoint folder: written to disk, listed with their checksums, read only if they match.

`manifest.json` has the size and SHA-256 of every other file. Reading takes each file once and
checks those very bytes, so nothing can change between the check and the use; files that the
manifest does not list do not exist for the reader.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faisca.system.files import flush_folder, write_flushed

FORMAT = 1
MANIFEST = "manifest.json"
REQUIRED = ("model.safetensors", "optimizer.safetensors", "state.json")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` with these files and their manifest, all of it on disk at return."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        write_flushed(folder / name, content)
    entries = {name: {"bytes": len(content), "sha256": sha256(content)} for name, content in files.items()}
    write_flushed(folder / MANIFEST, (json.dumps({"format": FORMAT, "files": entries}, indent=2) + "\n").encode())
    flush_folder(folder)


def read_files(folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files of a checkpoint folder by name, and what is wrong with those that are damaged, by name too."""
    try:
        entries = _read_manifest(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, {MANIFEST: f"{MANIFEST} cannot be read: {type(error).__name__}"}
    files, problems = {}, {name: f"{MANIFEST} does not list {name}" for name in REQUIRED if name not in entries}
    for name, (size, digest) in entries.items():
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            problems[name] = f"{name} is missing" if missing else f"{name} cannot be read: {error.strerror}"
            continue
        if len(files[name]) != size:
            problems[name] = f"{name} has {len(files[name])} bytes instead of {size}"
        elif sha256(files[name]) != digest:
            problems[name] = f"{name} does not match its checksum"
    return files, problems


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _read_manifest(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Size and checksum by file name; ValueError for a name that leads out of the folder."""
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    for name in entries:
        if Path(name).name != name or "\0" in name:
            raise ValueError(f"{name!r} is not the name of a file")
    return entries
