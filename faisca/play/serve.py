"""The server: on this machine alone, until Ctrl-C."""

import contextlib
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from faisca.config import RunConfig
from faisca.errors import FaiscaError
from faisca.loaded_model import LoadedModel, load_from
from faisca.play.app import Play
from faisca.play.guard import Guard
from faisca.play.stages import find_places, find_stages
from faisca.play.worker import Worker
from faisca.runs.checkpoint import open_checkpoint

LOOPBACK = "127.0.0.1"
MOST_CONNECTIONS = 128


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How models are opened, and where the page is."""

    device: str = "auto"
    weights: str = "float32"
    port: int = 0
    """0: any that is free"""
    browser: bool = True
    """whether it is opened in a browser"""


class _Server(uvicorn.Server):
    """A server that ends what is being written when it is asked to stop."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        threading.Thread(target=self._stop).start()  # it waits for a step of a model: not in a signal's handler


def serve(run: Path, wish: Wish, say: Callable[[str], None]) -> None:
    """Show the run's page until the process is asked to stop; `say` is told the address."""
    stages, places = find_stages(run), find_places()
    listening = listen(wish.port)
    port, token = listening.getsockname()[1], secrets.token_urlsafe(16)
    workers = [Worker(place.name, loader(place.name, wish)) for place in places if not place.problem]

    def stop() -> None:
        for worker in workers:
            worker.stop()

    app = Guard(Play(run.resolve().name, stages, places, workers).app(), token, port)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="error",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    address = f"http://{LOOPBACK}:{port}/{token}/"
    say(address)
    if wish.browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt), listening:  # uvicorn raises it again once it is done
        _Server(config, stop).run(sockets=[listening])
    stop()


def listen(port: int) -> socket.socket:
    """A socket of this machine alone; FaiscaError where the port is taken or there is none such."""
    listening = socket.socket()
    if os.name == "posix":  # a port that was used a moment ago; Windows would let two servers have it
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        why = getattr(error, "strerror", None) or str(error)
        raise FaiscaError(f"--port {port} cannot be had ({why}): choose another, or leave it to faisca") from error
    return listening


def loader(backend: str, wish: Wish) -> Callable[[Path], LoadedModel]:
    """How a backend loads a checkpoint: weights alone."""
    run = RunConfig(backend=backend, device=wish.device, weights=wish.weights)  # type: ignore[arg-type]
    return lambda folder: load_from(open_checkpoint(folder), run)
