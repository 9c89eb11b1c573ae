"""The weights that adapters of a run belong to: one file in the run's folder, whatever number of checkpoints it has.

An adapter's checkpoint holds the adapter and the base's hash alone. The file is named by the hash, and what it holds is
checked against it whenever it is read: an adapter on another base would compute something else, and say nothing.
"""

from pathlib import Path

from safetensors import SafetensorError

from faisca.config import ModelConfig, plain
from faisca.errors import FaiscaError, VerificationError
from faisca.lora import Arrays, base_sha256
from faisca.parameters import check_shapes, parameter_shapes
from faisca.runs.pointers import way_on
from faisca.system.files import flush_folder, write_flushed
from faisca.system.tensors import Tensors, finite, open_safetensors, safetensors_chunks

DIGITS = 16
"""of the hash that stand in the file's name"""


def base_path(run_folder: Path, sha256: str) -> Path:
    """Where a run keeps the weights with this hash."""
    return run_folder / f"base-{sha256[:DIGITS]}.safetensors"


def save_base(run_folder: Path, parameters: Arrays, model: ModelConfig) -> str:
    """Write the weights where the run does not have them yet, whole or not at all; returns their hash."""
    sha256 = base_sha256(parameters, model)
    path, shapes = base_path(run_folder, sha256), parameter_shapes(plain(model))
    if not path.exists():
        unfinished = path.with_name(f".{path.name}.tmp")
        try:
            write_flushed(unfinished, safetensors_chunks(shapes, parameters))
            unfinished.replace(path)
            flush_folder(run_folder)
        except OSError as error:
            raise FaiscaError(f"{path} cannot be saved ({error.strerror}): {way_on(run_folder)}") from error
    return sha256


def open_base(checkpoint: Path, sha256: str | None, model: ModelConfig) -> Tensors:
    """The weights that the adapter in a checkpoint's folder belongs to, each read when asked for.

    FaiscaError where the run's folder has them not, VerificationError where they are others.
    """
    path = base_path(checkpoint.absolute().parents[1], sha256 or "unknown")
    try:
        weights = open_safetensors(path)[0]
    except FileNotFoundError:
        raise FaiscaError(
            f"checkpoint {checkpoint} holds an adapter alone, and {path} is missing, which has the weights that it "
            "belongs to: copy it there, or take the whole run folder"
        ) from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise VerificationError(f"{path} cannot be read ({error}): copy it from the run that wrote it") from error
    try:
        check_shapes(weights.shapes, plain(model))
    except FaiscaError as error:
        raise FaiscaError(f"{path}: {error}") from error
    weights = finite(weights, path)
    if base_sha256(weights, model) != sha256:
        raise VerificationError(
            f"{path} holds other weights than the adapter in {checkpoint} was trained on: copy the file from the run "
            "that wrote it"
        )
    return weights
