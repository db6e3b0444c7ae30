"""When a fit or cycle becomes due by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from detectors.errors import PrunewatchError
from server.config import HUB, DetectorConfig, Every
from server.hosted import HostedDetector
from server.maintenance import FIT, Maintenance, Mark
from server.roster import Roster

TICK_SECONDS = 0.5
logger = logging.getLogger(__name__)


def is_due(every: Every, since: Mark, now: Mark) -> bool:
    """Whether a period has passed.

    >>> is_due(Every(points=100), Mark(0, 50), Mark(9, 150))
    True
    """
    if every.points is not None:
        return now.points - since.points >= every.points
    return every.seconds is not None and now.seconds - since.seconds >= every.seconds


class Scheduler:
    """Starts what is due: the first fit after `fit_after` points, refits, and prune cycles of each device class.

    Points are counted from the start of the process; times of the last fit and cycle are read from the catalog, so a
    restart neither repeats nor forgets them.

    Args:
        roster: The detectors.
        maintenance: What runs fits and cycles.
        clock: Seconds since the epoch.
    """

    def __init__(self, roster: Roster, maintenance: Maintenance, clock: Callable[[], float] = time.time) -> None:
        self._roster = roster
        self._maintenance = maintenance
        self._clock = clock

    async def run(self) -> None:
        """Looks twice a second until cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self.look()
            except Exception:
                logger.exception("the schedule could not be looked at; it will be tried again")

    async def look(self) -> None:
        """Starts whatever is due now."""
        for hosted in self._roster.host:
            if self._maintenance.is_busy(hosted.name):
                continue
            config = self._roster.config_of(hosted.name)
            try:
                if hosted.served is None:
                    await self._first_fit(hosted, config)
                else:
                    await self._next(hosted, config)
            except PrunewatchError as error:  # pinned, no points yet: it will be due again
                logger.warning("what is due for %s could not start: %s", hosted.name, error)

    async def _first_fit(self, hosted: HostedDetector, config: DetectorConfig) -> None:
        if config.fit_after is None or hosted.points_kept < config.fit_after:
            return
        row = await asyncio.to_thread(self._roster.catalog.get_detector, hosted.name)
        if row.state == "learning":  # one that failed waits to be asked
            await self._maintenance.fit(hosted.name, trigger="schedule")

    async def _next(self, hosted: HostedDetector, config: DetectorConfig) -> None:
        now = Mark(self._clock(), hosted.accepted)
        if (every := config.schedule.refit_every) is not None and await self._passed(hosted, every, FIT, now):
            await self._maintenance.fit(hosted.name, trigger="schedule")
            return
        if (every := config.schedule.prune_every) is None:
            return
        for device_class in config.device_classes or [HUB]:
            budget = self._roster.budget_of(device_class)
            if budget.is_set and await self._passed(hosted, every, device_class, now):
                await self._maintenance.prune(hosted.name, device_class, budget, trigger="schedule")
                return

    async def _passed(self, hosted: HostedDetector, every: Every, what: str, now: Mark) -> bool:
        """Whether the period of `what` (`FIT` or a device class) has passed; if so the next one begins."""
        marks, key = self._maintenance.marks, (hosted.name, what)
        if key not in marks:
            marks[key] = Mark(await asyncio.to_thread(self._last_time, hosted.name, what), 0)
        if not is_due(every, marks[key], now):
            return False
        marks[key] = now
        return True

    def _last_time(self, name: str, what: str) -> float:
        """When the last fit, or the last cycle of a device class, began; the last fit while there was none."""
        catalog = self._roster.catalog
        fitted = max((row.created for row in catalog.versions(name) if row.cause == "fit"), default=self._clock())
        if what == FIT:
            return fitted
        return max((row.started for row in catalog.cycles(name) if row.device_class == what), default=fitted)
