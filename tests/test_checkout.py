"""Tests are of the code that they lie beside, in this process and in those that they start."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("faisca", "faisca_torch", "faisca_mlx")


def test_this_process_has_the_checkout() -> None:
    import faisca

    assert Path(faisca.__file__).is_relative_to(ROOT)


@pytest.mark.parametrize("package", PACKAGES)
def test_processes_that_a_test_starts_have_it_too(package: str, tmp_path: Path) -> None:
    """From another folder, with the environment as it is; nothing is imported, so no framework is needed."""
    code = f"import importlib.util; print(importlib.util.find_spec({package!r}).origin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(ROOT)
