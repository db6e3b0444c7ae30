"""Every detector this process scores, by name. Knows neither the store nor the transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from detectors.errors import NotFoundError
from server.anomalies import Anomaly
from server.anomaly_keeping import AnomalyBook, AnomalyBuffer, AnomalyKeeper
from server.config import Budget, DetectorConfig
from server.hosted import HostedDetector
from server.metrics import DetectorMetrics, Metrics
from server.series_file import SeriesFile
from server.watchers import Watchers


class Host:
    """The hosted detectors.

    Args:
        metrics: Where they count.
        ring_points: Raw points kept of each series.
        clock: Nanoseconds since the epoch.
        book: Keeps anomalies for good; None: they are only announced.
        budget: What a step may cost here.
        remember: Where nothing keeps anomalies, the newest of each detector that are held in memory to be looked at.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        ring_points: int = 256,
        clock: Callable[[], int] = time.time_ns,
        book: AnomalyBook | None = None,
        budget: Budget | None = None,
        remember: int = 0,
    ) -> None:
        self.metrics = metrics
        self.watchers = Watchers(metrics.watch_dropped.inc)
        failed = metrics.store_failures.labels("anomalies").inc
        self.anomalies = AnomalyKeeper(book, failed) if book is not None else None
        """What was found; None where nothing is kept."""
        self._ring_points = ring_points
        self._clock = clock
        self._budget = budget
        self._remember = remember
        self._remembered: dict[str, AnomalyBuffer] = {}
        self._detectors: dict[str, HostedDetector] = {}

    def __iter__(self) -> Iterator[HostedDetector]:
        return iter(list(self._detectors.values()))

    def __len__(self) -> int:
        return len(self._detectors)

    def __contains__(self, name: str) -> bool:
        return name in self._detectors

    def get(self, name: str) -> HostedDetector:
        """A detector; NotFoundError names those there are."""
        hosted = self._detectors.get(name)
        if hosted is None:
            known = ", ".join(sorted(self._detectors)[:5])
            raise NotFoundError(
                f"there is no detector {name!r}.",
                field="detector",
                hint=f"There are: {known}." if known else "Create one first.",
            )
        return hosted

    def add(
        self,
        name: str,
        config: DetectorConfig,
        features: Sequence[str] | None = None,
        shelf: SeriesFile | None = None,
    ) -> HostedDetector:
        """Begins to host a detector that learns; `shelf` is where its series go that there is no room for."""
        metrics = self.metrics.for_detector(name)
        hosted = HostedDetector(
            name,
            config,
            ring_points=self._ring_points,
            metrics=metrics,
            watchers=self.watchers,
            found=self._buffer(name, config, metrics),
            features=features,
            clock=self._clock,
            budget=self._budget,
            shelf=shelf,
        )
        self._detectors[name] = hosted
        return hosted

    def _buffer(self, name: str, config: DetectorConfig, metrics: DetectorMetrics) -> AnomalyBuffer | None:
        """Where anomalies of a detector go."""
        if self.anomalies is not None:
            return self.anomalies.begin(name, config.history.max_anomalies, metrics.anomalies_dropped.inc)
        if not self._remember:
            return None
        return self._remembered.setdefault(name, AnomalyBuffer(name, self._remember, lambda _lost: None))

    def remembered(self, name: str) -> list[Anomaly]:
        """Anomalies of a detector that are held in memory because nothing keeps them, newest first."""
        buffer = self._remembered.get(name)
        return [] if buffer is None else buffer.waiting()[::-1]

    def remove(self, name: str) -> None:
        """Hosts a detector no more."""
        if (hosted := self._detectors.pop(name, None)) is not None:
            hosted.deleted = True
            self.metrics.forget(name)
            self._remembered.pop(name, None)
            if self.anomalies is not None:
                self.anomalies.end(name)

    async def settle(self, removed: HostedDetector) -> None:
        """Waits until nothing of a detector that was removed is being written any more."""
        await removed.settle()
        if self.anomalies is not None:
            await self.anomalies.settle()

    def observe(self) -> None:
        """Refreshes the gauges of all detectors."""
        for hosted in self:
            hosted.observe()

    async def shelve(self) -> None:
        """Makes the series of all detectors outlive the process; those that were silent for too long are forgotten."""
        for hosted in self:
            await hosted.forget_silent()
            await hosted.shelve()

    async def flush(self) -> None:
        """Makes the points and anomalies of all detectors durable."""
        histories = (hosted.flush() for hosted in self)
        await asyncio.gather(*histories, *([self.anomalies.flush()] if self.anomalies is not None else ()))
