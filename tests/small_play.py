"""What the tests of `faisca play` share: a run of three untrained stages, and its page, served in a thread."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from small_ports import small_tokenizer

from faisca.backend import Backend
from faisca.data.tokenizer import Tokenizer
from faisca.loaded_model import LoadedModel, load
from faisca.parameters import initial_parameters
from faisca.play.app import Play
from faisca.play.guard import Guard
from faisca.play.serve import Wish, listen, loader
from faisca.play.stages import Place, find_places, find_stages
from faisca.play.worker import Worker
from faisca.porting.formats import Portable, model_config
from faisca.porting.run_folders import write_run

TOKEN = "a-token"
STEPS = {"pretrain": 9, "sft": 7, "grpo": 4}
SETTINGS = {"seed": 3, "rows": 2, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "max_new_tokens": 12}
CLIENT = httpx.Client(timeout=60, verify=False, trust_env=False)
"""one for all: each would read the system's certificates, which nothing here needs"""
Load = Callable[[Path], LoadedModel]


def write_stages(folder: Path, tokenizer: Tokenizer | None = None, **model: object) -> Path:
    """A run folder with a checkpoint of each stage: random weights, large enough to prefer some tokens."""
    tokenizer = tokenizer or small_tokenizer()
    sizes = {"dim": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "context": 40}
    config = model_config({**sizes, "vocabulary_size": tokenizer.vocabulary_size, **model}, "test")
    (folder / "checkpoints").mkdir(parents=True)
    for seed, (stage, step) in enumerate(STEPS.items()):
        parameters = initial_parameters(config, seed)
        parameters["out_head.weight"] = 30 * parameters["out_head.weight"]
        computed = {"stage": stage, "step": step, "backend": "torch", "device": "cpu", "dtype": "float32", "seed": 0}
        write_run(Portable("faisca", "made here", config, parameters, tokenizer, computed), folder / stage)
    for stage in STEPS:
        (path,) = (folder / stage / "checkpoints").iterdir()
        path.rename(folder / "checkpoints" / path.name)
    return folder


def on_cpu(backend: str) -> Load:
    """How a backend loads a checkpoint here."""
    return loader(backend, Wish(device="cpu"))


class Slow:
    """A backend whose columns of tokens take a while, and never end; it counts texts that were begun, and left."""

    def __init__(self, real: Backend) -> None:
        self._real, self.begun, self.left = real, threading.Semaphore(0), threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def generate(self, **asked: Any) -> Iterator[np.ndarray]:
        self.begun.release()
        try:
            while True:
                time.sleep(0.005)
                yield np.full(len(asked["prompts"]), 5)
        except GeneratorExit:
            self.left.release()
            raise

    def load(self, backend: str) -> Load:
        """As `on_cpu`, with torch as slow as this."""

        def slowed(folder: Path) -> LoadedModel:
            model = on_cpu(backend)(folder)
            return replace(model, setup=replace(model.setup, backend=self)) if backend == "torch" else model

        return slowed


@contextlib.contextmanager
def served(run: Path, load: Callable[[str], Load] = on_cpu, places: list[Place] | None = None) -> Iterator[str]:
    """The address of a run's page; the server is the real one, in a thread."""
    stages, places = find_stages(run), places or find_places()
    workers = [Worker(place.name, load(place.name)) for place in places if not place.problem]
    listening = listen(0)
    port = listening.getsockname()[1]
    app = Guard(Play("small", stages, places, workers).app(), TOKEN, port)
    config = uvicorn.Config(app, lifespan="off", ws="none", log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/{TOKEN}/"
    finally:
        for worker in workers:
            worker.stop()
        server.should_exit = True
        thread.join()
        listening.close()


def ask(column: str, prompt: str = "Governo", **more: Any) -> dict[str, Any]:
    return {"column": column, "prompt": prompt, **more}


def events(address: str, asks: list[dict[str, Any]], path: str = "write", **settings: Any) -> list[dict[str, Any]]:
    """Everything that the page is told."""
    body = {"asks": asks, "settings": SETTINGS | settings}
    answer = CLIENT.post(address + path, json=body)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def of(found: list[dict[str, Any]], kind: str, column: str | None = None) -> list[dict[str, Any]]:
    return [event for event in found if event["event"] == kind and column in (None, event["column"])]


def texts(found: list[dict[str, Any]], column: str | None = None) -> list[str]:
    """The finished texts of a column, by row."""
    (done,) = of(found, "done", column)
    return [text for _, text, _ in done["texts"]]


def ids(found: list[dict[str, Any]], row: int, column: str | None = None) -> list[int]:
    """The token ids of a row."""
    pieces = [piece for event in of(found, "tokens", column) for n, piece in event["tokens"] if n == row]
    return [token for piece in pieces for token in piece["ids"]]


def loaded(run: Path, column: str) -> LoadedModel:
    """The model of a column, as everybody else loads it."""
    stage, backend = column.split("/")
    return load(run / "checkpoints" / f"{stage}-{STEPS[stage]:06d}", backend=backend, device="cpu")


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()
