"""`latest` and `best` in a run's folder: small files that name a checkpoint."""

import os
import shlex
from pathlib import Path

from faisca.runs.manifest import MANIFEST
from faisca.system.files import flush_folder, write_atomically

LATEST = "latest"
BEST = "best"


def write_pointers(run_folder: Path, latest: str, best: str | None) -> None:
    """Name the latest checkpoint and the best one, where there is one, in the run folder."""
    pointers = {LATEST: latest} | ({} if best is None else {BEST: best})
    for name, checkpoint in pointers.items():
        write_atomically(run_folder / name, f"checkpoints/{checkpoint}\n".encode())
    flush_folder(run_folder)


def read_pointer(path: Path) -> str:
    """The checkpoint that `latest` or `best` names, relative to the run folder; a dot where there is no file."""
    return path.read_text(errors="replace").strip() if os.path.isfile(path) else "."


def way_on(run_folder: Path) -> str:
    """What to do once a run can no longer write in its folder, in words: what is saved there is as it was."""
    newest = run_folder / read_pointer(run_folder / LATEST)
    if not os.path.isfile(newest / MANIFEST):
        return "choose another --out"
    return f"mend that, then --resume {shlex.quote(str(run_folder))} continues from {newest.name}, which is as it was"
