"""Arrays that are read and written one by one, so that a model need not be in memory as a whole.

Files are safetensors: eight bytes with the length of a header, the header in JSON, the numbers. Its own
library writes a file from all arrays at once; here the header goes first, and then one array after the other.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from faisca.errors import FaiscaError

Shape = tuple[int, ...]
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""dtypes that are written, and what safetensors calls them"""
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
NUMPY |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
"""types that are read; others, as float8, are a KeyError"""
CODES = {np.dtype(numpy).str: code for code, numpy in NUMPY.items() if code != "BF16"}


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name; each is read when it is asked for, and not kept. Shapes and dtypes are known before."""

    def __init__(
        self, shapes: Mapping[str, Shape], read: Callable[[str], np.ndarray], dtypes: Mapping[str, str]
    ) -> None:
        self.shapes, self.dtypes, self._read = dict(shapes), dict(dtypes), read

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> "Tensors":
        """Arrays that are in memory already, or that a library maps from a file."""
        if isinstance(arrays, Tensors):
            return arrays
        shapes = {name: array.shape for name, array in arrays.items()}
        return Tensors(shapes, arrays.__getitem__, {name: str(array.dtype) for name, array in arrays.items()})

    @staticmethod
    def joined(parts: list["Tensors"]) -> "Tensors":
        """Several files as one; of a name that two have, the later one's."""
        owners = {name: part for part in parts for name in part}
        shapes = {name: part.shapes[name] for name, part in owners.items()}
        return Tensors(
            shapes, lambda name: owners[name][name], {name: part.dtypes[name] for name, part in owners.items()}
        )

    def only(self, names: list[str]) -> "Tensors":
        """Those with these names."""
        return Tensors({name: self.shapes[name] for name in names}, self._read, {n: self.dtypes[n] for n in names})

    def renamed(self, names: Mapping[str, str]) -> "Tensors":
        """Those in `names`, which has for each new name the old one."""
        return Tensors(
            {new: self.shapes[old] for new, old in names.items()},
            lambda new: self._read(names[new]),
            {new: self.dtypes[old] for new, old in names.items()},
        )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def dtype(self) -> str:
        """What all of them are stored as; float32, which holds the others exactly, where they differ."""
        kinds = set(self.dtypes.values())
        return next(iter(kinds)) if len(kinds) == 1 and kinds <= set(STORED) else "float32"


def open_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The arrays of a file (bfloat16 as float32), and its metadata; OSError or SafetensorError where it is none.

    KeyError where an array is of a type that NumPy has not.
    """
    with safetensors.safe_open(path, framework="np") as checked:  # header, sizes and offsets belong together
        metadata = checked.metadata() or {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    stored = {code: name for name, code in STORED.items()}
    dtypes = {
        name: stored.get(entry["dtype"]) or np.dtype(NUMPY[entry["dtype"]]).name for name, entry in header.items()
    }
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    return Tensors(shapes, partial(_read, path, header, 8 + length), dtypes), metadata


def safetensors_chunks(
    shapes: Mapping[str, Shape],
    arrays: Mapping[str, np.ndarray],
    dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
) -> Iterator[bytes]:
    """The bytes of a file of these float32 arrays as `dtype`, array by array; see `narrowed` for what it raises."""
    yield _header({name: (STORED[dtype], shape) for name, shape in shapes.items()}, metadata or {})
    for name, shape in shapes.items():
        array = arrays[name]
        assert array.shape == shape, f"{name} is {array.shape} and not {shape}"
        yield narrowed(array, dtype).tobytes()


def stored_chunks(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The bytes of a file of these arrays, each in its own dtype, array by array."""
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so that all are aligned
    yield _header({name: (CODES[arrays[name].dtype.str], arrays[name].shape) for name in names}, {})
    yield from (arrays[name].tobytes() for name in names)


def _header(entries: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str]) -> bytes:
    """What stands before the numbers: of each array its type, its shape, and where it begins and ends."""
    header, end = dict[str, Any]({"__metadata__": dict(metadata)}), 0
    for name, (code, shape) in entries.items():
        start, end = end, end + np.dtype(NUMPY[code]).itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight, as the library has it
    return struct.pack("<Q", len(text)) + text


def narrowed(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 numbers as `dtype`, rounded to the nearest; bfloat16 as its bits, uint16.

    OverflowError where one is too large for it, or not finite.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
        narrow: np.ndarray = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")  # to even where it is halfway
        finite = bool(((narrow & 0x7F80) != 0x7F80).all())
    elif dtype == "float16":
        with np.errstate(over="ignore"):
            narrow = array.astype("<f2")
        finite = bool(np.isfinite(narrow).all())
    else:
        exact: np.ndarray = np.asarray(array, "<f4")
        return exact
    if not finite:
        raise OverflowError(f"{float(np.abs(array).max()):.3g} is too large for {dtype}")
    return narrow


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 numbers as they come back from a file of `dtype`: float32."""
    narrow = narrowed(array, dtype)
    numbers: np.ndarray = wide(narrow) if dtype == "bfloat16" else narrow.astype(np.float32)
    return numbers


def wide(halves: np.ndarray) -> np.ndarray:
    """The bits of bfloat16, which NumPy has no name for, as float32: they are the upper half of one."""
    numbers: np.ndarray = (halves.view("<u2").astype("<u4") << 16).view("<f4")
    return numbers


def _read(path: Path, header: Mapping[str, Any], begin: int, name: str) -> np.ndarray:
    entry, code = header[name], header[name]["dtype"]
    count = int(np.prod(entry["shape"], dtype=np.int64))
    array = np.fromfile(path, NUMPY[code], count, offset=begin + entry["data_offsets"][0])
    return (wide(array) if code == "BF16" else array).reshape(entry["shape"])


def check_finite(arrays: Mapping[str, np.ndarray], source: Path) -> None:
    """Raise a FaiscaError that names the first array of a file with numbers that are not finite."""
    for name, array in arrays.items():
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise FaiscaError(
                f"{source}: {name} has {bad:,} numbers that are not finite (NaN or infinite), of {array.size:,}: "
                "its training failed, or the file is broken; take an earlier checkpoint or another file"
            )


def finite(arrays: Tensors, source: Path) -> Tensors:
    """The same arrays, each checked when it is read; see `check_finite`."""

    def read(name: str) -> np.ndarray:
        array = arrays[name]
        check_finite({name: array}, source)
        return array

    return Tensors(arrays.shapes, read, arrays.dtypes)
