"""Faísca MLX: pre-train, fine-tune and reinforce a small language model on Portuguese headlines.

`import faisca` is light: no framework is imported before `faisca.load` needs one.
"""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from faisca.loaded import load

        return load
    raise AttributeError(f"module 'faisca' has no attribute {name!r}")
