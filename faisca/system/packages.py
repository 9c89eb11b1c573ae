"""What is installed here, asked without importing it."""

import importlib.util


def importable(module: str) -> bool:
    """Whether a module, `mlx.core` say, could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False
