"""Fits and cycles: a few at a time in trainer processes, then published, then swapped in under the running streams."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectors.errors import PreconditionError, PrunewatchError
from detectors.failpoints import failpoint
from server.config import HUB, Budget
from server.history import History
from server.jobs import cycle_job, fit_job, frontier_job, parent_version, round_job, served_parent, start_hash
from server.metrics import Metrics
from server.pace import FIT, Pace
from server.progress import Operations
from server.publish import (
    ended_cycles,
    made_for,
    publish_cycle,
    publish_fit,
    publish_round,
    require_unpinned,
    taken_back,
    unpinned,
    withdrawn,
)
from server.records import OperationRow, Trigger
from server.roster import Roster
from server.training import COMMAND, train
from server.uploads import Upload

FRONTIER = "frontier"
"""Kind of the operations that build one."""
logger = logging.getLogger(__name__)


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
    """The queue in front of the trainers.

    Args:
        roster: The detectors.
        operations: Where progress goes.
        metrics: Counts cycles.
        command: Starts a trainer.
        trainers: How many may be at work at once, never two for one detector.
        trainer_memory: Bytes of data that one may hold; None: no limit.
        clock: Seconds since the epoch.
        monotonic: Seconds that only ever pass.
    """

    def __init__(
        self,
        roster: Roster,
        operations: Operations,
        metrics: Metrics,
        *,
        command: Sequence[str] = COMMAND,
        trainers: int = 1,
        trainer_memory: int | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roster = roster
        self._operations = operations
        self._metrics = metrics
        self._command = command
        self._trainers = trainers
        self._trainer_memory = trainer_memory
        self._waiting: deque[Task] = deque()
        self._active: dict[str, Task] = {}
        """By detector: never two of one."""
        self._running: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        """Set whenever there may be something to begin."""
        self._stopping = False
        self.published = asyncio.Event()
        """Set whenever a version has been published."""
        self.pace = Pace(clock, monotonic)
        """How much has passed since fits and cycles began."""

    @property
    def is_idle(self) -> bool:
        """Whether no trainer is at work."""
        return not self._running

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
            return fit_job(
                roster.store,
                name,
                config,
                features,
                history,
                version=roster.catalog.next_version(name),
                batch=batch,
                seed=seed,
                start=start,
                first=None if trigger == "manual" else served_parent(roster.store, name),
            )

        def publish(result: Mapping[str, Any], _cycles: Mapping[str, int]) -> object:
            return publish_fit(roster.store, name, result, batch=batch)

        return await self._queue(name, "fit", trigger, prepare, publish, upload)

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
    ) -> OperationRow:
        """Runs one cycle that somebody asked for on the history, or on `upload`.

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
                frontier_first=True,  # people want an answer; what begins by itself is there for the parent to follow
                dry_run=dry_run,
                fresh=fresh,
                seed=seed,
            )

        def publish(result: Mapping[str, Any], cycles: Mapping[str, int]) -> object:
            cycle = cycles[device_class]
            probation = self._on_probation(name)
            return publish_cycle(
                roster.store, name, device_class, result, batch=budget.batch, cycle=cycle, probation=probation
            )

        return await self._queue(name, "prune", "manual", prepare, publish, upload, (device_class,))

    async def cycle(
        self, name: str, device_classes: Sequence[str], *, trigger: Trigger, cause: str = ""
    ) -> OperationRow:
        """One cycle that begins by itself: the parent is updated once, and a child made for each device class.

        Args:
            name: The detector.
            device_classes: Those that it is due for; of a class without a budget the parent is updated alone.
            trigger: What began it.
            cause: The same in words.

        Raises:
            PreconditionError: nothing was fitted yet, there are no points, all of the classes are pinned, or another
                fit or cycle of it is not done.
        """
        roster = self._roster
        hosted, config = roster.host.get(name), roster.config_of(name)
        self.require_idle(name)
        free = await asyncio.to_thread(unpinned, roster.catalog, name, device_classes)
        await asyncio.to_thread(parent_version, roster.store, name, free[0])
        if not hosted.points_kept:
            raise PreconditionError(f"{name!r} has seen no points.", field="name", hint="Stream points to it first.")
        budgets = {device_class: roster.budget_of(device_class) for device_class in free}

        def prepare(history: Sequence[Path]) -> dict[str, Any]:
            return round_job(roster.store, name, config, budgets, history=history)

        def publish(result: Mapping[str, Any], cycles: Mapping[str, int]) -> object:
            return publish_round(roster.store, name, result, cycles, self._on_probation(name))

        return await self._queue(name, "prune", trigger, prepare, publish, None, tuple(free), cause)

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

        def publish(_result: Mapping[str, Any], _cycles: Mapping[str, int]) -> object:
            return None  # the trainer has put it into its place

        return await self._queue(name, FRONTIER, "manual", prepare, publish, None)

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
        self.pace.forget(name)

    async def run(self) -> None:
        """Works the queue until cancelled; then ends the trainers."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._waiting and len(self._running) < self._trainers:
                    self._start(self._waiting.popleft())
        finally:
            self._stopping = True
            for running in self._running:
                running.cancel()
            if self._running:
                await asyncio.wait(self._running)

    def _start(self, task: Task) -> None:
        task.running = asyncio.create_task(self._work(task))
        self._running.add(task.running)
        task.running.add_done_callback(self._make_room)

    def _make_room(self, ended: asyncio.Task[None]) -> None:
        self._running.discard(ended)
        self._arrived.set()

    async def _queue(
        self,
        name: str,
        kind: str,
        trigger: Trigger,
        prepare: Callable[[Sequence[Path]], dict[str, Any]],
        publish: Callable[[Mapping[str, Any], Mapping[str, int]], object],
        upload: Upload | None,
        device_classes: tuple[str, ...] = (),
        cause: str = "",
    ) -> OperationRow:
        operation = await self._operations.begin(kind, name)
        task = Task(operation, trigger, prepare, publish, upload, device_classes, cause)
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
        outcome = "failed"
        result: Mapping[str, Any] = {}
        try:
            await self._begin_anew(task)
            await asyncio.to_thread(self._begin_cycles, task)
            failpoint("cycle.begun")
            if task.is_fit:
                await self._set_fitting(name)
            result = await self._train(task)
            outcome = result.get("outcome", "adopted")
            for ended in ended_cycles(result, task.cycles):  # those that publishing has not ended
                await asyncio.to_thread(catalog.end_cycle, ended.cycle, ended.outcome, ended.reason, ended.result)
            await self._operations.succeed(operation, result)
            failpoint("cycle.ended")
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
            own = {it["device_class"]: it["outcome"] for it in result.get("children", ())}
            for device_class in task.device_classes:
                self._metrics.cycles.labels(name, device_class, task.trigger, own.get(device_class, outcome)).inc()
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

            result = await train(job, report, self._command, memory=self._trainer_memory)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
        await self._require_able(name, task, result)
        result = await self._proved(task, result, report)
        task.publishing = True
        failpoint("cycle.trained")
        await asyncio.to_thread(task.publish, result, task.cycles)
        self.published.set()
        failpoint("cycle.published")
        await roster.follow(name)
        failpoint("cycle.followed")
        if task.upload is not None and task.is_fit:
            await hosted.keep_import(task.upload.stamps, task.upload.values)
        if task.is_refit:  # its parent serves everywhere now: prune it without waiting for a period
            self.pace.hurry(name, roster.config_of(name).device_classes)
            await asyncio.to_thread(roster.catalog.keep_paces, self.pace.take_changed())
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
            return withdrawn(result, HUB, known)
        await report("shadow", 0.0, "scoring live points beside what serves")
        verdict = await roster.prove(name, made["hash"])
        await report("shadow", 1.0, f"{verdict.points} live points scored beside what serves")
        return withdrawn(result, HUB, f"on live points: {verdict.reason}") if verdict.reason else result

    def _on_probation(self, name: str) -> list[str]:
        """Device classes on which what is adopted has to prove itself: the hub sees no others' points."""
        return [HUB] if self._roster.config_of(name).probation.points else []

    async def _begin_anew(self, task: Task) -> None:
        """Periods begin anew with what somebody asked for; whoever begins something by itself says so."""
        if task.trigger != "manual":
            return
        name = task.operation.detector
        accepted = self._roster.host.get(name).accepted
        for what in (FIT,) if task.is_fit else task.device_classes:
            self.pace.begin(name, what, accepted)
        await asyncio.to_thread(self._roster.catalog.keep_paces, self.pace.take_changed())

    async def _set_fitting(self, name: str) -> None:
        if self._roster.host.get(name).served is None:
            await asyncio.to_thread(self._roster.catalog.set_state, name, "fitting")

    async def _fail(self, task: Task, error: PrunewatchError, outcome: str = "failed") -> None:
        """Nothing has changed but the book."""
        name = task.operation.detector
        try:
            for cycle in task.cycles.values():
                await asyncio.to_thread(self._roster.catalog.end_cycle, cycle, outcome, str(error))
            if task.is_fit and self._roster.host.get(name).served is None:
                await asyncio.to_thread(self._roster.catalog.set_state, name, "failed", str(error))
        except Exception:  # the operation must end all the same, or its waiters hang
            logger.exception("the end of %s could not be written", task.operation.name)

    def _forget(self, task: Task) -> None:
        if self._active.get(task.operation.detector) is task:
            del self._active[task.operation.detector]


def _stage(folder: Path, upload: Upload) -> Path:
    """Writes an upload where the trainer reads it."""
    return History(folder, upload.features).add_points(upload.stamps, upload.values)
