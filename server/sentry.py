"""Watches what serves: whether points drift away from it, and whether it keeps its budget."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from server.config import HUB, Budget, DetectorConfig
from server.drift import Drift
from server.drift_files import read_drift, write_drift
from server.hosted import HostedDetector
from server.maintenance import Maintenance
from server.roster import Roster
from server.triggers import Demand, measured_above

MEASURED_SECONDS = 60.0
"""The book is asked for measurements so often."""
logger = logging.getLogger("prunewatch.sentry")


def _nothing(_detector: str, _device_class: str, _bundle: str, _budget: Budget) -> str:
    return ""


class Sentry:
    """Of all detectors.

    Args:
        roster: The detectors.
        maintenance: Says whether a trainer is at work.
        monotonic: Seconds that only ever pass.
    """

    def __init__(
        self, roster: Roster, maintenance: Maintenance, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._roster = roster
        self._maintenance = maintenance
        self._monotonic = monotonic
        self.missed_on_devices: Callable[[str, str, str, Budget], str] = _nothing
        """How a class misses its budget in use, of a detector, a class, what serves there and the budget."""
        self._measured: dict[str, tuple[float, dict[str, str]]] = {}
        """By detector: when the book was asked, and which device classes were measured above their budget."""
        self._budgets: dict[str, Budget] = {}
        """Of all classes, as they were when the book was asked."""
        self._changes = 0
        """Of what serves anywhere, and of other things in the book."""
        told = roster.catalog.changed

        def changed(name: str) -> None:
            told(name)
            self.forget(name)

        roster.catalog.changed = changed

    async def look_at(self, hosted: HostedDetector, config: DetectorConfig) -> None:
        """Counts the points that came."""
        if not config.triggers.drift:
            return
        if hosted.drift is None:
            root, window = self._roster.store.root, config.triggers.drift_window
            hosted.drift = await asyncio.to_thread(read_drift, root, hosted.name, window)
        await asyncio.to_thread(hosted.drift.work)
        hosted.metrics.drift(hosted.drift.errors.distance, hosted.drift.inputs.distance)

    async def demand(self, hosted: HostedDetector, config: DetectorConfig) -> Demand | None:
        """What asks for a cycle: a missed budget, or drift."""
        triggers = config.triggers
        if triggers.missed_budget and (missed := await self._missed(hosted, config)):
            return Demand("missed_budget", "; ".join(missed.values()), tuple(missed))
        if triggers.drift and hosted.drift is not None and hosted.drift.drifts:
            return Demand("drift", hosted.drift.cause, tuple(config.device_classes))
        return None

    async def _missed(self, hosted: HostedDetector, config: DetectorConfig) -> dict[str, str]:
        """Device classes whose budget is missed, and how: as measured by cycles and devices, here also in use."""
        asked, missed = self._measured.get(hosted.name, (float("-inf"), {}))
        if self._roster.device_classes != self._budgets:
            self._budgets = dict(self._roster.device_classes)
            self._measured.clear()
            asked = float("-inf")
        if self._monotonic() >= asked + MEASURED_SECONDS:
            changes = self._changes
            missed = await asyncio.to_thread(self._measured_above, hosted.name)
            if changes == self._changes:
                self._measured[hosted.name] = self._monotonic(), missed
        found = {key: how for key, how in missed.items() if key in config.device_classes}
        if not self._maintenance.is_idle:  # a trainer on the same cores slows every step
            hosted.steps.clear()
        elif HUB in config.device_classes and (how := hosted.steps.missed(self._roster.budget_of(HUB))):
            found[HUB] = how
        return found

    def _measured_above(self, name: str) -> dict[str, str]:
        catalog = self._roster.catalog
        serving = catalog.all_serving(name)
        measurements = {it.bundle_hash: catalog.measurements(it.bundle_hash) for it in serving}
        found = measured_above(serving, measurements, self._roster.budget_of)
        for it in serving:
            budget = self._roster.budget_of(it.device_class)
            if how := self.missed_on_devices(name, it.device_class, it.bundle_hash, budget):
                found.setdefault(it.device_class, how)
        return found

    def forget(self, name: str) -> None:
        """Has the book asked again, after something else began to serve. For any thread."""
        self._changes += 1
        self._measured.pop(name, None)

    async def save(self, *, everything: bool) -> None:
        """Makes durable what drift is measured by; without `everything` nothing, as it may be learned anew."""
        if not everything:
            return
        for hosted in self._roster.host:
            if (drift := hosted.drift) is not None and drift.changed:
                await asyncio.to_thread(_saved, self._roster, hosted.name, drift)


def _saved(roster: Roster, name: str, drift: Drift) -> None:
    try:
        drift.work()
        drift.changed = False
        write_drift(roster.store.root, name, drift)
    except OSError:
        drift.changed = True
        logger.exception("what drift of %s is measured by could not be written; it will be tried again", name)
