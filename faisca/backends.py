"""Which backends there are: the one table that options, porting, parity, bench and tests iterate over.

It imports neither a framework nor NumPy, so that options are there at once.
"""

import platform
from dataclasses import dataclass

from faisca.system.packages import importable


@dataclass(frozen=True)
class BackendRow:
    """What the core knows of a backend before it loads it."""

    needs: str
    """the module that must be importable"""
    extra: str
    """what of pyproject.toml installs it"""
    devices: tuple[str, ...]
    """names of its GPUs, as `--device` takes them"""
    files: tuple[str, ...]
    """endings of weights files in the framework's own format, the one that is written first"""
    file_words: str
    """what such a file holds"""
    reader: str
    """the library with which its `interop` reads Hugging Face folders"""
    native: tuple[str, str] | None = None
    """system and machine on which it is the first choice"""
    compiles_quickly: bool = False
    """whether a compiled step is ready sooner than it takes to compare two backends"""
    computes_in_float64: bool = False
    """whether a model computes in float64 where its weights are: on the CPU, to compare with"""

    @property
    def installed(self) -> bool:
        """Whether its framework can be imported here."""
        return importable(self.needs)

    @property
    def remedy(self) -> str:
        """How to install it; a name on an index would be shorter, but the package is not published."""
        return f'pip install ".[{self.extra}]" in the checkout'


BACKENDS = {
    "torch": BackendRow(
        needs="torch",
        extra="torch",
        devices=("cuda", "mps"),
        files=(".safetensors",),
        file_words="a torch state dict",
        reader="transformers",
        computes_in_float64=True,
    ),
    "mlx": BackendRow(
        needs="mlx.core",
        extra="mlx" if platform.system() == "Darwin" else "mlx-cpu",
        devices=("mps", "cuda"),
        files=(".safetensors", ".npz"),
        file_words="MLX arrays",
        reader="mlx_lm",
        native=("Darwin", "arm64"),
        compiles_quickly=True,
    ),
}
"""Every backend, the default first: options, parity, porting, bench and tests take them from here."""


def choose_backend(name: str) -> tuple[str, str]:
    """The backend that `name` (auto or one of BACKENDS) means here, and the reason in words."""
    if name != "auto":
        return name, "asked for"
    here = (platform.system(), platform.machine())
    native = [name for name, row in BACKENDS.items() if row.native == here and row.installed]
    if native:
        return native[0], "the native backend of Apple silicon"
    default, *others = BACKENDS
    if BACKENDS[default].installed:
        return default, "the default outside Apple silicon"
    return others[0], f"{default} is not installed"
