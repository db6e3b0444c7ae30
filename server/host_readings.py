"""Gauges of the detectors that a process scores, hub or device, read when somebody scrapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from server.config import Budget
from server.host import Host
from server.hosted import HostedDetector
from server.metrics import Metrics
from server.metrics.family import Labels, Readings

Values = dict[Labels, float]


class HostReadings:
    """What is asked of detectors, and how they do. Reads what the event loop writes, never the other way round.

    Args:
        metrics: Where it is shown.
        host: The detectors.
        device_class: Whose budget the steps of this process are held to.
        clock: Seconds since the epoch.
    """

    def __init__(self, metrics: Metrics, host: Host, device_class: str, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._host = host
        self._class = device_class
        self._clock = clock
        self._drifting: dict[Labels, float] = {}
        """Since when, by detector and kind."""

    def __call__(self) -> None:
        """Reads everything."""
        m, hosted = self._metrics, list(self._host)
        _each(m.false_alarm_rate, hosted, lambda it: it.config.false_alarm_rate)
        _each(m.alarm_flood, hosted, lambda it: it.config.probation.alarm_flood)
        _each(m.cool_down, hosted, lambda it: it.config.triggers.cool_down)
        _each(m.back_off, hosted, lambda it: it.config.probation.back_off)
        _each(m.state_limit, hosted, lambda it: it.config.series_memory)
        _each(m.unable, hosted, lambda it: bool(it.problem))
        self._read_steps(hosted)
        self._read_drift(hosted)
        self._read_histories(hosted)

    def _read_steps(self, hosted: Iterable[HostedDetector]) -> None:
        shown: Values = {}
        for it in hosted:
            for quantile, seconds in it.steps.quantiles().items():
                shown[it.name, self._class, quantile] = seconds
        self._metrics.live_step.replace(shown)

    def _read_drift(self, hosted: Iterable[HostedDetector]) -> None:
        drifting: Values = {}
        for it in hosted:
            if (drift := it.drift) is not None:
                drifting[it.name, "errors"] = drift.errors.drifts
                drifting[it.name, "inputs"] = drift.inputs.drifts
        now = self._clock()
        self._drifting = {key: self._drifting.get(key, now) for key, drifts in drifting.items() if drifts}
        self._metrics.drifting.replace(drifting)
        self._metrics.drift_since.replace(self._drifting)

    def _read_histories(self, hosted: Iterable[HostedDetector]) -> None:
        points: Values = {}
        size: Values = {}
        written: Values = {}
        for it in hosted:
            if (history := it.history) is None:
                continue
            points[(it.name,)] = it.points_kept
            stats = [found for path in history.paths() if (found := _stat(path)) is not None]
            size[(it.name,)] = sum(length for length, _ in stats)
            if stats:
                written[(it.name,)] = max(when for _, when in stats)
        m = self._metrics
        m.history_points.replace(points)
        m.history_bytes.replace(size)
        m.history_written.replace(written)


def times_of(budget: Budget) -> dict[str, float]:
    """Seconds that a step may take, by quantile; only those that are set.

    >>> times_of(Budget(p99=2e-3))
    {'0.99': 0.002}
    """
    return {it: seconds for it, seconds in (("0.5", budget.p50), ("0.99", budget.p99)) if seconds is not None}


def _each(readings: Readings, hosted: Iterable[HostedDetector], value: Callable[[HostedDetector], float]) -> None:
    readings.replace({(it.name,): float(value(it)) for it in hosted})


def _stat(path: Path) -> tuple[int, float] | None:
    """Length and time of the last write; None: merged into another one meanwhile."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime
