"""Joules that a computation takes, from the counters that a machine lets anyone read: a meter for each kind.

None of them counts the screen, the fans or the power supply's losses, and each counts whatever else
runs meanwhile: compare one machine with itself, or machines that do nothing else.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from faisca.errors import FaiscaError

POWERCAP = Path("/sys/class/powercap")
PARTS = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj")
"""what zeus-apple-silicon counts of an Apple chip, in millijoules; None where a chip does not report it"""
REMEDY = 'pip install ".[energy]" in the checkout'


class Meter(Protocol):
    """A counter of energy."""

    counts: str
    """what it counts, in words"""

    def joules(self) -> float:
        """Since the meter was made. RAPL's counters wrap: read them at least every few minutes."""


def open_meter(device: str) -> Meter:
    """The meter for what computes on a device here; FaiscaError, which says why, where there is none."""
    if sys.platform == "darwin":
        return AppleMeter()
    if device in ("cuda", "gpu"):
        return NvidiaMeter()
    return RaplMeter(POWERCAP)


class AppleMeter:
    """The whole chip (CPU, GPU, memory, neural engine) by zeus-apple-silicon, which needs no root."""

    counts = "Apple chip"

    def __init__(self) -> None:
        zeus = _module("zeus_apple_silicon")
        try:
            self._monitor = zeus.AppleEnergyMonitor()
        except RuntimeError as error:
            raise FaiscaError(f"macOS does not report this chip's energy ({error})") from error
        found = self._read()
        if not found:
            raise FaiscaError(f"this chip reports none of {', '.join(PARTS)}")
        self.counts = f"Apple chip: {', '.join(name.removesuffix('_mj') for name in found)}"
        self._first = found

    def joules(self) -> float:
        """What all parts took, together."""
        now = self._read()
        return float(sum(now[name] - first for name, first in self._first.items())) / 1000

    def _read(self) -> dict[str, int]:
        metrics = self._monitor.get_cumulative_energy()
        values = {name: getattr(metrics, name, None) for name in PARTS}
        return {name: value for name, value in values.items() if value is not None}


class NvidiaMeter:
    """The GPU's board by NVML, without the processor beside it: the first one that CUDA may use."""

    counts = "NVIDIA GPU"

    def __init__(self) -> None:
        self._nvml = _module("pynvml")
        try:
            self._nvml.nvmlInit()
            self._handle = self._find()
            self._first = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as error:
            raise FaiscaError(f"NVML does not count this GPU's energy ({error})") from error

    def joules(self) -> float:
        """NVML counts millijoules since the driver was loaded."""
        now: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return float(now - self._first) / 1000

    def _find(self) -> Any:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
        if first.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(first))
        return self._nvml.nvmlDeviceGetHandleByUUID(first)


class RaplMeter:
    """The processor's packages by Linux's powercap, on Intel and AMD: cores, caches and the memory controller."""

    counts = "processor packages (RAPL)"

    def __init__(self, root: Path) -> None:
        named = [(path, (path / "name").read_text().strip()) for path in sorted(root.glob("intel-rapl:*"))]
        zones = [path for path, name in named if name.startswith("package")]  # their parts, and psys, count the same
        if not zones:
            raise FaiscaError(f"no energy counter: {root} has no package of intel-rapl, as in most virtual machines")
        self._counters = [zone / "energy_uj" for zone in zones]
        try:
            self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
            self._last = self._read()
        except PermissionError as error:
            raise FaiscaError(
                f"{error.filename} is readable by root alone: sudo chmod a+r {root}/intel-rapl:*/energy_uj"
            ) from error
        self._total = 0

    def joules(self) -> float:
        """Microjoules of all packages; a counter that is lower than before has wrapped, at its range."""
        now = self._read()
        for value, last, most in zip(now, self._last, self._ranges, strict=True):
            self._total += value - last + (most if value < last else 0)
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int(path.read_text()) for path in self._counters]


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FaiscaError(f"{name} is not installed: {REMEDY}") from error
