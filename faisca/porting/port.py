"""One port: read and check the source, write beside the target, verify, and only then give it its name."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from faisca.errors import FaiscaError, VerificationError
from faisca.porting.folders import write_folder
from faisca.porting.formats import FORMATS, Portable, check_portable
from faisca.porting.huggingface import read_folder
from faisca.porting.run_folders import read_run, write_run
from faisca.porting.verify import Comparison, compare, source_reader, target_readers
from faisca.porting.weight_files import SUFFIXES, read_weight_file, sidecar_of, write_weight_file
from faisca.runs.nearby import WEIGHTS, hub_words, runs_nearby


@dataclass(frozen=True)
class Port:
    """What was ported, and how source and target compare; no comparisons where it was not verified."""

    source: Portable
    answered_by: str
    """what answered for the source; empty where nothing was asked"""
    comparisons: list[Comparison]
    notes: list[str]


def port(
    source: Path,
    target: Path,
    format: str,
    *,
    verify: bool = True,
    num_heads: int | None = None,
    tokenizer: Path | None = None,
) -> Port:
    """Write the model at `source` to the new `target` in `format` (one of FORMATS).

    `num_heads` and `tokenizer`, a tokenizer.json, are for sources that do not say. FaiscaError for
    bad input, VerificationError where the target gives other answers; then nothing is left at `target`.
    """
    assert format in FORMATS
    _check_target(target, format)
    portable = read_source(source, num_heads, tokenizer)
    check_portable(portable, source)
    with _workshop(target) as folder:
        made = Path(folder) / target.name
        _write(portable, made, format)
        done = _verify(portable, source, made, format) if verify else Port(portable, "", [], [*portable.notes])
        _move(made, target)
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
        f"{', '.join(WEIGHTS)} file{runs_nearby(path)}{hub_words(path)}"
    )


def _check_target(target: Path, format: str) -> None:
    suffixes = SUFFIXES.get(format)
    if suffixes and target.suffix not in suffixes:
        raise FaiscaError(f"{target} does not say that it is a weights file: end its name in {' or '.join(suffixes)}")
    for path in [target] + [sidecar_of(target)] * bool(suffixes):
        if os.path.lexists(path):
            raise FaiscaError(f"{path} already exists: name another target, or remove it")


def _workshop(target: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder beside the target, so that moving to it is one step; it is removed whatever happens."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".porting-", dir=target.parent)
    except OSError as error:
        raise FaiscaError(f"{target} cannot be written ({error.strerror}): name another target") from error


def _write(portable: Portable, made: Path, format: str) -> None:
    try:
        if format == "faisca":
            write_run(portable, made)
        elif format == "hf":
            write_folder(portable, made)
        else:
            write_weight_file(portable, made, format)
    except OSError as error:
        raise FaiscaError(
            f"{made.name} cannot be written ({error.strerror}): make room, or name another target"
        ) from error


def _verify(portable: Portable, source: Path, made: Path, format: str) -> Port:
    """Compare the target with the source, library by library; VerificationError at the first that differs."""
    openers, unchecked = target_readers(format, made, read_source)
    reference, unasked = source_reader(portable, source)
    comparisons = []
    for opener in openers:
        try:
            comparison = compare(reference, opener(), portable.model, portable.tokenizer)
        except FaiscaError as error:
            raise VerificationError(f"the target cannot be loaded, and was removed: {error}") from error
        if problem := comparison.problem():
            raise VerificationError(
                f"{comparison.library} reads another model from the target than {source} holds ({problem}): "
                "the target was removed; please report this"
            )
        comparisons.append(comparison)
    return Port(portable, reference.name, comparisons, [*portable.notes, *unasked, *unchecked])


def _move(made: Path, target: Path) -> None:
    """Give the finished target its name; the JSON beside a weights file goes first, as it is nothing alone."""
    if made.is_file():
        os.rename(sidecar_of(made), sidecar_of(target))
    os.rename(made, target)
