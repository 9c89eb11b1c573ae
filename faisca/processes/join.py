"""Processes come together at the beginning of a run, and part at its end, together too where one of them fails."""

import hashlib
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from faisca.backend import load_backend
from faisca.backends import choose_backend
from faisca.config import Config
from faisca.errors import FaiscaError
from faisca.group import ALONE, Processes
from faisca.processes.launched import Launched, launched
from faisca.processes.watch import Watch, accept, connect, listen


@contextmanager
def processes_of(config: Config, folder: Path) -> Iterator[tuple[Processes, Path]]:
    """The processes of this launch, and the folder that this one writes to: the run's, or one that is thrown away."""
    found = launched()
    if found is None:
        if config.run.shard:
            raise FaiscaError(
                "run.shard shares weights among processes, but this one is alone: leave it out, or launch 2"
            )
        yield ALONE, folder
        return
    check_divisible(config, found.size)
    engine = load_backend(found.engine).join(rank=found.rank, size=found.size)
    processes = Processes(found.rank, found.size, engine, reduce_dtype=config.run.reduce_dtype, shard=config.run.shard)
    watch = _watch(processes, found, f"continue with --resume {shlex.quote(str(folder))}")
    try:
        backends = processes.gather(backend_here(config.run.backend)[0])
        processes = replace(processes, mixed=len({*backends, found.engine}) > 1)
        with tempfile.TemporaryDirectory(prefix="faisca-") as own:
            yield processes, folder if found.rank == 0 else Path(own)
    except FaiscaError as error:
        watch.failed(str(error))
        raise
    except KeyboardInterrupt:
        watch.finished()
        raise
    except BaseException as error:
        watch.may_be_lost()  # an exchange with a process that has gone
        watch.failed(f"{type(error).__name__}: {error}")
        raise
    watch.finished()
    engine.leave()


def backend_here(wanted: str) -> tuple[str, str]:
    """The backend that trains in this process, and the reason in words: what is asked for, or its launcher's."""
    found = launched()
    if found is None or wanted != "auto":
        return choose_backend(wanted)
    return found.engine, f"{found.launcher}'s, which started {found.size} processes"


def check_divisible(config: Config, size: int) -> None:
    """FaiscaError where so many processes cannot have equal parts of a step, or of the weights."""
    if config.run.shard:
        _check_shard(config)
    for stage in config.run.stages:
        section = getattr(config, stage)
        names = ("prompts_per_step", "minibatch_size") if stage == "grpo" else ("batch_size",)
        for name in names:
            whole = getattr(section, name)
            if whole % size:
                raise FaiscaError(f"{stage}.{name} {whole} cannot be split over {size} processes: use a multiple of it")
        part, micro = getattr(section, names[-1]) // size, section.micro_batch_size
        if micro and part % micro:
            raise FaiscaError(
                f"{stage}.micro_batch_size {micro} does not divide a process's {part} rows of {names[-1]}: "
                f"use a divisor of {part}"
            )


def _check_shard(config: Config) -> None:
    """What shared weights do not go with: matrices that a step needs as a whole, and rows that end apart."""
    for stage in config.run.stages:
        if stage == "grpo":
            raise FaiscaError("run.shard does not go with grpo, whose processes sample apart: leave one of them out")
        if getattr(config, stage).optimizer == "muon":
            raise FaiscaError(
                f"run.shard does not go with {stage}.optimizer muon, which needs whole matrices: use adamw"
            )


def check_same(processes: Processes, facts: Mapping[str, str]) -> None:
    """FaiscaError where processes would not train the same: names the first fact that differs from process 0's."""
    first, *others = processes.gather(dict(facts))
    for rank, theirs in enumerate(others, start=1):
        for name, fact in first.items():
            if theirs.get(name, fact) != fact:
                raise FaiscaError(f"process {rank} has other {name} than process 0: copy one's to the other")


def code_sha256() -> str:
    """Of all our source files."""
    root = Path(__file__).parents[2]
    files = sorted(path for name in ("faisca", "faisca_torch", "faisca_mlx") for path in (root / name).rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _watch(processes: Processes, found: Launched, remedy: str) -> Watch:
    """Connect to process 0, or be connected to; from here on this process prints nothing but in an emergency."""
    server, port = listen() if found.rank == 0 else (None, 0)
    port = processes.first(lambda: port)
    peers = accept(server, found.size) if server is not None else connect(found.rank, found.host, port)
    watch = Watch(found.rank, peers, remedy)
    if found.rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    return watch
