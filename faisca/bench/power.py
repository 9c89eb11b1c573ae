"""Where a machine's power comes from, and how much of it the machine uses: both decide how fast it computes."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

POWER_SUPPLIES = Path("/sys/class/power_supply")
PROFILE = Path("/sys/firmware/acpi/platform_profile")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
MODES = {"0": "automatic", "1": "low power", "2": "high power"}
"""what macOS's `powermode` means; older versions have `lowpowermode`, 0 or 1"""


def describe_power() -> dict[str, Any]:
    """`power` (mains, battery, unknown), `power_mode` in words or None, and `battery_percent` or None."""
    return _describe_mac() if sys.platform == "darwin" else _describe_linux()


def power_words(machine: dict[str, Any]) -> str:
    """As in `mains, battery 87 %, mode low power`; an older version's results say less."""
    words = [machine["power"]]
    if machine.get("battery_percent") is not None:
        words.append(f"battery {machine['battery_percent']} %")
    if "power_mode" in machine:
        words.append(f"mode {machine['power_mode'] or 'unknown'}")
    return ", ".join(words)


def output_of(*command: str) -> str:
    """What a command of macOS prints; nothing where it fails, as for a setting that this version lacks."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _describe_mac() -> dict[str, Any]:
    battery, settings = output_of("pmset", "-g", "batt"), output_of("pmset", "-g")
    percent = re.search(r"InternalBattery.*?(\d+)%", battery)
    mode = re.search(r"^\s*(?:low)?powermode\s+(\d)", settings, re.MULTILINE)
    return {
        "power": "battery" if "Battery Power" in battery else "mains",
        "power_mode": MODES.get(mode[1]) if mode else None,
        "battery_percent": int(percent[1]) if percent else None,
    }


def _describe_linux() -> dict[str, Any]:
    modes = {name: _text(path) for name, path in (("profile", PROFILE), ("governor", GOVERNOR))}
    capacities = [_text(path) for path in sorted(POWER_SUPPLIES.glob("BAT*/capacity"))]
    return {
        "power": _linux_source(),
        "power_mode": ", ".join(f"{name} {text}" for name, text in modes.items() if text) or None,
        "battery_percent": int(capacities[0]) if capacities and capacities[0].isdigit() else None,
    }


def _linux_source() -> str:
    online = [_text(path) for path in POWER_SUPPLIES.glob("*/online")]
    if online:
        return "mains" if "1" in online else "battery"
    batteries = [_text(path) for path in POWER_SUPPLIES.glob("BAT*/status")]
    return "battery" if "Discharging" in batteries else "unknown"


def _text(path: Path) -> str:
    """A file of sysfs; empty where this machine has none, or does not let us read it."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
