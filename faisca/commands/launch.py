"""`faisca launch`: a training command in several processes of this machine, started by a framework's own launcher."""

import os
import shlex
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from faisca.commands.parse import parse
from faisca.commands.train import prepared
from faisca.errors import FaiscaError
from faisca.processes.join import check_divisible
from faisca.processes.launched import STATUSES, TOGETHER, launched

FAILED = 2
"""the status of a process that left none"""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Options of `faisca launch`, before the command."""

    processes: Annotated[int, arg(aliases=("-n",), metavar="N")] = 2
    """how many processes train together"""
    backend: Annotated[str, arg(metavar="torch|mlx", help_behavior_hint="(default: as the command says)")] = ""
    """whose launcher starts them, torchrun or mlx.launch, and what they compute with"""
    hostfile: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """machines of mlx.launch, one process each; for torchrun on several machines see docs/scaling.md"""


def launch(argv: list[str]) -> int:
    """Train in several processes, which share the rows of each step and average its gradients:
    the same model comes out as from one process. Torch's are started by torchrun, MLX's by
    mlx.launch; the command that does it is printed, for use without faisca launch.

    examples:
      faisca launch -n 2 run --preset spark
      faisca launch -n 4 --backend mlx run --preset modern --data headlines.parquet
      faisca launch -n 2 run --resume runs/spark
    """
    own, command, rest = _split(argv)
    options = parse(LaunchOptions, own, command="launch", help=launch.__doc__)
    if found := launched():
        raise FaiscaError(f"faisca launch starts processes itself: leave {found.launcher} out")
    if options.processes < 2:
        raise FaiscaError(f"--processes {options.processes} is no launch: use at least 2, or leave faisca launch out")
    if not command:
        raise FaiscaError(
            f"faisca launch needs a command to launch, as in faisca launch -n 2 run: {', '.join(TOGETHER)}"
        )
    rest += ["--backend", options.backend] if options.backend else []
    config, backend = prepared(command, rest)  # what is wrong with them is said before anything is started
    check_divisible(config, options.processes)
    words = launcher(backend, options.processes, options.hostfile)
    words += ["-m", "faisca", command, *rest, *([] if options.backend else ["--backend", backend])]
    print(f"launch: {shlex.join(words)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="faisca-") as statuses:
        return _run(words, os.environ | _threads(options.processes) | {STATUSES: statuses}, options, Path(statuses))


def _split(argv: list[str]) -> tuple[list[str], str, list[str]]:
    """Our options, the command, and the command's options."""
    at = next((i for i, word in enumerate(argv) if word in TOGETHER), len(argv))
    return argv[:at], "".join(argv[at : at + 1]), argv[at + 1 :]


def launcher(backend: str, processes: int, hostfile: Path | None = None) -> list[str]:
    """The words before a script, or before -m and a module, that start so many processes of it."""
    if backend == "torch":
        if hostfile is not None:
            raise FaiscaError("--hostfile is for mlx.launch: start torchrun on each machine, see docs/scaling.md")
        here = ["--standalone", "--nproc-per-node", str(processes)]
        return [sys.executable, "-m", "torch.distributed.run", *here]
    mlx = str(Path(sysconfig.get_path("scripts")) / "mlx.launch")
    if hostfile is not None:
        return [mlx, "--hostfile", str(hostfile), "--", sys.executable]
    return [mlx, "-n", str(processes), "--starting-port", str(free_ports(processes)), "--", sys.executable]


def _threads(processes: int) -> Mapping[str, str]:
    """Each process its share of the cores, unless the user has said otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    print(f"launch: {threads} of the CPU's cores for each process (OMP_NUM_THREADS changes it)", flush=True)
    return {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}


def _run(words: list[str], environment: Mapping[str, str], options: LaunchOptions, statuses: Path) -> int:
    """Wait for the launcher; the largest status that its processes left, for mlx.launch itself always has 0."""
    process = subprocess.Popen(words, env=dict(environment))
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:  # the processes have had it too: they save, and end
            continue
    left = [int(path.read_text()) for path in statuses.iterdir()]
    if options.hostfile is None and len(left) < options.processes:
        left.append(FAILED)
    return max([*left, 1 if status and not any(left) else 0])


def free_ports(count: int, first: int = 32323) -> int:
    """The first of so many ports in a row that nobody listens to."""
    for port in range(first, 60000, count):
        with ExitStack() as stack:
            try:
                for one in range(port, port + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", one)))
            except OSError:  # somebody's
                continue
        return port
    raise FaiscaError(f"no {count} ports in a row are free here: end what listens to them")
