"""Faísca MLX: pre-train, fine-tune and reinforce a small language model on Portuguese headlines.

    model = faisca.load("runs/spark")
    model.generate("Presidente", n=5)

`import faisca` is light: no framework is imported before `faisca.load` or `faisca.train` needs one.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faisca.loaded_model import load as load
    from faisca.loaded_model import train as train

    __version__: str

__all__ = ["__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in ("load", "train"):
        from faisca import loaded_model as loaded

        return getattr(loaded, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("faisca-mlx")
    raise AttributeError(f"module 'faisca' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
