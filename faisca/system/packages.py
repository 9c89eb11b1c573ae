"""What is installed here, asked without importing it."""

import importlib.util
from importlib import metadata


def importable(module: str) -> bool:
    """Whether a module, `mlx.core` say, could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def version_of(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
