"""Every Prometheus family of the process: a module for each group, a line or two for each family.

`traffic`, `speed`, `size`, `quality` and `life` are the tables. What is counted are plain objects (`cells`), since
scoring touches them; everything else is read when somebody scrapes (`server.host_readings`, `catalog_readings`,
`loop_readings`). Everything lives in the registry that is passed in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import onnxruntime as ort
from prometheus_client import CollectorRegistry, ProcessCollector

from server.metrics.detector import DetectorMetrics, Groups

__all__ = ["DetectorMetrics", "Metrics", "program_version"]
STORE_PARTS = ("history", "series", "anomalies", "book", "metrics")
"""Values of `part` in `prunewatch_store_failures_total`."""


class Metrics(Groups):
    """All families of a process.

    Args:
        registry: Fresh for each process or test.
        budget: Seconds that a step may take here; histograms of times have bounds there.
        role: What the process is.
    """

    def __init__(
        self, registry: CollectorRegistry, budget: Iterable[float] = (), role: Literal["hub", "edge"] = "hub"
    ) -> None:
        super().__init__(registry, budget)
        ProcessCollector(registry=registry)
        python = ".".join(map(str, sys.version_info[:3]))
        self.build_info.labels(role, program_version(), python, ort.__version__).set(1)
        for part in STORE_PARTS:
            self.store_failures.labels(part)

    def for_detector(self, name: str) -> DetectorMetrics:
        """The families of the scoring path, resolved once."""
        return DetectorMetrics(self, name)

    def unread(self) -> None:
        """Counts a reader that failed."""
        self.store_failures.labels("metrics").inc()


def program_version() -> str:
    """The installed version of prunewatch."""
    try:
        return version("prunewatch")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
