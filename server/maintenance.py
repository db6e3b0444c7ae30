"""Fits and cycles: one at a time in the trainer process, then published, then swapped in under the running streams."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detectors.errors import PreconditionError, PrunewatchError
from server.config import HUB, Budget
from server.history import History
from server.jobs import cycle_job, fit_job, frontier_job, parent_version, start_hash
from server.metrics import Metrics
from server.progress import Operations
from server.publish import publish_cycle, publish_fit, require_unpinned
from server.records import OperationRow
from server.roster import Roster
from server.training import COMMAND, train
from server.uploads import Upload

Trigger = Literal["manual", "schedule"]
FIT = ""
"""Stands beside device classes, of which none is called so."""
FRONTIER = "frontier"
"""Kind of the operations that build one."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """A point in time, and how many points a detector had taken by then."""

    seconds: float
    points: int


NEVER = Mark(0.0, -(1 << 62))


@dataclass
class Task:
    """A fit, a cycle or the building of a frontier that waits or runs."""

    operation: OperationRow
    trigger: Trigger
    prepare: Callable[[Sequence[Path]], dict[str, Any]]
    """Makes the job when its turn comes; runs in a thread."""
    publish: Callable[[Mapping[str, Any], int | None], object]
    """One catalog transaction, in which the cycle of this number ends; runs in a thread."""
    upload: Upload | None = None
    device_class: str | None = None
    """That the cycle is for; None: it is none."""
    cycle: int | None = None
    """Its number in the book, from when it begins."""
    running: asyncio.Task[None] | None = field(default=None, repr=False)
    publishing: bool = False
    """From here on it can not be cancelled."""

    @property
    def is_fit(self) -> bool:
        """Whether it makes a parent."""
        return self.operation.kind == "fit"

    @property
    def is_refit(self) -> bool:
        """Whether the schedule asked for a fit."""
        return self.is_fit and self.trigger == "schedule"


class Maintenance:
    """The queue in front of the one trainer.

    Args:
        roster: The detectors.
        operations: Where progress goes.
        metrics: Counts cycles.
        command: Starts the trainer.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        roster: Roster,
        operations: Operations,
        metrics: Metrics,
        *,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._roster = roster
        self._operations = operations
        self._metrics = metrics
        self._command = command
        self._waiting: deque[Task] = deque()
        self._active: dict[str, Task] = {}
        """By detector: never two of one."""
        self._arrived = asyncio.Event()
        self._stopping = False
        self._clock = clock
        self.marks: dict[tuple[str, str], Mark] = {}
        """When the last fit (`FIT`) and the last cycle of each device class began, by detector."""

    def is_busy(self, detector: str) -> bool:
        """Whether a fit or cycle of a detector waits or runs."""
        return detector in self._active

    def require_idle(self, detector: str) -> None:
        """Refuses what must not happen while a fit or cycle of the detector waits or runs."""
        if (task := self._active.get(detector)) is not None:
            raise PreconditionError(
                f"{task.operation.name} of {detector!r} is not done.",
                field="name",
                hint="Wait for it, or cancel it.",
            )

    async def fit(
        self,
        name: str,
        *,
        upload: Upload | None = None,
        seed: int | None = None,
        start_from: str | None = None,
        trigger: Trigger = "manual",
    ) -> OperationRow:
        """Fits a new parent on the history, or on `upload`, which is kept afterwards.

        Raises:
            NotFoundError: there is no detector `start_from`.
            PreconditionError: there are no points, `start_from` is not fitted, or a fit or cycle of it is not done.
        """
        roster = self._roster
        start = await asyncio.to_thread(start_hash, roster.store, start_from) if start_from else None
        hosted, config = roster.host.get(name), roster.config_of(name)
        self.require_idle(name)
        if upload is None and not hosted.points_kept:
            raise PreconditionError(
                f"{name!r} has seen no points.", field="name", hint="Stream points to it first, or upload them."
            )

        batch = roster.budget_of(HUB).batch

        def prepare(history: Sequence[Path]) -> dict[str, Any]:
            features = (upload.features if upload else None) or hosted.features or ()
            version = roster.catalog.next_version(name)
            return fit_job(
                roster.store, name, config, features, history, version=version, batch=batch, seed=seed, start=start
            )

        def publish(result: Mapping[str, Any], _cycle: int | None) -> object:
            return publish_fit(roster.store, name, result, batch=batch)

        return await self._queue(name, "fit", trigger, prepare, publish, upload, None)

    async def prune(
        self,
        name: str,
        device_class: str,
        budget: Budget,
        *,
        upload: Upload | None = None,
        dry_run: bool = False,
        fresh: bool = False,
        seed: int | None = None,
        trigger: Trigger = "manual",
    ) -> OperationRow:
        """Runs one cycle on the history, or on `upload`.

        Raises:
            PreconditionError: nothing was fitted yet, there are no points, what serves is pinned, or another fit or
                cycle of it is not done.
        """
        roster = self._roster
        hosted, config = roster.host.get(name), roster.config_of(name)
        self.require_idle(name)
        if not dry_run:
            await asyncio.to_thread(require_unpinned, roster.catalog, name, device_class)
        parent = await asyncio.to_thread(parent_version, roster.store, name, device_class)
        if upload is None and not hosted.points_kept:
            raise PreconditionError(
                f"{name!r} has seen no points.", field="name", hint="Stream points to it first, or upload them."
            )

        def prepare(history: Sequence[Path]) -> dict[str, Any]:
            newer = hosted.accepted > 0  # the parent follows what has been streamed; an older upload teaches it nothing
            if upload is not None:
                last = roster.store.read_bundle(parent.parent_hash).manifest.lineage.data_last_stamp
                newer = upload.last_stamp > (last or 0)
            return cycle_job(
                roster.store,
                name,
                config,
                device_class,
                budget=budget,
                history=history,
                update_parent=newer,
                # A schedule is there for the parent to follow; people want an answer.
                frontier_first=trigger == "manual",
                dry_run=dry_run,
                fresh=fresh,
                seed=seed,
            )

        def publish(result: Mapping[str, Any], cycle: int | None) -> object:
            return publish_cycle(roster.store, name, device_class, result, batch=budget.batch, cycle=cycle)

        return await self._queue(name, "prune", trigger, prepare, publish, upload, device_class)

    async def build_frontier(
        self, name: str, device_class: str, *, batch: int, points: int, seed: int | None = None
    ) -> OperationRow:
        """Builds the frontier of the parent that cycles of a device class start from; what serves does not change.

        Raises:
            PreconditionError: nothing was fitted yet, there are no points, or a fit or cycle of it is not done.
        """
        roster = self._roster
        hosted, config = roster.host.get(name), roster.config_of(name)
        self.require_idle(name)
        await asyncio.to_thread(parent_version, roster.store, name, device_class)
        if not hosted.points_kept:
            raise PreconditionError(f"{name!r} has seen no points.", field="name", hint="Stream points to it first.")

        def prepare(history: Sequence[Path]) -> dict[str, Any]:
            return frontier_job(
                roster.store, name, config, device_class, batch=batch, history=history, points=points, seed=seed
            )

        def publish(_result: Mapping[str, Any], _cycle: int | None) -> object:
            return None  # the trainer has put it into its place

        return await self._queue(name, FRONTIER, "manual", prepare, publish, None, None)

    async def cancel(self, name: str) -> None:
        """Ends an operation that waits or runs; one that is being published already goes on."""
        row = await self._operations.get(name)
        task = self._active.get(row.detector)
        if task is None or task.operation.name != name or task.publishing:
            return
        if task in self._waiting:
            self._waiting.remove(task)
            self._forget(task)
            await self._operations.cancel(name)
        elif task.running is not None:
            task.running.cancel()
            await asyncio.wait({task.running})

    def forget(self, name: str) -> None:
        """Drops what is remembered of a detector that was deleted."""
        for key in [key for key in self.marks if key[0] == name]:
            del self.marks[key]

    async def run(self) -> None:
        """Works the queue until cancelled; then ends the trainer."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                task = self._waiting.popleft()
                task.running = asyncio.create_task(self._work(task))
                try:
                    await asyncio.wait({task.running})
                except asyncio.CancelledError:
                    self._stopping = True
                    task.running.cancel()
                    await asyncio.wait({task.running})
                    raise

    async def _queue(
        self,
        name: str,
        kind: str,
        trigger: Trigger,
        prepare: Callable[[Sequence[Path]], dict[str, Any]],
        publish: Callable[[Mapping[str, Any], int | None], object],
        upload: Upload | None,
        device_class: str | None,
    ) -> OperationRow:
        operation = await self._operations.begin(kind, name)
        task = Task(operation, trigger, prepare, publish, upload, device_class)
        try:
            self.require_idle(name)  # somebody may have come first meanwhile
        except PreconditionError as error:
            await self._operations.fail(operation.name, error)
            raise
        self._active[name] = task
        self._waiting.append(task)
        self._arrived.set()
        return operation

    async def _work(self, task: Task) -> None:
        """One fit, cycle or frontier from its turn to its end; errors end in the operation."""
        name, operation, catalog = task.operation.detector, task.operation.name, self._roster.catalog
        if task.is_fit or task.device_class is not None:
            self.marks[name, task.device_class or FIT] = self._now(name)
        outcome = "failed"
        result: Mapping[str, Any] = {}
        try:
            if task.device_class is not None:
                task.cycle = await asyncio.to_thread(catalog.begin_cycle, name, task.device_class, task.trigger)
            elif task.is_fit:
                await self._set_fitting(name)
            result = await self._train(task)
            outcome = result.get("outcome", "adopted")
            if task.cycle is not None:
                await asyncio.to_thread(catalog.end_cycle, task.cycle, outcome, result.get("reason", ""), result)
            await self._operations.succeed(operation, result)
        except asyncio.CancelledError:
            outcome = "cancelled"
            if not self._stopping:  # the next start marks what was interrupted
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
            if task.device_class is not None:
                self._metrics.cycles.labels(name, task.device_class, task.trigger, outcome).inc()
            self._forget(task)

    async def _train(self, task: Task) -> dict[str, Any]:
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
                await self._operations.report(operation, stage, done, message)

            result = await train(job, report, self._command)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
        await self._require_able(name, task, result)
        task.publishing = True
        await asyncio.to_thread(task.publish, result, task.cycle)
        await roster.follow(name)
        if task.upload is not None and task.is_fit:
            await hosted.keep_import(task.upload.stamps, task.upload.values)
        if task.is_refit:  # its parent serves everywhere now: prune it without waiting for a period
            self.marks.update({(name, device_class): NEVER for device_class in roster.config_of(name).device_classes})
        return result

    async def _require_able(self, name: str, task: Task, result: Mapping[str, Any]) -> None:
        """Refuses, before anything is published, what the live series could not go on in."""
        made = result["parent"] if task.is_fit else result.get("child")
        if result.get("outcome", "adopted") == "adopted" and made and task.device_class in {None, HUB}:
            await self._roster.require_able(name, made["hash"])

    async def _set_fitting(self, name: str) -> None:
        if self._roster.host.get(name).served is None:
            await asyncio.to_thread(self._roster.catalog.set_state, name, "fitting")

    async def _fail(self, task: Task, error: PrunewatchError, outcome: str = "failed") -> None:
        """Nothing has changed but the book."""
        name = task.operation.detector
        try:
            if task.cycle is not None:
                await asyncio.to_thread(self._roster.catalog.end_cycle, task.cycle, outcome, str(error))
            elif task.is_fit and self._roster.host.get(name).served is None:
                await asyncio.to_thread(self._roster.catalog.set_state, name, "failed", str(error))
        except Exception:  # the operation must end all the same, or its waiters hang
            logger.exception("the end of %s could not be written", task.operation.name)

    def _now(self, name: str) -> Mark:
        return Mark(self._clock(), self._roster.host.get(name).accepted)

    def _forget(self, task: Task) -> None:
        if self._active.get(task.operation.detector) is task:
            del self._active[task.operation.detector]


def _stage(folder: Path, upload: Upload) -> Path:
    """Writes an upload where the trainer reads it."""
    return History(folder, upload.features).add_points(upload.stamps, upload.values)
