"""Realistic porting bugs, one at a time in a copy of the code: does the ladder catch each of them?

    python parity_tests/mutations.py [NAME …]      all of them, or those named

A mutation replaces a piece of source that occurs exactly once. It is caught where an assertion of
its rung fails: a copy that does not even import proves nothing and counts as an error. Before
that, the same tests must pass on an untouched copy.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bugs import all_bugs
from bugs.mutation import Mutation

ROOT = Path(__file__).parent.parent
PARTS = ("faisca", "faisca_torch", "faisca_mlx", "parity_tests", "conftest.py", "pyproject.toml")
CHECK = "import faisca, faisca_torch, faisca_mlx; print(faisca.__file__, faisca_torch.__file__, faisca_mlx.__file__)"


MUTATIONS = all_bugs()
FEW = ("key and value swapped", "no bias correction", "top-k unsorted")
"""what CI applies"""


def copy_code(root: Path) -> None:
    """The code and its parity tests, for a mutation to change."""
    for part in PARTS:
        source, target = ROOT / part, root / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def run_rung(root: Path, rung: str) -> tuple[int, str]:
    """Exit status and output of a rung's tests in a copy of the code, which must be what they import."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    common = {"cwd": root, "env": environment, "capture_output": True, "text": True}
    where = subprocess.run([sys.executable, "-c", CHECK], check=True, **common).stdout.split()
    assert all(Path(path).is_relative_to(root) for path in where), f"tests would run on {where}"
    files = sorted(str(path) for path in (root / "parity_tests").glob(f"test_{rung}_*.py"))
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(command, **common)
    return done.returncode, done.stdout


def verdict(mutation: Mutation | None, rung: str) -> tuple[bool, str]:
    """Whether a rung fails on the mutated code, and the line that says why."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        copy_code(root)
        if mutation is not None:
            mutation.apply(root)
        status, output = run_rung(root, rung)
    if status not in (0, 1):
        raise RuntimeError(f"rung {rung} did not run:\n{output[-2000:]}")
    failures = [line.removeprefix("FAILED ") for line in output.splitlines() if line.startswith("FAILED ")]
    return status == 1, failures[0].partition("::")[2] if failures else output.strip().splitlines()[-1]


def main(names: list[str]) -> int:
    """A line a mutation; 1 where an untouched rung fails or a mutation is not caught."""
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    for rung in sorted({mutation.rung for mutation in chosen}):
        failed, line = verdict(None, rung)
        print(f"rung {rung}  untouched: {line}", flush=True)
        if failed:
            return 1
    missed = 0
    for mutation in chosen:
        caught, line = verdict(mutation, mutation.rung)
        missed += not caught
        print(f"rung {mutation.rung}  {'caught' if caught else 'MISSED'}  {mutation.name}: {line[:150]}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
