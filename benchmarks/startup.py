"""How long commands take to their first line: `python benchmarks/startup.py RUN`, with what dominates the imports."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 5
TARGETS = {"--help": 0.3, "generate": 3.0}


def first_line(arguments: list[str]) -> float:
    """Seconds from the start of the process to its first line on standard output."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "faisca", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), f"{arguments} printed nothing"
        seconds = time.perf_counter() - began
        process.stdout.read()
    assert process.returncode == 0, f"{arguments} failed"
    return seconds


def slowest_imports(arguments: list[str], count: int = 8) -> list[str]:
    """The modules whose own code takes longest, from `python -X importtime`."""
    command = [sys.executable, "-X", "importtime", "-m", "faisca", *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = [line.removeprefix("import time:").split("|") for line in said.splitlines() if "import time:" in line]
    own = sorted(((int(a), c.strip()) for a, _, c in lines if a.strip().isdigit()), reverse=True)
    return [f"{microseconds / 1e3:6.1f} ms {name}" for microseconds, name in own[:count]]


def main(run: Path) -> int:
    """Print medians against the targets; 1 where one is missed."""
    missed = 0
    commands = {"--help": ["--help"], "generate": ["generate", str(run)]}
    for name, arguments in commands.items():
        first_line(arguments)  # fills the file cache
        seconds = statistics.median(first_line(arguments) for _ in range(ROUNDS))
        missed += seconds > TARGETS[name]
        print(f"{name}: {seconds:.2f} s to the first line (target {TARGETS[name]} s, load {os.getloadavg()[0]:.1f})")
        print("\n".join(f"    {line}" for line in slowest_imports(arguments)))
    return 1 if missed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("faisca: name the folder of a run: python benchmarks/startup.py RUN")
    sys.exit(main(Path(sys.argv[1])))
