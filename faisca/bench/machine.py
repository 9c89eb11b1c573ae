"""What a benchmark's reader has to know of the machine: processor, memory, versions, power."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from faisca.bench.power import describe_power, output_of
from faisca.system.packages import version_of
from faisca.text import format_bytes

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "MLX_ENABLE_TF32",
    "NVIDIA_TF32_OVERRIDE",
    "FAISCA_FAST_BLAS",
)
PACKAGES = ("faisca-mlx", "torch", "mlx", "mlx-lm", "transformers", "numpy")


def describe_machine() -> dict[str, Any]:
    """Facts for the JSON file; nothing in them names the user or the host."""
    return {
        "processor": _processor(),
        **_apple_gpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": _system(),
        **describe_power(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line, from the facts of `describe_machine` or of an older version's."""
    parts = [machine["processor"], f"{machine['cores']} cores"]
    if "gpu_cores" in machine:
        parts.append(f"{machine['gpu_cores'] or 'unknown'} GPU cores")
    parts += [format_bytes(machine["memory_bytes"]), machine["system"]]
    if "wired_limit_bytes" in machine:
        limit = machine["wired_limit_bytes"]
        parts.append(f"wired limit {format_bytes(limit) if limit else 'unknown' if limit is None else 'default'}")
    return ", ".join(parts)


def _processor() -> str:
    if sys.platform == "darwin":
        return output_of("sysctl", "-n", "machdep.cpu.brand_string")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _system() -> str:
    if sys.platform == "darwin":  # whose kernel has a number of its own that nobody knows
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _apple_gpu() -> dict[str, int | None]:
    """On a Mac, what tells results of one chip apart: None where macOS does not say; limit 0 is its default."""
    if sys.platform != "darwin":
        return {}
    displays = json.loads(output_of("system_profiler", "SPDisplaysDataType", "-json") or "{}")
    cores = [gpu["sppci_cores"] for gpu in displays.get("SPDisplaysDataType", []) if "sppci_cores" in gpu]
    limit = output_of("sysctl", "-n", "iogpu.wired_limit_mb")
    return {
        "gpu_cores": int(cores[0]) if cores else None,
        "wired_limit_bytes": int(limit) * 2**20 if limit else None,
    }
