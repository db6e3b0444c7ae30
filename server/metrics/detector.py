"""One detector's time series of the families that the scoring path touches, resolved once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.stamps import Status
from server.metrics.fleet import FleetMetrics
from server.metrics.life import Life
from server.metrics.quality import Quality
from server.metrics.size import Size
from server.metrics.speed import Speed
from server.metrics.traffic import Traffic


class Groups(Traffic, Speed, Size, Quality, Life, FleetMetrics):
    """All families."""


class DetectorMetrics:
    """Of one detector."""

    def __init__(self, metrics: Groups, name: str) -> None:
        self.points = {int(it): metrics.points.labels(name, it.name.lower()) for it in Status if it}  # 0 is never sent
        self.anomalies = metrics.anomalies.labels(name)
        self.step_seconds = metrics.step_seconds.labels(name)
        self.queue_seconds = metrics.queue_seconds.labels(name)
        self.swaps = metrics.swaps.labels(name)
        self.series = metrics.series.labels(name)
        self.seated = metrics.seated.labels(name)
        self.evicted = metrics.series_moves.labels(name, "evicted")
        self.restored = metrics.series_moves.labels(name, "restored")
        self.state_bytes = metrics.state_bytes.labels(name)
        self.anomalies_dropped = metrics.anomalies_dropped.labels(name)
        self.history_dropped = metrics.history_dropped.labels(name)
        self.history_failed = metrics.store_failures.labels("history")
        self.series_failed = metrics.store_failures.labels("series")
        self.score = metrics.score.labels(name)
        """Written by the thread that writes the history."""
        self._drift = metrics.drift
        self._name = name

    def drift(self, errors: float, inputs: float) -> None:
        """Publishes how far live points have drifted."""
        self._drift.labels(self._name, "errors").set(errors)
        self._drift.labels(self._name, "inputs").set(inputs)

    def count(self, statuses: NDArray[np.uint8], anomalies: int) -> None:
        """Counts the points of one request."""
        raw = statuses.tobytes()
        if not raw:
            return
        n = raw.count(raw[:1])
        if n == len(raw):  # the usual case, without a histogram
            self.points[raw[0]].value += n
        else:
            for status in set(raw):
                self.points[status].value += raw.count(status)
        if anomalies:
            self.anomalies.value += anomalies
