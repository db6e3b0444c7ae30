"""One fit, cycle or frontier: from points on disk through the trainer to what serves."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectors.errors import PreconditionError, PrunewatchError
from detectors.failpoints import failpoint
from server.config import HUB
from server.discretion import without_folders
from server.history import History
from server.metrics import Metrics
from server.pace import FIT, Pace
from server.progress import Operations
from server.publish import ended_cycles, made_for, taken_back, withdrawn
from server.records import OperationRow, Trigger
from server.roster import Roster
from server.training import train
from server.uploads import Upload
from server.waiting import Wait, awaiting
from server.work_metrics import WorkMetrics

logger = logging.getLogger("prunewatch.worker")


@dataclass
class Task:
    """A fit, a cycle or the building of a frontier that waits or runs."""

    operation: OperationRow
    trigger: Trigger
    prepare: Callable[[Sequence[Path]], dict[str, Any]]
    """Makes the job when its turn comes; runs in a thread."""
    publish: Callable[[Mapping[str, Any], Mapping[str, int]], object]
    """One catalog transaction, in which the cycles of these numbers end; runs in a thread."""
    upload: Upload | None = None
    device_classes: tuple[str, ...] = ()
    """That cycles are for; none: it is none."""
    cause: str = ""
    """The trigger in words."""
    cycles: dict[str, int] = field(default_factory=dict)
    """Their numbers in the book by device class, from when they begin."""
    wait: Wait | None = None
    """Classes whose children wait for devices; None: there are none."""
    running: asyncio.Task[None] | None = field(default=None, repr=False)
    publishing: bool = False
    """From here on it can not be cancelled."""

    @property
    def is_fit(self) -> bool:
        """Whether it makes a parent."""
        return self.operation.kind == "fit"

    @property
    def is_refit(self) -> bool:
        """Whether it makes a parent that nobody asked for."""
        return self.is_fit and self.trigger in ("schedule", "shift")


class Worker:
    """Does tasks; as many at once as it is given.

    Args:
        roster: The detectors.
        operations: Where progress goes.
        metrics: Counts cycles.
        pace: Is told when fits and cycles begin.
        published: Set whenever a version has been published.
        command: Starts a trainer.
        memory: Bytes of data that a trainer may hold; None: no limit.
    """

    def __init__(
        self,
        roster: Roster,
        operations: Operations,
        metrics: Metrics,
        *,
        pace: Pace,
        published: asyncio.Event,
        command: Sequence[str],
        memory: int | None,
    ) -> None:
        self._roster = roster
        self._operations = operations
        self._metrics = metrics
        self._pace = pace
        self._published = published
        self._command = command
        self._memory = memory
        self.stopping = False
        """The process ends: the next one marks what was interrupted."""

    async def work(self, task: Task) -> None:
        """Takes a task from its turn to its end; errors end in the operation."""
        name, operation, catalog = task.operation.detector, task.operation.name, self._roster.catalog
        outcome = "failed"
        result: Mapping[str, Any] = {}
        count = WorkMetrics(self._metrics, task.operation, task.trigger, task.device_classes)
        try:
            await self._begin_anew(task)
            await asyncio.to_thread(self._begin_cycles, task)
            failpoint("cycle.begun")
            if task.is_fit:
                await self._set_fitting(name)
            result = await self._train(task, count)
            outcome = result.get("outcome", "adopted")
            for ended in ended_cycles(result, task.cycles):  # those that publishing has not ended
                await asyncio.to_thread(catalog.end_cycle, ended.cycle, ended.outcome, ended.reason, ended.result)
            await self._operations.succeed(operation, result)
            failpoint("cycle.ended")
        except asyncio.CancelledError:
            outcome = "cancelled"
            if not self.stopping:  # the next start marks what was interrupted
                await self._fail(task, PreconditionError("it was cancelled."), outcome)
                await self._operations.cancel(operation)
            raise
        except Exception as error:
            if not isinstance(error, PrunewatchError):
                logger.exception("%s of %s failed unexpectedly", operation, name)
            known = (
                error
                if isinstance(error, PrunewatchError)
                else PrunewatchError("it failed unexpectedly.", hint="The server's log says why.")
            )
            await self._fail(task, known)
            await self._operations.fail(operation, known)
        finally:
            count.ended(outcome, result)

    async def _train(self, task: Task, count: WorkMetrics) -> dict[str, Any]:
        """Points to disk, trainer, publication, swap."""
        name, roster, operation = task.operation.detector, self._roster, task.operation.name
        hosted = roster.host.get(name)
        folder = roster.store.staging / operation.rpartition("/")[2]
        try:
            if task.upload is None:
                await roster.learn_features()
                history = await hosted.history_paths()
            else:
                history = [await asyncio.to_thread(_stage, folder, task.upload)]
            job = await asyncio.to_thread(task.prepare, history)

            async def report(stage: str, done: float, message: str) -> None:
                count.stage(stage)
                await self._operations.report(operation, stage, done, message)

            result = await train(job, report, self._command, memory=self._memory)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
        if task.wait is not None:
            result = await asyncio.to_thread(awaiting, roster.store, name, result, task.wait)
        await self._require_able(name, task, result)
        result = await self._proved(task, result, report)
        task.publishing = True
        count.stage("publish")
        failpoint("cycle.trained")
        await asyncio.to_thread(task.publish, result, task.cycles)
        self._published.set()
        failpoint("cycle.published")
        await roster.follow(name)
        failpoint("cycle.followed")
        if task.upload is not None and task.is_fit:
            await hosted.keep_import(task.upload.stamps, task.upload.values)
        if task.is_refit:  # its parent serves everywhere now: prune it without waiting for a period
            self._pace.hurry(name, roster.config_of(name).device_classes)
            await asyncio.to_thread(roster.catalog.keep_paces, self._pace.take_changed())
        return result

    async def _require_able(self, name: str, task: Task, result: Mapping[str, Any]) -> None:
        """Refuses, before anything is published, what the live series could not go on in."""
        if task.is_fit or HUB in task.device_classes:
            made = result["parent"] if task.is_fit else made_for(result, HUB)
            if made:
                await self._roster.require_able(name, made["hash"])

    def _begin_cycles(self, task: Task) -> None:
        catalog, operation = self._roster.catalog, task.operation
        for device_class in task.device_classes:
            task.cycles[device_class] = catalog.begin_cycle(
                operation.detector, device_class, task.trigger, cause=task.cause, operation=operation.name
            )

    async def _proved(
        self, task: Task, result: dict[str, Any], report: Callable[[str, float, str], Awaitable[None]]
    ) -> dict[str, Any]:
        """A candidate for the hub scores live points before it may serve; where it misbehaves it is rejected."""
        made = made_for(result, HUB) if HUB in task.device_classes else None
        if made is None:
            return result
        name, roster = task.operation.detector, self._roster
        known = await asyncio.to_thread(taken_back, roster.store, name, made["hash"])
        if known and task.trigger != "manual":  # people may want it all the same
            return withdrawn(result, HUB, known, "taken_back")
        await report("shadow", 0.0, "scoring live points beside what serves")
        verdict = await roster.prove(name, made["hash"])
        await report("shadow", 1.0, f"{verdict.points} live points scored beside what serves")
        if not verdict.reason:
            return result
        return withdrawn(result, HUB, f"on live points: {verdict.reason}", "live_points")

    async def _begin_anew(self, task: Task) -> None:
        """Periods begin anew with what somebody asked for; whoever begins something by itself says so."""
        if task.trigger != "manual":
            return
        name = task.operation.detector
        accepted = self._roster.host.get(name).accepted
        for what in (FIT,) if task.is_fit else task.device_classes:
            self._pace.begin(name, what, accepted)
        await asyncio.to_thread(self._roster.catalog.keep_paces, self._pace.take_changed())

    async def _set_fitting(self, name: str) -> None:
        if self._roster.host.get(name).served is None:
            await asyncio.to_thread(self._roster.catalog.set_state, name, "fitting")

    async def _fail(self, task: Task, error: PrunewatchError, outcome: str = "failed") -> None:
        """Nothing has changed but the book."""
        name, told = task.operation.detector, without_folders(str(error))  # who asks for them is a caller
        try:
            for cycle in task.cycles.values():
                await asyncio.to_thread(self._roster.catalog.end_cycle, cycle, outcome, told)
            if task.is_fit and self._roster.host.get(name).served is None:
                await asyncio.to_thread(self._roster.catalog.set_state, name, "failed", told)
        except Exception:  # the operation must end all the same, or its waiters hang
            logger.exception("the end of %s could not be written", task.operation.name)


def _stage(folder: Path, upload: Upload) -> Path:
    """Writes an upload where the trainer reads it."""
    return History(folder, upload.features).add_points(upload.stamps, upload.values)
