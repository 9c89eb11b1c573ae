"""Faísca MLX: pre-train, fine-tune and reinforce a small language model on Portuguese headlines.

    model = faisca.load("runs/spark")
    model.generate("Presidente", n=5)

`import faisca` is light: nothing of it is imported before it is used, and no framework before one is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faisca.api import configure as configure
    from faisca.api import resume as resume
    from faisca.api import run as run
    from faisca.api import train as train
    from faisca.api import watch as watch
    from faisca.config import Config as Config
    from faisca.errors import FaiscaError as FaiscaError
    from faisca.loaded_model import LoadedModel as LoadedModel
    from faisca.loaded_model import load as load

    __version__: str

HOMES = {
    "faisca.api": ("configure", "resume", "run", "train", "watch"),
    "faisca.config": ("Config",),
    "faisca.errors": ("FaiscaError",),
    "faisca.loaded_model": ("LoadedModel", "load"),
}
"""where what the package offers is defined"""

__all__ = [
    "Config",
    "FaiscaError",
    "LoadedModel",
    "__version__",
    "configure",
    "load",
    "resume",
    "run",
    "train",
    "watch",
]


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("faisca-mlx")
    raise AttributeError(f"module 'faisca' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
