"""Who answers for a model: a library that a folder belongs to, or one of our twins."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from faisca.backend import Sampling, load_backend
from faisca.backends import BACKENDS, choose_backend
from faisca.config import Config, ModelConfig, RunConfig
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.porting.folders import write_view
from faisca.porting.formats import Portable, float32
from faisca.porting.libraries import REMEDIES, Reader, missing_package, open_exported, read_arrays, require
from faisca.porting.weight_files import canonical_names
from faisca.streams import generator
from faisca.system.tensors import Tensors, rounded
from faisca.training.generate import complete
from faisca.training.setup import Setup

LIBRARIES = {
    "faisca": tuple(BACKENDS),
    **{name: (name,) for name in BACKENDS},
    "hf": tuple(row.reader for row in BACKENDS.values()),
}
"""who reads a format"""


class TwinReader:
    """One of our twins, on the CPU in float32; it satisfies `Reader`."""

    def __init__(
        self, twin: str, model: ModelConfig, parameters: Mapping[str, np.ndarray], tokenizer: Tokenizer
    ) -> None:
        self.name, self.tokenizer = f"faisca_{twin}", tokenizer
        self.end_of_text_ids = list(tokenizer.ends)
        backend, run = load_backend(twin), RunConfig(device="cpu", dtype="float32", compile="off")
        self.setup = Setup(Config(run=run), backend, backend.open_runtime(config=run), tokenizer, model)
        self.model = self.setup.make_model(parameters)

    def logits(self, ids: list[int]) -> np.ndarray:
        """T token ids -> float32 [T, V]."""
        logits: np.ndarray = self.setup.backend.logits(model=self.model, tokens=np.array([ids]))[0]
        return logits

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The likeliest `count` tokens after `ids`."""
        likeliest = Sampling(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=count)
        no_draws = np.zeros((1, count), np.float32)
        tokens = next(complete(self.setup, self.model, [ids], likeliest, no_draws))
        ends = (i for i, token in enumerate(tokens, 1) if token in self.end_of_text_ids)
        return tokens[: next(ends, None)]

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text."""
        return self.tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(ids)


def nudged_by(portable: Portable, rows: list[list[int]]) -> list[float]:
    """How far the logits of each row move where a last bit of each weight does: what float32 leaves open.

    Both models are of one twin, one after the other.
    """
    if not rows:
        return []
    exact = Tensors.of(portable.parameters)

    def read(name: str) -> np.ndarray:
        draws = generator(0, f"last bits of {name}")
        towards = draws.choice(np.array([-np.inf, np.inf], np.float32), exact.shapes[name])
        array: np.ndarray = np.nextafter(exact[name], towards)
        return array

    plain = [twin.logits(row) for twin in [twin_reader(portable)] for row in rows]
    nudged = twin_reader(replace(portable, parameters=Tensors(exact.shapes, read, exact.dtypes)))
    return [float(np.abs(nudged.logits(row) - logits).max()) for row, logits in zip(rows, plain, strict=True)]


def source_reader(portable: Portable, path: Path) -> tuple[Reader, list[str]]:
    """The source through a library that it belongs to, else through one of our twins; and why others do not answer."""
    notes: list[str] = []
    for library in LIBRARIES["hf"] if portable.format == "hf" else ():
        try:
            return _open_source(library, portable, path), notes
        except FaiscaError as error:
            notes.append(f"{library} does not answer for the source: {error}")
    return twin_reader(portable), notes


def twin_reader(portable: Portable) -> TwinReader:
    """Our own reading of a model, by the twin of its format where that is installed."""
    return TwinReader(_twin(portable.format), portable.model, portable.parameters, portable.tokenizer)


def rounded_to(portable: Portable, dtype: str) -> Portable:
    """The same model with the weights that a file of `dtype` holds: float32 numbers."""
    exact = Tensors.of(portable.parameters)
    halves = Tensors(exact.shapes, lambda name: rounded(exact[name], dtype), exact.dtypes)
    return replace(portable, parameters=halves)


def target_readers(
    format: str, path: Path, read: Callable[[Path], Portable]
) -> tuple[list[Callable[[], Reader]], list[str]]:
    """How to open the target with each library that is installed, and what to say of the others."""
    missing = {library: package for library in LIBRARIES[format] if (package := missing_package(library))}
    present = [library for library in LIBRARIES[format] if library not in missing] or [_twin(format)]
    said = [
        f"not checked with {library}: {package} is not installed ({REMEDIES[library]})"
        for library, package in missing.items()
    ]
    return [partial(_open, library, format, path, read) for library in present], said


def _open(library: str, format: str, path: Path, read: Callable[[Path], Portable]) -> Reader:
    if library not in BACKENDS:
        return open_exported(library, path)
    portable = read(path)
    parameters = portable.parameters
    if library == format:  # the arrays as the library itself reads them
        parameters = float32(canonical_names(read_arrays(library, path)), path)
    return TwinReader(library, portable.model, parameters, portable.tokenizer)


def _open_source(library: str, portable: Portable, path: Path) -> Reader:
    require(library)
    if library == "transformers":
        return open_exported(library, path)
    with tempfile.TemporaryDirectory() as folder:
        view = Path(folder) / path.resolve().name
        write_view(portable, path, view)
        return open_exported(library, view)


def _twin(format: str) -> str:
    """The twin of a format where it is installed, else any that is; a FaiscaError where none is."""
    for name in (format, choose_backend("auto")[0], *BACKENDS):
        if name in BACKENDS and missing_package(name) is None:
            return name
    remedies = " or ".join(row.remedy for row in BACKENDS.values())
    raise FaiscaError(
        f"nothing here can compute what a model says, to verify it: {remedies}, "
        "or leave the port unverified with --no-verify"
    )
