"""Gauges of what devices measure and of what waits for them, read when somebody scrapes."""

from __future__ import annotations

from server.fleet.measuring import Measuring
from server.metrics import Metrics
from server.roster import Roster
from server.waiting import Waiting

REJECTED = ("refused", "fell_back")
ENDED = ("complete", "stopped")
PROBES = ("used", "unused", "failed")
POINTS = ("kept", "repeated", "refused")


class FleetReadings:
    """Of a hub's devices.

    Args:
        metrics: Where it is shown.
        roster: The detectors and classes.
        measuring: What devices measure.
    """

    def __init__(self, metrics: Metrics, roster: Roster, measuring: Measuring) -> None:
        self._metrics = metrics
        self._roster = roster
        self._measuring = measuring

    def __call__(self) -> None:
        """Reads everything. Counters of classes with devices begin at 0, so that the first event is an increase."""
        m, measuring = self._metrics, self._measuring
        classes = [it for it in list(self._roster.device_classes) if measuring.measures(it)]
        for device_class in classes:
            for reason in REJECTED:
                m.bundle_rejections.labels(device_class, reason)
            for outcome in ENDED:
                m.rollouts_ended.labels(device_class, outcome)
            for outcome in PROBES:
                m.probes.labels(device_class, outcome)
        hosted = [it for it in list(self._roster.host) if it.served is not None]
        places = [(it.name, name) for it in hosted for name in it.config.device_classes if name in classes]
        for detector in {name for name, _ in places}:
            for outcome in POINTS:
                m.field_points.labels(detector, outcome)
        m.table_devices.replace({place: self._rests_on(*place) for place in places})
        steps = measuring.in_service.in_use()
        m.in_use.replace(
            {(*key, q): it for key, both in steps.items() for q, it in zip(("0.5", "0.99"), both, strict=True)}
        )
        rows = self._roster.catalog.awaiting()
        m.waiting_since.replace({(it.detector, it.device_class): it.started for it in rows})
        m.waiting_expires.replace({(it.detector, it.device_class): Waiting.of(it).expires for it in rows})

    def _rests_on(self, detector: str, device_class: str) -> int:
        table = self._measuring.grids.known(detector, device_class)
        return 0 if table is None else len(self._measuring.grids.fresh(table))
