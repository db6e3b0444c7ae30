"""The machine that times are of. Free of torch: the service asks too."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import onnxruntime

PROCESSORS = Path("/proc/cpuinfo")


def machine() -> dict[str, str]:
    """What measured times depend on beside the graphs."""
    return {
        "node": platform.node(),
        "machine": platform.machine(),
        "processor": processor(),
        "runtime": onnxruntime.__version__,
    }


@cache
def processor() -> str:
    """The model of the processor, where the system says one; Python does not look where Linux keeps it."""
    try:
        lines = PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
