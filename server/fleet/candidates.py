"""Children that wait for devices: measured on canaries, then adopted, made narrower, or given up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from detectors.bundle import GRAPH
from detectors.errors import ConflictError, NotFoundError, PreconditionError, PrunewatchError
from detectors.failpoints import failpoint
from server.fleet.asking import Asking
from server.fleet.reports import ProbeReport
from server.fleet.tables import believable
from server.fleet.verdicts import Verdict, corrected, reachable, verdict
from server.maintenance import Maintenance
from server.measuring_settings import Measuring
from server.records import CORRECTED, CycleRow, Measurement
from server.roster import Roster
from server.waiting import Waiting

ROUNDS = 21
"""Turns of parent and child."""
CORRECTIONS = 3
"""Narrower children at most, where one misses the budget after the other."""
logger = logging.getLogger("prunewatch.fleet.candidates")


class Candidates:
    """All that wait.

    Args:
        roster: The detectors.
        maintenance: Makes narrower ones.
        asking: Asks devices.
        settings: How many, and how long is waited.
        enrolled: How many devices a class has.
        adopted: Told of detector, class and version when one has come to serve.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        roster: Roster,
        maintenance: Maintenance,
        asking: Asking,
        settings: Measuring,
        enrolled: Callable[[str], int],
        adopted: Callable[[str, str, int], None],
        clock: Callable[[], float],
    ) -> None:
        self._roster, self._maintenance, self._asking = roster, maintenance, asking
        self._settings, self._enrolled, self._adopted, self._clock = settings, enrolled, adopted, clock

    async def look(self) -> None:
        """Decides about those that have been measured or have waited for too long, and has the others measured."""
        rows = await asyncio.to_thread(self._roster.catalog.awaiting)
        newest = {(row.detector, row.device_class): row.id for row in rows}
        for row in rows:
            if row.detector not in self._roster.host:
                continue
            try:
                if newest[row.detector, row.device_class] != row.id:
                    await self._end(row, "rejected", "a newer child took its place")
                else:
                    await self._look_at(row, Waiting.of(row))
            except ConflictError as error:  # somebody moved what serves meanwhile
                await self._end(row, "rejected", error.problem)
            except (PreconditionError, NotFoundError) as error:
                await self._end(row, "rejected", str(error))

    async def take(self, device_class: str, report: ProbeReport) -> bool:
        """Takes an answer; False where it is not one to a child that waits, or not to be believed."""
        for row in await asyncio.to_thread(self._roster.catalog.awaiting):
            waiting = Waiting.of(row)
            if row.device_class != device_class or not waiting.probe_id or waiting.probe_id != report.probe_id:
                continue
            both = waiting.parent, waiting.child
            is_new = report.device not in waiting.answers and set(report.costs) == set(both)
            if not is_new or report.batch != waiting.batch or not believable(report.costs, both, waiting.parent):
                return False
            answers = {**waiting.answers, report.device: dict(report.costs)}
            waiting = replace(waiting, answers=answers, answered=waiting.answered or self._clock())
            await self._keep(row, waiting)
            return True
        return False

    async def _look_at(self, row: CycleRow, waiting: Waiting) -> None:
        now, wanted = self._clock(), min(self._settings.canaries, max(self._enrolled(row.device_class), 1))
        serving = await asyncio.to_thread(self._roster.catalog.serving, row.detector, row.device_class)
        if (serving.version if serving else None) != waiting.serving:
            await self._end(row, "rejected", "another version has come to serve meanwhile")
        elif self._is_measured(waiting, wanted):
            await self._decide(row, waiting)
        elif now >= waiting.expires:
            await self._end(row, "rejected", "no device answered")
        else:
            await self._ask(row, waiting, wanted)

    def _is_measured(self, waiting: Waiting, wanted: int) -> bool:
        """Whether enough devices have answered, or no more are waited for."""
        until = min(waiting.answered + self._settings.patience, waiting.expires)
        return len(waiting.answers) >= wanted or (bool(waiting.answers) and self._clock() >= until)

    async def _ask(self, row: CycleRow, waiting: Waiting, wanted: int) -> None:
        about = f"cycle {row.id}"
        devices = self._asking.who(about, row.device_class, answered=waiting.answers, wanted=wanted)
        if not devices:
            return
        store = self._roster.store
        graphs = {
            sha256: store.bundle_folder(row.result[key]["hash"]) / GRAPH
            for key, sha256 in (("parent", waiting.parent), ("child", waiting.child))
        }
        probe_id = await asyncio.to_thread(
            lambda: self._asking.ask(
                about,
                row.device_class,
                devices,
                graphs,
                batch=waiting.batch,
                rounds=ROUNDS,
                probe_id=waiting.probe_id,
            )
        )
        if probe_id != waiting.probe_id:
            await self._keep(row, replace(waiting, probe_id=probe_id))
            failpoint("candidate.asked")

    async def _decide(self, row: CycleRow, waiting: Waiting) -> None:
        found = verdict(waiting, row.result["child"]["bytes"])
        if found.fits:
            await self._adopt(row, waiting, found)
            return
        missed = f"measured on {found.on}: {found.reason}"
        if waiting.correction < CORRECTIONS:
            if self._maintenance.is_busy(row.detector):
                return  # it waits on
            cause = f"{missed}; correction {waiting.correction + 1} of {CORRECTIONS} after cycle {row.id}"
            await self._maintenance.correct(row, corrected(waiting, found, row.result), cause)
            await self._end(row, CORRECTED, missed, found)
            return
        result = {**row.result, "best_reachable": reachable(found, row.result["child"])}
        await self._end(replace(row, result=result), "rejected", missed, found)

    async def _adopt(self, row: CycleRow, waiting: Waiting, found: Verdict) -> None:
        child = row.result["child"]
        await self._end(row, "adopted", "", found, waiting.serving)
        failpoint("candidate.adopted")
        try:
            await self._roster.follow(row.detector)
        except PrunewatchError:
            logger.exception("the gauges of %s could not be brought up to date", row.detector)
        self._adopted(row.detector, row.device_class, int(child["version"]))

    async def _end(
        self, row: CycleRow, outcome: str, reason: str, found: Verdict | None = None, serving: int | None = None
    ) -> None:
        """Writes down how it ended, with what was measured."""
        result = {**row.result, "outcome": outcome, "reason": reason}
        measurements = []
        if found is not None:
            batch = Waiting.of(row).batch
            result["times"] = f"measured on {found.on} of {row.device_class}"
            for key, latency in (("parent", found.parent), ("child", found.child)):
                times = latency.p50_seconds, latency.p99_seconds
                result[key] = {**result[key], "p50_seconds": times[0], "p99_seconds": times[1]}
                measurements.append(
                    Measurement(row.result[key]["hash"], row.device_class, batch, *times, self._clock())
                )
        await asyncio.to_thread(
            lambda: self._roster.catalog.end_waiting(
                row, outcome, reason, result, serving=serving, measurements=measurements
            )
        )
        logger.info("the child of cycle %d of %s: %s %s", row.id, row.detector, outcome, reason)

    async def _keep(self, row: CycleRow, waiting: Waiting) -> None:
        await asyncio.to_thread(self._roster.catalog.keep_waiting, row.id, waiting.within(row.result))
