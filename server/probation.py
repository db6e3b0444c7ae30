"""Versions that have come to serve prove themselves on live points, or the one before serves again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from detectors.errors import ConflictError, PreconditionError, PrunewatchError
from detectors.failpoints import failpoint
from detectors.served import Served
from server.conduct import Race, misconduct
from server.config import HUB
from server.hosted import HostedDetector
from server.metrics import Metrics
from server.records import AdoptionRow
from server.roster import Roster
from server.shadow import Shadow

LOOK_SECONDS = 1.0
logger = logging.getLogger("prunewatch.probation")


@dataclass
class Trial:
    """A probation that lasts.

    Attributes:
        adoption: In the catalog.
        shadow: The version before, on the same points; None until both can follow.
        race: Between the two.
    """

    adoption: AdoptionRow
    shadow: Shadow | None = None
    race: Race | None = None


class Probations:
    """Watches what cycles made serve on the hub.

    After a restart a probation goes on with new counts. A version that another one takes over from on probation is kept
    or goes back together with that one.

    Args:
        roster: The detectors.
        metrics: Counts how probations end.
        published: Set when there may be a new one.
        clock: Seconds since the epoch, as the catalog's.
    """

    def __init__(
        self, roster: Roster, metrics: Metrics, published: asyncio.Event, clock: Callable[[], float] = time.time
    ) -> None:
        self._roster = roster
        self._metrics = metrics
        self._published = published
        self._clock = clock
        self._trials: dict[str, Trial] = {}
        published.set()  # some may have been left by an earlier process

    def watches(self, name: str) -> bool:
        """Whether a version of a detector is on probation, as far as the last look has seen."""
        return name in self._trials

    async def run(self) -> None:
        """Looks every second until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("probations could not be looked at; it will be tried again")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Ends what is due, well or badly."""
        if self._published.is_set():
            self._published.clear()
            await self._find()
        for name, trial in list(self._trials.items()):
            if name not in self._roster.host:
                del self._trials[name]
            elif await self._ended(self._roster.host.get(name), trial):
                self._trials.pop(name, None)

    async def _find(self) -> None:
        for hosted in self._roster.host:
            for adoption in await asyncio.to_thread(self._roster.catalog.adoptions, hosted.name):
                known = self._trials.get(hosted.name)
                if adoption.state == "probation" and (known is None or known.adoption.id < adoption.id):
                    self._trials[hosted.name] = Trial(adoption)

    async def _ended(self, hosted: HostedDetector, trial: Trial) -> bool:
        """Looks at one; whether it is over."""
        adoption, settings = trial.adoption, hosted.config.probation
        serving = await asyncio.to_thread(self._roster.catalog.serving, hosted.name, HUB)
        if serving is None or serving.version != adoption.version:
            return True  # it ends with what took over from it, or goes on when it serves again
        if hosted.problem:
            return await self._take_back(hosted, adoption, f"it can not serve: {hosted.problem}")
        if hosted.served is None or hosted.served.version != adoption.version:
            return False  # it is about to take over
        if trial.shadow is None:
            trial.shadow = await self._before(hosted, adoption)
            if trial.shadow is not None:
                trial.race = Race(hosted.served, trial.shadow.served, settings.slower)
        if trial.shadow is not None and trial.race is not None:
            await trial.shadow.follow()
            reason = misconduct(hosted.usage, trial.shadow.usage, settings, hosted.config.false_alarm_rate)
            if reason := reason or await asyncio.to_thread(trial.race.lost, hosted.usage, hosted.before):
                return await self._take_back(hosted, adoption, reason)
        if hosted.usage.points >= settings.points or self._clock() - adoption.began >= settings.seconds:
            await self._keep(adoption)
            return True
        return False

    async def _before(self, hosted: HostedDetector, adoption: AdoptionRow) -> Shadow | None:
        """The version that would serve again, on live points; None where it can not follow them."""
        store, catalog = self._roster.store, self._roster.catalog
        version = await asyncio.to_thread(catalog.proven_before, adoption)
        for row in await asyncio.to_thread(catalog.versions, hosted.name):
            if row.version == version and HUB in row.bundles:
                try:
                    bundle = await asyncio.to_thread(store.read_bundle, row.bundles[HUB])
                except PrunewatchError:
                    logger.exception("version %d of %s can not be read", row.version, hosted.name)
                    return None
                return hosted.shadow(Served.load(bundle, row.version))
        return None

    async def _keep(self, adoption: AdoptionRow, reason: str = "") -> None:
        ended = await asyncio.to_thread(self._roster.catalog.keep_adopted, adoption, reason)
        self._metrics.adoptions.labels(adoption.detector, adoption.device_class, "kept").inc(ended)

    async def _take_back(self, hosted: HostedDetector, adoption: AdoptionRow, reason: str) -> bool:
        try:
            ended = await asyncio.to_thread(self._roster.catalog.take_back, adoption, reason)
            failpoint("probation.taken_back")
        except ConflictError:
            return False  # somebody moved it meanwhile: the next look sees that
        except PreconditionError as error:
            await self._keep(adoption, f"{reason}; it stays all the same: {error.problem}")
            return True
        logger.warning("version %d of %s was rolled back: %s", adoption.version, hosted.name, reason)
        self._metrics.adoptions.labels(adoption.detector, adoption.device_class, "rolled_back").inc(ended)
        try:
            await self._roster.follow(hosted.name)
        except PrunewatchError:
            logger.exception("what served before version %d of %s can not serve either", adoption.version, hosted.name)
        return True
