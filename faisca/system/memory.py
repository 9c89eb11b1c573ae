"""Resident memory of this process: the peak that a run reports where the device has no counter of its own.

Linux keeps the peak (VmHWM) and lets a process reset it, so each stage can have a peak of its own.
macOS has no such reset: there, and where Linux refuses it, the peak is since the process began.
"""

import os
import resource
import sys
from pathlib import Path

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
CONTAINER = Path("/sys/fs/cgroup/memory.max")


def reset_peak() -> bool:
    """Make the peak start anew from what is resident now; False where the system does not allow it."""
    try:
        CLEAR_REFS.write_text("5")  # proc(5): resets VmHWM to the current resident size
    except OSError:  # not Linux, or a sandbox: the caller learns it from the result
        return False
    return True


def peak_resident_bytes() -> int:
    """Most bytes resident at once since the process began, or since a `reset_peak` that returned True."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024  # "VmHWM:   123456 kB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def physical_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or less where a container is allowed less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = CONTAINER.read_text().strip() if CONTAINER.exists() else "max"
    return min(machine, int(allowed)) if allowed.isdecimal() else machine
