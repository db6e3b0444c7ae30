"""What a machine is and how it is: read from the system; what is not there to be read is left out."""

from __future__ import annotations

import math
import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from server.metrics import program_version

ROOT = Path("/")
PREFERRED = ("cpu", "soc", "core", "k10temp", "x86_pkg")
"""Thermal zones of processors are called so."""
PLAUSIBLE = (-60.0, 200.0)
"""Degrees Celsius; a sensor that is not connected says something else."""


@dataclass(frozen=True)
class Facts:
    """A machine.

    Attributes:
        program_version: Of prunewatch.
        runtime_version: Of ONNX Runtime.
        architecture: `aarch64`, `x86_64`.
        processor: Its model; empty where the system does not say.
        cores: That this process may use.
        memory_bytes: That this process may use; 0 where that is not known.
        governor: Of the processor's frequency; empty where there is none to read.
    """

    program_version: str
    runtime_version: str
    architecture: str
    processor: str
    cores: int
    memory_bytes: int
    governor: str


def facts(root: Path = ROOT) -> Facts:
    """What kind of machine this is; `root` is where `/proc` and `/sys` are."""
    return Facts(
        program_version(),
        ort.__version__,
        platform.machine(),
        processor(root),
        cores(root),
        memory(root),
        governor(root),
    )


def processor(root: Path = ROOT) -> str:
    """Model of the processor, or of the board where only that has a name."""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    named = found[1] if found else _read(root / "proc/device-tree/model").rstrip("\0")
    return named.strip()[:200]


def cores(root: Path = ROOT) -> int:
    """Cores that this process may use: of the affinity mask, and of the time that its control group has."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:  # control groups of version 1
        quota = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    with suppress(ValueError, ZeroDivisionError):
        if (share := int(quota) / int(period)) > 0:
            return max(1, min(mine, math.ceil(share)))
    return mine


def memory(root: Path = ROOT) -> int:
    """Bytes of memory that this process may use."""
    limits = []
    if total := re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE):
        limits.append(int(total[1]) << 10)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(ValueError):
            limits.append(int(_read(root / "sys/fs/cgroup" / name)))
    return min(limits, default=0)


def governor(root: Path = ROOT) -> str:
    """Who decides on the processor's frequency."""
    return _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")[:64]


def temperature(root: Path = ROOT) -> float:
    """Of the processor in degrees Celsius; NaN where there is none to read."""
    found: list[tuple[int, float]] = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind = _read(zone / "type").lower()
        with suppress(ValueError):
            degrees = int(_read(zone / "temp")) / 1000
            if PLAUSIBLE[0] < degrees < PLAUSIBLE[1]:
                found.append((0 if any(it in kind for it in PREFERRED) else 1, degrees))
    if not found:
        return math.nan
    nearest = min(rank for rank, _ in found)
    return max(degrees for rank, degrees in found if rank == nearest)


def readings(root: Path = ROOT) -> dict[str, float | str]:
    """What explains how fast it is at this moment: temperature, governor, load of the last minute."""
    found: dict[str, float | str] = {}
    if math.isfinite(degrees := temperature(root)):
        found["temperature_celsius"] = degrees
    if who := governor(root):
        found["governor"] = who
    with suppress(OSError, AttributeError):
        found["load"] = os.getloadavg()[0]
    return found


def resident(root: Path = ROOT) -> int:
    """Resident memory of this process in bytes; 0 where that is not known."""
    pages = _read(root / "proc/self/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
