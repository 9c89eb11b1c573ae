"""Who started this process, and how many like it there are: read from the environment, before anything is imported."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from faisca.errors import FaiscaError

TOGETHER = ("run", "pretrain", "sft", "grpo")
"""commands that several processes can do together"""
STATUSES = "FAISCA_STATUSES"
"""names the folder in which processes of `faisca launch` leave their status"""


@dataclass(frozen=True)
class Launched:
    """One process of several."""

    launcher: str
    engine: str
    """the backend whose framework carries what they say to one another"""
    rank: int
    size: int
    host: str
    """where process 0 can be reached"""


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """What torchrun, mlx.launch or mpirun says of this process; None where it is alone."""
    found = _torchrun(environment) or _mlx(environment)
    return found if found is not None and found.size > 1 else None


def first_process() -> bool:
    """Whether this process writes and prints: it is alone, or process 0."""
    try:
        found = launched()
    except FaiscaError:  # of an environment that cannot be read, which was said
        return True
    return found is None or found.rank == 0


def leave_status(status: int) -> None:
    """For `faisca launch`: how this process ended."""
    folder, found = Path(os.environ[STATUSES]), launched()
    if found is not None and folder.is_dir():
        (folder / str(found.rank)).write_text(str(status))


def _torchrun(environment: Mapping[str, str]) -> Launched | None:
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        return None
    rank, size = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
    return Launched("torchrun", "torch", rank, size, environment["MASTER_ADDR"])


def _mlx(environment: Mapping[str, str]) -> Launched | None:
    """As mlx.launch sets it: a file of addresses (ring), a coordinator (jaccl), NCCL's, or what mpirun says."""
    if "OMPI_COMM_WORLD_SIZE" in environment:
        rank, size = (_number(environment, f"OMPI_COMM_WORLD_{name}") for name in ("RANK", "SIZE"))
        return Launched("mpirun", "mlx", rank, size, environment.get("FAISCA_HOST", "127.0.0.1"))
    if "MLX_RANK" not in environment:
        return None
    rank = _number(environment, "MLX_RANK")
    if "MLX_HOSTFILE" in environment:
        addresses = _listed(environment, "MLX_HOSTFILE")
        first = addresses[0][0] if addresses else ""
        return Launched("mlx.launch", "mlx", rank, len(addresses), first.rpartition(":")[0])
    if "MLX_IBV_DEVICES" in environment:
        host = environment.get("MLX_JACCL_COORDINATOR", "").rpartition(":")[0]
        return Launched("mlx.launch", "mlx", rank, len(_listed(environment, "MLX_IBV_DEVICES")), host)
    if {"MLX_WORLD_SIZE", "NCCL_HOST_IP"} <= environment.keys():
        return Launched("mlx.launch", "mlx", rank, _number(environment, "MLX_WORLD_SIZE"), environment["NCCL_HOST_IP"])
    return None


def _listed(environment: Mapping[str, str], name: str) -> list[list[str]]:
    """The list in the JSON file that a variable names; mlx.launch leaves it empty for one process."""
    path = Path(environment[name])
    try:
        return list(json.loads(path.read_text(encoding="utf-8") or "[]"))
    except (OSError, ValueError) as error:
        raise FaiscaError(f"{name} {path} cannot be read as a list in JSON: let mlx.launch write it") from error


def _number(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdigit():
        raise FaiscaError(f"{name} {environment[name]!r} is no number: start the processes with torchrun or mlx.launch")
    return int(environment[name])
