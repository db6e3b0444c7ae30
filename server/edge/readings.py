"""What explains how fast a device is at a moment: temperature, governor, load. Read from where Linux keeps it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

SYSTEM = Path("/sys")


def readings(system: Path = SYSTEM) -> dict[str, float | str]:
    """Temperature in degrees Celsius, governor, load of the last minute; what can not be read is left out.

    Args:
        system: Where Linux shows its devices.
    """
    found: dict[str, float | str] = {}
    temperatures = []
    for path in sorted(system.glob("class/thermal/thermal_zone*/temp")):
        with suppress(OSError, ValueError):
            temperatures.append(int(path.read_text(encoding="ascii")) / 1000)
    if temperatures:
        found["temperature_celsius"] = max(temperatures)
    with suppress(OSError, UnicodeDecodeError):
        path = system / "devices/system/cpu/cpu0/cpufreq/scaling_governor"
        found["governor"] = path.read_text(encoding="ascii").strip()
    with suppress(OSError, AttributeError):
        found["load"] = os.getloadavg()[0]
    return found
