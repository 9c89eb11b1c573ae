"""What of a run can be played with: the newest checkpoint of each stage, and which backends are here."""

import os
from dataclasses import dataclass
from pathlib import Path

from faisca.backends import BACKENDS, choose_backend
from faisca.data.chat import has_template
from faisca.data.json_encoding import COMPANIONS
from faisca.errors import FaiscaError
from faisca.report.samples import TITLES
from faisca.runs.checkpoint import checkpoint_folders, read_state
from faisca.runs.manifest import MANIFEST
from faisca.runs.nearby import no_checkpoint
from faisca.runs.state import IMPORTED, State


@dataclass(frozen=True)
class Stage:
    """A stage's newest checkpoint."""

    name: str
    """pretrain, sft or grpo"""
    title: str
    folder: Path
    state: State
    chats: bool
    """whether its tokenizer has a chat template"""


@dataclass(frozen=True)
class Place:
    """A backend, as the page offers it."""

    name: str
    chosen: bool
    """whether its columns are shown at first"""
    problem: str
    """why it cannot play, with the remedy; empty where it can"""


def find_stages(path: Path) -> list[Stage]:
    """The stages of a run folder in order, or that of one checkpoint folder; FaiscaError where there is none."""
    path = Path(os.path.expanduser(path))
    if os.path.isfile(path / MANIFEST):
        folders = [path]
    elif (path / "checkpoints").is_dir():
        folders = checkpoint_folders(path)
    else:
        raise no_checkpoint(path)
    newest: dict[str, Path] = {}
    for folder in folders:  # oldest first
        newest[folder.name.rpartition("-")[0]] = folder
    if not newest:
        raise FaiscaError(f"{path} has no checkpoint yet: let its run save one, or name another run")
    return [_stage(folder) for folder in newest.values()]


def _stage(folder: Path) -> Stage:
    try:
        state = read_state(folder)
        beside = {name: (folder / name).read_bytes() for name in COMPANIONS if (folder / name).is_file()}
    except OSError as error:
        raise FaiscaError(f"checkpoint {folder} cannot be read ({error.strerror}): name another run") from error
    name = state.progress.stage
    title = "Imported" if state.backend == IMPORTED else TITLES[name]
    return Stage(name, title, folder, state, has_template(beside))


def find_places() -> list[Place]:
    """Every backend: the one that `auto` means is shown at first, and one that is not installed says how to get it."""
    chosen = choose_backend("auto")[0]
    return [
        Place(name, name == chosen, "" if row.installed else f"{name} is not installed here: {row.remedy}")
        for name, row in BACKENDS.items()
    ]
