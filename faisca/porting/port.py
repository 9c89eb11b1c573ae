"""One port: read and check the source, write beside the target, verify, and only then give it its name."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np

from faisca.errors import FaiscaError, VerificationError
from faisca.porting.folders import write_folder
from faisca.porting.formats import FORMATS, Portable, check_portable
from faisca.porting.hub import fetch
from faisca.porting.huggingface import layout_of, read_folder
from faisca.porting.readers import rounded_to, source_reader, target_readers, twin_reader
from faisca.porting.run_folders import read_run, write_run
from faisca.porting.verify import QUESTIONS, Comparison, compare, largest_difference
from faisca.porting.weight_files import SUFFIXES, read_weight_file, sidecar_of, write_weight_file
from faisca.runs.nearby import WEIGHTS, looks_like_id, runs_nearby
from faisca.system.progress_bar import track_if_long
from faisca.system.tables import PlainConsole
from faisca.system.tensors import Tensors

UNSETTLED = (
    "{row.library}: float32 does not settle {row.unsettled} rows of logits to the usual limit: theirs is sixteen times "
    "what a last bit of each weight moves"
)


@dataclass(frozen=True)
class Port:
    """What was ported, and how source and target compare; no comparisons where it was not verified."""

    source: Portable
    dtype: str
    """what the target's weights are stored as"""
    answered_by: str = ""
    """what answered for the source; empty where nothing was asked"""
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def port(
    source: Path,
    target: Path,
    format: str,
    *,
    verify: bool = True,
    dtype: str = "auto",
    num_heads: int | None = None,
    tokenizer: Path | None = None,
) -> Port:
    """Write the model at `source` to the new `target` in `format` (one of FORMATS).

    `source` is a path, or the id of a model of the hub. `dtype` auto is the source's. `num_heads` and `tokenizer`, a
    tokenizer.json, are for sources that do not say.
    FaiscaError for bad input, VerificationError where the target gives other answers; then nothing is left.
    """
    assert format in FORMATS
    check_target(target, format)
    if looks_like_id(source):
        source = fetch(source.as_posix())
    portable = read_source(source, num_heads, tokenizer)
    check_portable(portable, source)
    if format == "hf":
        layout_of(portable)  # refuses what no family computes, before anything is written
    done = Port(portable, _stored_as(dtype, portable, target, format), notes=[*portable.notes])
    with workshop(target) as folder:
        made = Path(folder) / target.name
        _write(portable, made, format, done.dtype)
        if verify:
            done = _verify(done, source, made, format)
        move(made, target)
    return done


def read_source(path: Path, num_heads: int | None = None, tokenizer: Path | None = None) -> Portable:
    """The model at `path`, whatever its format; see `port`."""
    if os.path.isfile(path / "config.json"):
        return read_folder(path, tokenizer)
    if os.path.isdir(path):
        if tokenizer:
            raise FaiscaError(f"--tokenizer does not go with {path}, which has its own: leave it out")
        return read_run(path)
    if os.path.isfile(path) and path.suffix in WEIGHTS:
        return read_weight_file(path, num_heads, tokenizer)
    what = "is neither a folder nor a weights file" if os.path.exists(path) else "does not exist"
    raise FaiscaError(
        f"{path} {what}: name a run or checkpoint folder, a Hugging Face folder, or a "
        f"{', '.join(WEIGHTS)} file{runs_nearby(path)}"
    )


def check_target(target: Path, format: str) -> None:
    suffixes = SUFFIXES.get(format)
    if suffixes and target.suffix not in suffixes:
        raise FaiscaError(f"{target} does not say that it is a weights file: end its name in {' or '.join(suffixes)}")
    for path in [target] + [sidecar_of(target)] * bool(suffixes):
        if os.path.lexists(path):
            raise FaiscaError(f"{path} already exists: name another target, or remove it")


def workshop(target: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder beside the target, so that moving to it is one step; it is removed whatever happens."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".porting-", dir=target.parent)
    except OSError as error:
        raise FaiscaError(f"{target} cannot be written ({error.strerror}): name another target") from error


def _stored_as(wanted: str, portable: Portable, target: Path, format: str) -> str:
    """The dtype that is written: the source's where nobody says otherwise."""
    if format == "faisca":
        if wanted not in ("auto", "float32"):
            raise FaiscaError(f"--dtype {wanted} does not go with --to faisca: a checkpoint's weights are float32")
        return "float32"
    stored = portable.dtype if wanted == "auto" else wanted
    if target.suffix != ".npz" or stored != "bfloat16":
        return stored
    if wanted == "auto":
        return "float32"
    raise FaiscaError(f"--dtype bfloat16 does not go with {target}: NumPy's format has none; name a .safetensors file")


def _write(portable: Portable, made: Path, format: str, dtype: str) -> None:
    with track_if_long(PlainConsole(stderr=True), "writing tensors", len(portable.parameters)) as done:
        counted = replace(portable, parameters=_counted(portable.parameters, done))
        try:
            if format == "faisca":
                write_run(counted, made)
            elif format == "hf":
                write_folder(counted, made, dtype)
            else:
                write_weight_file(counted, made, format, dtype)
        except OverflowError as error:
            raise FaiscaError(f"a weight of {error}: choose --dtype float32 or bfloat16, which hold it") from error
        except OSError as error:
            raise FaiscaError(
                f"{made.name} cannot be written ({error.strerror}): make room, or name another target"
            ) from error


def _counted(parameters: Mapping[str, np.ndarray], done: Callable[[int], None]) -> Tensors:
    """The same, which say how many of them have been read."""
    tensors, seen = Tensors.of(parameters), set[str]()

    def read(name: str) -> np.ndarray:
        seen.add(name)
        done(len(seen))
        return tensors[name]

    return Tensors(tensors.shapes, read, tensors.dtypes)


def _verify(done: Port, source: Path, made: Path, format: str) -> Port:
    """Compare the target with the source, library by library; VerificationError at the first that differs."""
    portable, notes = done.source, [*done.notes]
    openers, unchecked = target_readers(format, made, read_source)
    reference, unasked = source_reader(portable, source)
    answered_by, comparisons = reference.name, []
    rounds = done.dtype not in (portable.dtype, "float32")
    with _questions(rounds + len(openers)) as told:
        if rounds:
            reading = twin_reader(portable)
            check_comparison(compare(reference, reading, portable, told), source)
            del reference  # one model less in memory
            exact, portable = portable, rounded_to(portable, done.dtype)
            reference = twin_reader(portable)
            lost = largest_difference(reading, reference, exact)
            notes.append(
                f"rounding to {done.dtype} moves logits by up to {lost:.2g}; what is compared is the rounded model"
            )
            del reading
        for opener in openers:
            try:
                comparison = compare(reference, opener(), portable, told)
            except FaiscaError as error:
                raise VerificationError(f"the target cannot be loaded, and was removed: {error}") from error
            comparisons.append(check_comparison(comparison, source))
    notes += [UNSETTLED.format(row=row) for row in comparisons if row.unsettled]
    return replace(done, answered_by=answered_by, comparisons=comparisons, notes=[*notes, *unasked, *unchecked])


def check_comparison(comparison: Comparison, source: Path) -> Comparison:
    if problem := comparison.problem():
        raise VerificationError(
            f"{comparison.library} reads another model from the target than {source} holds ({problem}): "
            "the target was removed; please report this"
        )
    return comparison


@contextmanager
def _questions(readers: int) -> Iterator[Callable[[], None]]:
    """Counts the questions of several comparisons, and shows how far they are."""
    asked = count()
    with track_if_long(PlainConsole(stderr=True), "verifying", readers * QUESTIONS) as update:
        yield lambda: update(next(asked))


def move(made: Path, target: Path) -> None:
    """Give the finished target its name; the JSON beside a weights file goes first, as it is nothing alone."""
    if made.is_file():
        os.rename(sidecar_of(made), sidecar_of(target))
    os.rename(made, target)
