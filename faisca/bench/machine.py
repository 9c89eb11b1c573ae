"""What a benchmark's reader has to know of the machine: processor, memory, versions, power."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

POWER_SUPPLIES = Path("/sys/class/power_supply")
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MLX_ENABLE_TF32", "FAISCA_FAST_BLAS")
PACKAGES = ("faisca-mlx", "torch", "mlx", "mlx-lm", "transformers", "numpy")


def describe_machine() -> dict[str, Any]:
    """Facts for the JSON file; nothing in them names the user or the host."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "power": _power_source(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _power_source() -> str:
    """mains, battery, or unknown: on battery, laptops compute slower."""
    if sys.platform == "darwin":
        said = _output("pmset", "-g", "batt")
        return "battery" if "Battery Power" in said else "mains"
    online = [path.read_text().strip() for path in POWER_SUPPLIES.glob("*/online")]
    if online:
        return "mains" if "1" in online else "battery"
    batteries = [path.read_text().strip() for path in POWER_SUPPLIES.glob("BAT*/status")]
    return "battery" if "Discharging" in batteries else "unknown"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # optional: its absence is what the file tells
        return None
