"""Has devices measure what the hub wants to know: tables of classes, children that wait, what serves.

Looks once a second at what is missing, asks devices that are connected, and takes their answers. Nothing waits for a
device: what is not answered yet is looked at again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from detectors.errors import PrunewatchError
from server.config import HUB
from server.fleet.asking import Asking, Files, Links
from server.fleet.candidates import Candidates
from server.fleet.class_grids import ClassGrids
from server.fleet.in_service import InService
from server.fleet.reports import ProbeReport
from server.maintenance import Maintenance
from server.measuring_settings import Measuring as Settings
from server.metrics import Metrics
from server.releases import Probe, Signed
from server.roster import Roster

LOOK_SECONDS = 1.0
HOLD_SECONDS = 60.0
"""What could not be done is tried again after so long."""
MOST_REPORTS = 1024
"""Answers that wait to be looked at; of more the oldest go, and devices are asked again."""
logger = logging.getLogger("prunewatch.fleet.measuring")
Adopted = Callable[[str, str, int], None]


def _nobody(_detector: str, _device_class: str, _version: int) -> None:
    """Is told nothing."""


class Measuring:
    """What devices measure.

    Args:
        roster: The detectors.
        maintenance: Draws graphs and makes narrower children.
        links: To the devices.
        files: What they may fetch.
        sign: Vouches for a probe.
        enrolled: How many devices a class has.
        class_of: The class of a device; None: it is not known.
        metrics: Counts answers.
        settings: How many devices are asked, and how long is waited.
        adopted: Told of detector, class and version when devices have measured a child inside its budget.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        roster: Roster,
        maintenance: Maintenance,
        links: Links,
        files: Files,
        sign: Callable[[Probe], Signed],
        *,
        enrolled: Callable[[str], int],
        class_of: Callable[[str], str | None],
        metrics: Metrics,
        settings: Settings | None = None,
        adopted: Adopted = _nobody,
        clock: Callable[[], float] = time.time,
    ) -> None:
        how = settings or Settings()
        asking = Asking(links, files, sign, again=how.ask_again, valid=how.expires, clock=clock)
        self._roster, self._enrolled, self._class_of, self._metrics = roster, enrolled, class_of, metrics
        self.grids = ClassGrids(roster, maintenance, asking, how, clock)
        self.in_service = InService(roster, asking, how, clock)
        self.candidates = Candidates(roster, maintenance, asking, how, enrolled, adopted, clock)
        self._reports: deque[tuple[str, ProbeReport]] = deque(maxlen=MOST_REPORTS)
        self._held: dict[tuple[str, str], float] = {}
        self._clock = clock
        maintenance.by_devices = self.measures
        maintenance.wait_seconds = how.expires

    def measures(self, device_class: str) -> bool:
        """Whether devices say what a step costs on a class; of one without devices the hub does."""
        return device_class != HUB and self._enrolled(device_class) > 0

    def on_probe(self, device_class: str, report: ProbeReport) -> None:
        """Takes an answer; it is looked at next time."""
        self._reports.append((device_class, report))

    async def run(self) -> None:
        """Looks every second until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("what devices measure could not be looked at; it will be tried again")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Takes the answers that came, and asks for what is missing."""
        while self._reports:
            await self._take(*self._reports.popleft())
        for name in [hosted.name for hosted in self._roster.host if hosted.served is not None]:
            for device_class in self._roster.config_of(name).device_classes:
                if self.measures(device_class):
                    await self._look_at(name, device_class)
        await self.candidates.look()

    async def _look_at(self, name: str, device_class: str) -> None:
        key = name, device_class
        if self._clock() < self._held.get(key, 0.0):
            return
        try:
            await self.grids.look_at(name, device_class)
            await self.in_service.look_at(name, device_class)
        except Exception as error:
            self._held[key] = self._clock() + HOLD_SECONDS
            if not isinstance(error, PrunewatchError):
                raise
            logger.warning("devices of %s can not be asked about %s: %s", device_class, name, error)

    async def _take(self, device_class: str, report: ProbeReport) -> None:
        outcome = "unused"
        if self._class_of(report.device) == device_class:
            if report.problem:
                logger.warning("device %s could not measure all of a probe: %s", report.device, report.problem[:500])
            for taker in (self.grids.take, self.candidates.take, self.in_service.take):
                if await taker(device_class, report):
                    outcome = "used"
                    break
        if not report.costs:
            outcome = "failed"
        self._metrics.probes.labels(device_class, outcome).inc()
