"""When a fit or cycle begins by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from detectors.errors import PrunewatchError
from server.config import DetectorConfig
from server.hosted import HostedDetector
from server.maintenance import Maintenance
from server.pace import COOL_DOWN, FIT, LONG_AGO, is_due
from server.records import PaceRow
from server.roster import Roster
from server.sentry import Sentry
from server.triggers import (
    BY_THEMSELVES,
    REMEMBERED_CYCLES,
    Demand,
    allowed,
    cooled_down,
    in_words,
    reconfigured,
    scheduled,
)

TICK_SECONDS = 0.5
SAVE_SECONDS = 5.0
SAVE_ALL_SECONDS = 60.0
HOLD_SECONDS = 5.0
"""What may not begin (frozen, pinned, cooling down) is looked at again after so long ..."""
ERROR_SECONDS = 60.0
"""... and what could not."""
logger = logging.getLogger("prunewatch.schedule")


class Scheduler:
    """Begins what is due: the first fit after `fit_after` points, refits, and cycles, for whatever reason.

    A cycle is one for all device classes that are due. Seconds and points are counted over restarts (`server.pace`).

    Args:
        roster: The detectors.
        maintenance: What runs fits and cycles.
        clock: Seconds since the epoch.
        monotonic: Seconds that only ever pass.
    """

    def __init__(
        self,
        roster: Roster,
        maintenance: Maintenance,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roster = roster
        self._maintenance = maintenance
        self._pace = maintenance.pace
        self._sentry = Sentry(roster, maintenance, monotonic)
        self._clock = clock
        self._monotonic = monotonic
        self._held: dict[str, float] = {}
        """Until when a detector is left alone."""
        self._saved = self._saved_all = monotonic()

    @property
    def sentry(self) -> Sentry:
        """What watches drift and budgets."""
        return self._sentry

    async def run(self) -> None:
        """Looks twice a second until cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self.look()
            except Exception:
                logger.exception("the schedule could not be looked at; it will be tried again")

    async def look(self) -> None:
        """Begins whatever is due now."""
        for hosted in self._roster.host:
            try:
                await self._look_at(hosted)
            except PrunewatchError as error:  # no points yet, somebody came first: it is still due
                self._held[hosted.name] = self._monotonic() + ERROR_SECONDS
                logger.warning("what is due for %s could not start: %s", hosted.name, error)
            except Exception:
                self._held[hosted.name] = self._monotonic() + ERROR_SECONDS
                logger.exception("what is due for %s could not start", hosted.name)
        if self._monotonic() >= self._saved + SAVE_SECONDS:
            await self.save(everything=self._monotonic() >= self._saved_all + SAVE_ALL_SECONDS)

    async def save(self, *, everything: bool = True) -> None:
        """Makes durable what has passed; without `everything` only where points came or something began."""
        self._saved = self._monotonic()
        if everything:
            self._saved_all = self._saved
        rows = self._pace.take_all() if everything else self._pace.take_changed()
        if rows:
            await asyncio.to_thread(self._roster.catalog.keep_paces, rows)
        await self._sentry.save(everything=everything)

    async def _look_at(self, hosted: HostedDetector) -> None:
        name = hosted.name
        config = self._roster.config_of(name)
        busy = self._maintenance.is_busy(name)
        if hosted.served is not None:
            if not self._pace.is_open(name):
                await self._open(hosted, config)
            self._pace.advance(name, hosted.accepted)
            await self._sentry.look_at(hosted, config)
        if busy or self._monotonic() < self._held.get(name, 0.0):
            return
        self._held.pop(name, None)
        if hosted.served is None:
            await self._first_fit(hosted, config)
        elif self._is_refit_due(name, config):
            await self._refit(hosted, config)
        elif hosted.shift_points and hosted.lasting.lasts(hosted.shift_points) and self._has_cooled_down(name, config):
            await self._follow_shift(hosted)
        else:
            await self._cycle(hosted, config)

    async def _first_fit(self, hosted: HostedDetector, config: DetectorConfig) -> None:
        if config.fit_after is None or hosted.points_kept < config.fit_after:
            return
        row = await asyncio.to_thread(self._roster.catalog.get_detector, hosted.name)
        if row.state != "learning" or row.frozen:  # one that failed waits to be asked
            self._hold(hosted.name)
            return
        await self._maintenance.fit(hosted.name, trigger="schedule")
        await self._began(hosted, FIT)

    def _is_refit_due(self, name: str, config: DetectorConfig) -> bool:
        every, row = config.schedule.refit_every, self._pace.find(name, FIT)
        return every is not None and row is not None and is_due(every, row, config.schedule.jitter)

    async def _refit(self, hosted: HostedDetector, config: DetectorConfig) -> None:
        if (await asyncio.to_thread(self._roster.catalog.get_detector, hosted.name)).frozen:
            self._hold(hosted.name)
            return
        await self._maintenance.fit(hosted.name, trigger="schedule")
        self._pace.begin(hosted.name, FIT, hosted.accepted, every=config.schedule.refit_every)
        await self.save(everything=False)

    def _has_cooled_down(self, name: str, config: DetectorConfig) -> bool:
        return cooled_down(name, config, self._pace, ())

    async def _follow_shift(self, hosted: HostedDetector) -> None:
        """What stayed flagged is learned from, by a parent of its own: the one there is is held to what it knew."""
        name = hosted.name
        if (await asyncio.to_thread(self._roster.catalog.get_detector, name)).frozen:
            self._hold(name)
            return
        logger.warning("most points of %s have been flagged for long: they count as normal from now on", name)
        await self._maintenance.fit(name, trigger="shift")
        for what in (FIT, COOL_DOWN):
            self._pace.begin(name, what, hosted.accepted)
        await self.save(everything=False)

    async def _cycle(self, hosted: HostedDetector, config: DetectorConfig) -> None:
        name = hosted.name
        demand = scheduled(name, config, self._pace) or await self._unscheduled(hosted, config)
        if demand is None:
            return
        classes = await asyncio.to_thread(
            allowed, self._roster.catalog, name, config, demand.device_classes, self._clock()
        )
        if not classes:
            self._hold(name)
            return
        await self._maintenance.cycle(name, classes, trigger=demand.trigger, cause=demand.cause)
        self._sentry.forget(name)
        every = config.schedule.prune_every if demand.trigger == "schedule" else None
        for device_class in classes:
            budget = in_words(self._roster.budget_of(device_class))
            self._pace.begin(name, device_class, hosted.accepted, every=every, budget=budget)
        if demand.trigger in BY_THEMSELVES:
            self._pace.begin(name, COOL_DOWN, hosted.accepted)
        await self.save(everything=False)

    async def _unscheduled(self, hosted: HostedDetector, config: DetectorConfig) -> Demand | None:
        """What something else than the schedule asks for, when it may."""
        name = hosted.name
        demand = None
        if config.triggers.config_change:
            demand = reconfigured(name, config, self._pace, self._roster.budget_of)
        demand = demand or await self._sentry.demand(hosted, config)
        if demand is None:
            return None
        cycles = await asyncio.to_thread(self._roster.catalog.cycles, name, REMEMBERED_CYCLES)
        if cooled_down(name, config, self._pace, cycles):
            return demand
        self._hold(name)
        return None

    def _hold(self, name: str) -> None:
        self._held[name] = self._monotonic() + HOLD_SECONDS

    async def _began(self, hosted: HostedDetector, what: str) -> None:
        self._pace.begin(hosted.name, what, hosted.accepted)
        await self.save(everything=False)

    async def _open(self, hosted: HostedDetector, config: DetectorConfig) -> None:
        """Goes on from what was saved; what is new begins with the last fit, or now."""
        name, pace = hosted.name, self._pace
        rows = await asyncio.to_thread(self._roster.catalog.paces, name)
        fitted = await asyncio.to_thread(self._seconds_since_fit, name)
        pace.open(name, rows)
        pace.advance(name, hosted.accepted)
        classes = config.device_classes
        is_known = any(row.what in classes for row in rows)
        fit = pace.find(name, FIT)
        if fit is None:
            fit = PaceRow(name, FIT, seconds=fitted)
            pace.put(fit)
        for device_class in classes:
            if pace.find(name, device_class) is None:
                # A class that the detector did not have before has no budget yet, so that it is seen to have changed.
                budget = "" if is_known else in_words(self._roster.budget_of(device_class))
                pace.put(PaceRow(name, device_class, fit.seconds, fit.points, budget=budget))
        if pace.find(name, COOL_DOWN) is None:
            pace.put(PaceRow(name, COOL_DOWN, seconds=LONG_AGO))

    def _seconds_since_fit(self, name: str) -> float:
        fits = [row.created for row in self._roster.catalog.versions(name) if row.cause == "fit"]
        return max(0.0, self._clock() - max(fits)) if fits else 0.0
