"""Gauges of the loop: how far periods have passed, what waits for a trainer, what runs."""

from __future__ import annotations

from collections import Counter

from server.bundle_readings import Values
from server.config import DetectorConfig
from server.host import Host
from server.loop_settings import Every
from server.maintenance import Maintenance
from server.metrics import Metrics
from server.pace import FIT, Pace
from server.progress import KINDS


class LoopReadings:
    """Of a hub.

    Args:
        metrics: Where it is shown.
        host: The detectors.
        maintenance: The queue of fits and cycles.
    """

    def __init__(self, metrics: Metrics, host: Host, maintenance: Maintenance) -> None:
        self._metrics = metrics
        self._host = host
        self._maintenance = maintenance

    def __call__(self) -> None:
        """Reads everything."""
        self._read_schedules()
        at_work = Counter((it.operation.kind, "running" if it.running else "waiting") for it in self._maintenance.tasks)
        self._metrics.operations.replace(
            {(kind, state): float(at_work[kind, state]) for kind in KINDS for state in ("waiting", "running")}
        )
        self._metrics.trainers.replace({(): self._maintenance.trainers})

    def _read_schedules(self) -> None:
        seconds, points, prunes, refits = Values(), Values(), Values(), Values()
        for hosted in self._host:
            schedule, name = hosted.config.schedule, hosted.name
            for what, every in (("refit", schedule.refit_every), ("prune", schedule.prune_every)):
                if every is not None and every.seconds is not None:
                    seconds[name, what] = every.seconds
                if every is not None and every.points is not None:
                    points[name, what] = every.points
            passed = self._passed(name, hosted.config)
            prunes |= {(name, device_class): share for device_class, share in passed.items()}
            if (share := _share(self._maintenance.pace, name, FIT, schedule.refit_every)) is not None:
                refits[(name,)] = share
        m = self._metrics
        m.interval_seconds.replace(seconds)
        m.interval_points.replace(points)
        m.prune_progress.replace(prunes)
        m.refit_progress.replace(refits)

    def _passed(self, name: str, config: DetectorConfig) -> dict[str, float]:
        pace, every = self._maintenance.pace, config.schedule.prune_every
        shares = {device_class: _share(pace, name, device_class, every) for device_class in config.device_classes}
        return {device_class: share for device_class, share in shares.items() if share is not None}


def _share(pace: Pace, name: str, what: str, every: Every | None) -> float | None:
    """Of a period; None where there is none, or nothing is known yet."""
    row = pace.find(name, what)
    if every is None or row is None:
        return None
    if every.points is not None:
        return max(row.points / every.points, 0.0)
    return max(row.seconds / every.seconds, 0.0) if every.seconds else None
