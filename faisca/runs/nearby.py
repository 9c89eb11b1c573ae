"""What a path is that was taken for a checkpoint and is none: the message says it, and what to do.

No library is imported here: options are checked before anything heavy is.
"""

import os
import re
import shlex
from itertools import count
from pathlib import Path

from faisca.errors import FaiscaError

WEIGHTS = (".safetensors", ".npz", ".pt", ".pth", ".bin")
"""how weights files end"""
MOST = 4
"""runs that a message names"""


def no_checkpoint(path: Path) -> FaiscaError:
    """The error for a path at which a checkpoint should be."""
    if adapter := adapter_words(path):
        return FaiscaError(f"{path} is no checkpoint: {adapter}")
    foreign = "a Hugging Face folder" if os.path.isfile(path / "config.json") else ""
    if path.suffix in WEIGHTS and os.path.isfile(path):
        foreign = "a weights file"
    if foreign:
        return FaiscaError(
            f"{path} is {foreign}, and this is no checkpoint: port it first, "
            f"as in faisca port {shlex.quote(str(path))} {shlex.quote(str(_free(path)))} --to faisca"
        )
    wanted = "name a run folder, or one of its checkpoints/STAGE-STEP folders"
    return FaiscaError(f"{path} is no checkpoint: {wanted}{runs_nearby(path)}{hub_words(path)}")


def _free(path: Path) -> Path:
    """A run folder that does not exist yet, for what is ported from a path."""
    name = path.resolve().stem
    return next(run for n in count(1) if not os.path.lexists(run := Path("runs") / (name if n == 1 else f"{name}-{n}")))


def adapter_words(folder: Path) -> str:
    """What to do with a folder of LoRA weights; empty where it is none."""
    if not os.path.isfile(folder / "adapter_config.json"):
        return ""
    merge = "peft: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().save_pretrained(MERGED)"
    if os.path.isfile(folder / "adapters.safetensors"):
        merge = f"python -m mlx_lm fuse --model BASE --adapter-path {folder} --save-path MERGED"
    return f"it has LoRA weights, changes to another model: merge them into it, and port what comes out ({merge})"


def looks_like_id(path: Path) -> bool:
    """Whether a path that does not exist may be the id of a model of the Hugging Face hub."""
    looks = re.fullmatch(r"(?!runs/)\w[\w.-]*/[\w.-]+|(distil)?gpt2[\w-]*", path.as_posix())
    return bool(looks) and path.suffix not in WEIGHTS and not os.path.exists(path.parts[0])


def hub_words(path: Path) -> str:
    """How to bring in a model of the hub, where a path looks like one's id."""
    port = f"faisca port {path} runs/{path.name} --to faisca"
    return f"; if it is a model of the Hugging Face hub, port it first: {port}" if looks_like_id(path) else ""


def runs_nearby(path: Path) -> str:
    """The newest runs at a path, beside it, and in runs/, as the end of a message; empty where there are none."""
    places = dict.fromkeys((path, path.parent, Path("runs")))
    folders = {run for place in places if os.path.isdir(place) for run in run_folders(place)}
    if not folders:
        return ""
    newest = sorted(folders, key=lambda run: os.path.getmtime(run / "checkpoints"), reverse=True)
    names = [run.as_posix() for run in newest[:MOST]]
    return f"; nearby: {', '.join(names)}" + ", …" * (len(newest) > MOST)


def run_folders(folder: Path, depth: int = 1) -> list[Path]:
    """The run folders below `folder`, and itself if it is one: those that have a folder `checkpoints`."""
    below = (path for level in range(depth + 1) for path in folder.glob("*/" * level + "checkpoints"))
    return sorted(path.parent for path in below if path.is_dir())
