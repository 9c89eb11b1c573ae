"""Realistic bugs, one at a time in a copy of the code: does the ladder catch each of them?

    python parity_tests/mutations.py [NAME …] [-j N] [--sample] [--markdown]

A mutation replaces a piece of source that occurs exactly once (`bugs/`). It is caught where an
assertion of its target fails. Nothing else counts: the same target must pass on an untouched copy,
in the same environment and before it, and a copy that does not import, crashes or hangs proves
nothing. Exit status 1 where a mutation is not caught.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bugs import all_bugs
from bugs.mutation import Mutation

ROOT = Path(__file__).parent.parent
PACKAGES = ("faisca", "faisca_torch", "faisca_mlx")
PARTS = (*PACKAGES, "lessons", "parity_tests", "tests", "conftest.py", "pyproject.toml")
FIXED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MLX_ENABLE_TF32": "0", "PYTHONDONTWRITEBYTECODE": "1"}
LIMIT = 600
"""seconds for a target: what takes longer hangs"""
SAMPLED = 6
"""how many CI applies: about a minute on two cores"""
FAILURES = ("assert ", "AssertionError", "Failed: ", "faisca.errors.VerificationError")
"""how the message of a test begins that failed, and did not crash"""
# pytest in the copy, and never on the installed code; find_spec imports nothing
RUNNER = f"""
import importlib.util, os, sys
found = [importlib.util.find_spec(name).origin for name in {PACKAGES}]
assert all(path.startswith(os.getcwd() + os.sep) for path in found), f"the tests would run on {{found}}"
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Verdict:
    """What became of a target's tests: `passed`, `failed` by an assertion, or an `error`; and what says so."""

    outcome: str
    why: str


def copy_code(root: Path) -> None:
    """The code and its tests, for a mutation to change."""
    for part in PARTS:
        source, target = ROOT / part, root / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def files_of(target: str, root: Path) -> list[str]:
    """What pytest is told: the files of a rung's number, or the target as it is."""
    if not target.isdigit():
        return [target]
    return sorted(str(path.relative_to(root)) for path in (root / "parity_tests").glob(f"test_{target}_*.py"))


def run_target(root: Path, target: str, limit: float = LIMIT) -> Verdict:
    """Run a target's tests in a copy of the code, which must be what they import, until the first that fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    report = root / "report.xml"
    options = ["-x", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}"]
    with (root / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, *options, *files_of(target, root)],
            cwd=root,
            env=environment | FIXED | {"PYTHONPATH": str(root)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return Verdict("error", f"hangs: ended after {limit:g} s")
        finally:  # and whatever processes its tests have started
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return read_report(report, output.read())


def read_report(report: Path, output: str) -> Verdict:
    """What pytest's own report says."""
    if not report.exists():
        return Verdict("error", f"pytest did not run: {output.strip()[-300:]}")
    cases = list(ET.parse(report).getroot().iter("testcase"))
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        if (error := case.find("error")) is not None:
            return Verdict("error", f"{name} does not begin: {error.get('message')}")
        if (failure := case.find("failure")) is not None:
            if failure.get("message", "").startswith(FAILURES):
                return Verdict("failed", name)
            return Verdict("error", f"{name} crashes: {failure.get('message')}")
    passed = sum(case.find("skipped") is None for case in cases)
    return Verdict("passed", f"{passed} passed") if passed else Verdict("error", f"no test ran: {output[-300:]}")


def try_target(target: str, mutation: Mutation | None = None, limit: float = LIMIT) -> Verdict:
    """A target's verdict on a new copy of the code, with a mutation or untouched."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        copy_code(root)
        if mutation is not None:
            mutation.apply(root)
        return run_target(root, target, limit)


untouched = cache(try_target)
"""the verdict of an untouched copy, once a target"""


def judge(mutation: Mutation) -> Verdict:
    """`caught`, `MISSED` or `error`: of a target that passes untouched, what it says of a mutation."""
    before = untouched(mutation.rung)
    if before.outcome != "passed":
        return Verdict("error", f"{mutation.rung} does not pass without the mutation: {before.why}")
    found = try_target(mutation.rung, mutation)
    return Verdict({"passed": "MISSED", "failed": "caught"}.get(found.outcome, "error"), found.why)


def commit() -> str:
    """The commit's hash; where there is no git, the hash of the packages' source."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def sample(mutations: Sequence[Mutation], seed: str, count: int = SAMPLED) -> list[Mutation]:
    """Those that a commit's CI applies: others for another commit."""
    return random.Random(seed).sample(mutations, min(count, len(mutations)))


def choose(names: list[str], sampled: bool) -> list[Mutation]:
    """The mutations of these names, the commit's sample, or all."""
    mutations = all_bugs()
    if unknown := set(names) - {mutation.name for mutation in mutations}:
        raise SystemExit(f"no mutation is called {', '.join(map(repr, sorted(unknown)))}: see parity_tests/bugs/")
    if sampled:
        return sample(mutations, commit())
    return [mutation for mutation in mutations if not names or mutation.name in names]


def as_markdown(rows: list[tuple[Mutation, Verdict]]) -> str:
    """The table, for pasting."""
    lines = ["| mutation | file | target | verdict | by |", "|---|---|---|---|---|"]
    for mutation, found in rows:
        why = " ".join(found.why.split()).replace("|", "\\|")
        lines.append(f"| {mutation.name} | {mutation.file} | {mutation.rung} | {found.outcome} | {why} |")
    return "\n".join(lines)


def as_lines(mutation: Mutation, found: Verdict) -> str:
    return f"{found.outcome:<7} {mutation.name}\n        {mutation.file} by {mutation.rung}: {found.why}"


def main(argv: Sequence[str]) -> int:
    """Two lines a mutation, as they come, and how many were caught; or the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to apply; none: all")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="processes at a time, of one thread each")
    parser.add_argument("--sample", action="store_true", help="those that CI applies at this commit")
    parser.add_argument("--markdown", action="store_true", help="print a table for pasting")
    options = parser.parse_args(argv)
    chosen, rows = choose(options.names, options.sample), []
    targets = sorted({mutation.rung for mutation in chosen})
    with ThreadPoolExecutor(options.j) as pool:
        for target, found in zip(targets, pool.map(untouched, targets), strict=True):
            print(f"untouched {target}: {found.outcome}, {found.why}", file=sys.stderr, flush=True)
        for mutation, found in zip(chosen, pool.map(judge, chosen), strict=True):
            rows.append((mutation, found))
            print(as_lines(mutation, found), file=sys.stderr if options.markdown else sys.stdout, flush=True)
    if options.markdown:
        print(as_markdown(rows))
    missed = sum(found.outcome != "caught" for _, found in rows)
    print(f"{len(rows) - missed} of {len(rows)} mutations caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
