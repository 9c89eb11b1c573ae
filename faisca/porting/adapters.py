"""Adapters that travel: between a run, PEFT's folders and mlx-lm's; and merged into the model that they belong to.

An adapter is nothing without its base, so a port names it; that a base is the one that a run's adapter was trained on
is known by its hash. What is written is loaded by its own library on that base, and compared.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from faisca.backends import BACKENDS
from faisca.config import AdaptedModel
from faisca.errors import FaiscaError
from faisca.lora import base_sha256, merged, split
from faisca.porting.adapter_folders import FORMATS, format_of, read_adapter, write_adapter
from faisca.porting.folders import write_folder, write_view
from faisca.porting.formats import Portable
from faisca.porting.libraries import Reader, missing_package, open_exported
from faisca.porting.port import Port, check_comparison, check_target, move, port, read_source, workshop
from faisca.porting.readers import TwinReader
from faisca.porting.run_folders import read_run, write_run
from faisca.porting.verify import Comparison, compare
from faisca.runs.checkpoint import open_checkpoint
from faisca.system.tensors import Tensors

LIBRARIES = {"peft": "transformers", "mlx-lm": "mlx_lm"}
"""what loads an adapter's base"""


@dataclass(frozen=True)
class AdapterPort:
    """What was ported, and how source and target compare; no comparisons where it was not verified."""

    base: Portable
    model: AdaptedModel
    found: str
    comparisons: list[Comparison] = field(default_factory=list)


def holds_adapter(source: Path) -> bool:
    """Whether a folder is an adapter's, PEFT's or mlx-lm's."""
    return bool(format_of(source))


def port_adapter(source: Path, target: Path, format: str, base: Path | None, *, verify: bool = True) -> AdapterPort:
    """Write the adapter at `source`, a run's or a folder's, to the new folder `target`: faisca, peft or mlx-lm.

    `base` is the model that it belongs to: a folder of transformers, or whatever `port` reads. FaiscaError for bad
    input, and where the format has no word for what the adapter is; VerificationError where the target gives other
    answers: then nothing is left.
    """
    if format not in ("faisca", *LIBRARIES):
        raise FaiscaError(
            f"an adapter goes to faisca, peft or mlx-lm, and not to {format}: bring it to faisca, merge it there "
            "(faisca merge), and port the model"
        )
    check_target(target, format)
    if base is None:
        raise FaiscaError("an adapter is nothing without the model that it was trained on: name that with --base")
    given = read_source(base)
    model, adapter, found = _read(source, given, base)
    whole = Tensors.joined([Tensors.of(given.parameters), Tensors.of(adapter)])
    done = AdapterPort(given, model, found)
    with workshop(target) as folder:
        made = Path(folder) / target.name
        if format == "faisca":
            write_run(given, made, model, adapter)
        else:
            write_adapter(made, format, given, model, adapter, str(base))
        if verify:
            with _base_folder(given, base) as folder_of_base:
                reference = next(_readers(format_of(source) or "faisca", source, folder_of_base, model, given))
                one = replace(given, parameters=merged(whole, model))
                for reader in _readers(format, made, folder_of_base, model, given):
                    done.comparisons.append(check_comparison(compare(reference, reader, one), source))
        move(made, target)
    return done


def merge(source: Path, target: Path) -> Port:
    """Write the run at `source` with its adapter added to the weights as the new run `target`.

    The merged model is compared with its base and the adapter beside it, and then what was written with that.
    """
    checkpoint = open_checkpoint(source)
    model = checkpoint.state.model
    if not isinstance(model, AdaptedModel):
        raise FaiscaError(f"{checkpoint.folder} has no adapter: there is nothing to merge")
    check_target(target, "faisca")
    one = read_run(source)
    twin = next(name for name in BACKENDS if missing_package(name) is None)
    apart = TwinReader(twin, model, checkpoint.parameters, one.tokenizer)
    together = TwinReader(twin, one.model, one.parameters, one.tokenizer)
    unmerged = check_comparison(replace(compare(apart, together, one), library="merged"), source)
    done = port(source, target, "faisca")
    return replace(done, comparisons=[unmerged, *done.comparisons])


def _read(source: Path, base: Portable, called: Path) -> tuple[AdaptedModel, Mapping[str, np.ndarray], str]:
    """The base's model with the adapter at `source`, the adapter's arrays, and what was found, in words."""
    if form := format_of(source):
        model, arrays = read_adapter(source, base)
        return model, arrays, f"{FORMATS[form].words}, rank {model.adapter.rank}"
    checkpoint = open_checkpoint(source)
    state = checkpoint.state
    if not isinstance(state.model, AdaptedModel):
        raise FaiscaError(f"{checkpoint.folder} has no adapter: port it as a model, with --to hf")
    if base_sha256(base.parameters, base.model) != state.base_sha256:
        raise FaiscaError(
            f"{called} is not the model that the adapter in {checkpoint.folder} was trained on, for its weights are "
            "others: name the run or folder that it began with"
        )
    return (
        state.model,
        split(checkpoint.parameters)[1],
        f"the adapter of a faisca checkpoint, rank {state.model.adapter.rank}",
    )


def _readers(format: str, folder: Path, base_folder: Path, model: AdaptedModel, base: Portable) -> Iterator[Reader]:
    """The libraries that read an adapter's folder, on its base; of ours each twin that is installed."""
    if format in LIBRARIES:
        yield open_exported(LIBRARIES[format], base_folder, folder)
        return
    weights = open_checkpoint(folder).parameters
    for name in BACKENDS:
        if missing_package(name) is None:
            yield TwinReader(name, model, weights, base.tokenizer)


@contextmanager
def _base_folder(base: Portable, path: Path) -> Iterator[Path]:
    """The base as both libraries load it, with links to its weights; these are written where it is none of theirs."""
    with tempfile.TemporaryDirectory() as place:
        folder = path
        if base.format != "hf":
            folder = Path(place) / "base"
            write_folder(base, folder)
        view = Path(place) / "view"
        write_view(replace(base, format="hf"), folder, view)
        yield view
