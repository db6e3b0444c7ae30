"""Every Prometheus family of the process, in one screen.

Label values come only from detector names (at most `max_detectors`), device classes and fixed enums, so the number of
time series is bounded. Everything lives in the registry that is passed in.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from detectors.stamps import Status

DETECTOR = "detector"
CLASS = "device_class"
# Client defaults begin at 5 ms; a step takes tens of microseconds.
BUCKETS = (25e-6, 50e-6, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3, 12.5e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """The families; `registry` is fresh for each process or test."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = r = registry
        ProcessCollector(registry=r)
        # How much is scored, and what becomes of it
        self.points = Counter(
            "prunewatch_points", "Points received, by what became of them.", [DETECTOR, "status"], registry=r
        )
        self.anomalies = Counter("prunewatch_anomalies", "Points at or above the threshold.", [DETECTOR], registry=r)
        self.series = Gauge("prunewatch_series", "Series with a state of their own.", [DETECTOR], registry=r)
        self.seated = Gauge(
            "prunewatch_series_in_memory", "Series whose state and ring are in memory.", [DETECTOR], registry=r
        )
        self.series_moves = Counter(
            "prunewatch_series_moves",
            "Series that left memory for the disk (evicted) and came back (restored).",
            [DETECTOR, "way"],
            registry=r,
        )
        self.state_bytes = Gauge(
            "prunewatch_state_bytes", "Memory of all series' state and rings.", [DETECTOR], registry=r
        )
        self.watch_dropped = Counter(
            "prunewatch_watch_dropped", "Anomalies not sent to slow Watch readers.", registry=r
        )
        self.anomalies_dropped = Counter(
            "prunewatch_anomalies_dropped", "Anomalies that could not be kept for later.", [DETECTOR], registry=r
        )
        self.history_dropped = Counter(
            "prunewatch_history_dropped_points", "Points that could not be kept for training.", [DETECTOR], registry=r
        )
        # How fast
        self.requests = Counter(
            "prunewatch_requests", "Calls that ended, by gRPC code.", ["method", "code"], registry=r
        )
        self.refused = Counter(
            "prunewatch_refused", "Calls and streams that were refused because there were too many.", registry=r
        )
        self.slow_readers = Counter(
            "prunewatch_slow_readers", "Streams that were ended because nobody read their answers.", registry=r
        )
        self.request_seconds = Histogram(
            "prunewatch_request_seconds",
            "Time of a call; of a scoring stream, of one message.",
            ["method"],
            buckets=BUCKETS,
            registry=r,
        )
        self.step_seconds = Histogram(
            "prunewatch_step_seconds", "Time of one step of a batch.", [DETECTOR], buckets=BUCKETS, registry=r
        )
        self.budget = Gauge(
            "prunewatch_budget_seconds",
            "What a step may take on a device class.",
            [DETECTOR, CLASS, "quantile"],
            registry=r,
        )
        self.measured = Gauge(
            "prunewatch_measured_step_seconds",
            "What a step of the served bundle took when measured.",
            [DETECTOR, CLASS, "quantile"],
            registry=r,
        )
        self.drift = Gauge(
            "prunewatch_drift",
            "How far errors and inputs are from what a detector was calibrated on, 0 to 1.",
            [DETECTOR, "kind"],
            registry=r,
        )
        # How big
        self.parameters = Gauge(
            "prunewatch_parameters", "Parameters of the served network.", [DETECTOR, CLASS], registry=r
        )
        self.units = Gauge("prunewatch_units", "Hidden units of the served network.", [DETECTOR, CLASS], registry=r)
        self.bundle_bytes = Gauge(
            "prunewatch_bundle_bytes", "Bytes of a bundle's files.", [DETECTOR, CLASS, "kind"], registry=r
        )
        # What changes
        self.cycles = Counter(
            "prunewatch_cycles", "Cycles that ended.", [DETECTOR, CLASS, "trigger", "outcome"], registry=r
        )
        self.adoptions = Counter(
            "prunewatch_adoptions",
            "Probations of adopted versions that ended.",
            [DETECTOR, CLASS, "state"],
            registry=r,
        )
        self.swaps = Counter(
            "prunewatch_swaps", "Versions that took over from another under running streams.", [DETECTOR], registry=r
        )
        self.detector_info = Gauge(
            "prunewatch_detector_info",
            "1 for what a device class serves.",
            [DETECTOR, CLASS, "version", "bundle", "network"],
            registry=r,
        )
        self.build_info = Gauge(
            "prunewatch_build_info", "1 for this program.", ["version", "python", "onnxruntime"], registry=r
        )
        self.build_info.labels(program_version(), ".".join(map(str, sys.version_info[:3])), ort.__version__).set(1)

    def for_detector(self, name: str) -> DetectorMetrics:
        """The families of the scoring path, resolved once."""
        return DetectorMetrics(self, name)

    def forget(self, name: str) -> None:
        """Removes every time series of a detector that was deleted."""
        for family in vars(self).values():
            if isinstance(family, MetricWrapperBase) and DETECTOR in family._labelnames:  # noqa: SLF001  (no public name)
                family.remove_by_labels({DETECTOR: name})

    def set_budget(self, detector: str, device_class: str, quantiles: Mapping[str, float | None]) -> None:
        """Publishes the budget of a device class; None where there is none."""
        for quantile, seconds in quantiles.items():
            if seconds is not None:
                self.budget.labels(detector, device_class, quantile).set(seconds)


class DetectorMetrics:
    """One detector's children of the families that every request touches."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self.points = {int(it): metrics.points.labels(name, it.name.lower()) for it in Status if it}  # 0 is never sent
        self.anomalies = metrics.anomalies.labels(name)
        self.step_seconds = metrics.step_seconds.labels(name)
        self.swaps = metrics.swaps.labels(name)
        self.series = metrics.series.labels(name)
        self.seated = metrics.seated.labels(name)
        self.evicted = metrics.series_moves.labels(name, "evicted")
        self.restored = metrics.series_moves.labels(name, "restored")
        self.state_bytes = metrics.state_bytes.labels(name)
        self.anomalies_dropped = metrics.anomalies_dropped.labels(name)
        self.history_dropped = metrics.history_dropped.labels(name)
        self._drift = metrics.drift
        self._name = name

    def drift(self, errors: float, inputs: float) -> None:
        """Publishes how far live points have drifted."""
        self._drift.labels(self._name, "errors").set(errors)
        self._drift.labels(self._name, "inputs").set(inputs)

    def count(self, statuses: NDArray[np.uint8], anomalies: int) -> None:
        """Counts the points of one request."""
        n = len(statuses)
        if n and np.count_nonzero(statuses == statuses[0]) == n:  # the usual case, without a histogram
            self.points[int(statuses[0])].inc(n)
        else:
            for status, count in enumerate(np.bincount(statuses).tolist()):
                if count:
                    self.points[status].inc(count)
        if anomalies:
            self.anomalies.inc(anomalies)


class DeviceMetrics:
    """What a device has beside: its link, its reports, its temperature. Not on a hub."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.connected = Gauge("prunewatch_hub_connected", "1 while the link to the hub is open.", registry=r)
        self.last_contact = Gauge(
            "prunewatch_hub_last_contact_timestamp_seconds", "When the hub was last heard of; 0: never.", registry=r
        )
        self.outbox_bytes = Gauge("prunewatch_outbox_bytes", "Reports that wait for the hub.", registry=r)
        self.outbox_dropped = Counter(
            "prunewatch_outbox_dropped", "Reports that had to go for want of room.", ["kind"], registry=r
        )
        self.rejections = Counter(
            "prunewatch_bundle_rejections", "Releases that were refused or given up.", [DETECTOR, "reason"], registry=r
        )
        self.temperature = Gauge(
            "prunewatch_device_temperature_celsius", "Of the processor; NaN: not to be read.", registry=r
        )


def program_version() -> str:
    """The installed version of prunewatch."""
    try:
        return version("prunewatch")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
