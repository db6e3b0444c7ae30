"""Fits and cycles: a few at a time in trainer processes, then published, then swapped in under the running streams."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from detectors.errors import PreconditionError
from server.config import HUB, Budget
from server.jobs import (
    cycle_job,
    fit_job,
    frontier_job,
    parent_version,
    probe_job,
    round_job,
    served_parent,
    start_hash,
)
from server.metrics import Metrics
from server.pace import Pace
from server.progress import Operations
from server.publish import (
    publish_cycle,
    publish_fit,
    publish_round,
    require_unpinned,
    unpinned,
)
from server.records import CycleRow, OperationRow, Trigger
from server.roster import Roster
from server.training import COMMAND
from server.uploads import Upload
from server.waiting import Wait, Waiting
from server.worker import Task, Worker

FRONTIER = "frontier"
"""Kind of the operations that build one."""
PROBE = "probe"
"""Kind of those that draw the graphs which devices measure for a table."""
WAIT_SECONDS = 7 * 86400.0


def _no_class(_device_class: str) -> bool:
    return False


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
        self.trainers = trainers
        """How many may be at work at once."""
        self._clock = clock
        self.by_devices: Callable[[str], bool] = _no_class
        """Whether devices of a class say what a step costs there; of others this machine does."""
        self.wait_seconds = WAIT_SECONDS
        """How long a child waits for devices."""
        self._waiting: deque[Task] = deque()
        self._active: dict[str, Task] = {}
        """By detector: never two of one."""
        self._running: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        """Set whenever there may be something to begin."""
        self.published = asyncio.Event()
        """Set whenever a version has been published."""
        self.pace = Pace(clock, monotonic)
        """How much has passed since fits and cycles began."""
        self._worker = Worker(
            roster,
            operations,
            metrics,
            pace=self.pace,
            published=self.published,
            command=command,
            memory=trainer_memory,
        )

    @property
    def is_idle(self) -> bool:
        """Whether no trainer is at work."""
        return not self._running

    @property
    def tasks(self) -> list[Task]:
        """What waits and what runs. For any thread."""
        return list(self._active.values())

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
                first=None if trigger in ("manual", "shift") else served_parent(roster.store, name),
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

        wait = self._wait({device_class: budget})

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
                on_devices=wait is not None,
                seed=seed,
            )

        def publish(result: Mapping[str, Any], cycles: Mapping[str, int]) -> object:
            cycle = cycles[device_class]
            probation = self._on_probation(name)
            return publish_cycle(
                roster.store, name, device_class, result, batch=budget.batch, cycle=cycle, probation=probation
            )

        return await self._queue(name, "prune", "manual", prepare, publish, upload, (device_class,), wait=wait)

    async def correct(self, row: CycleRow, budget: Budget, cause: str) -> OperationRow:
        """Makes a narrower child where devices have measured that one misses the budget.

        Args:
            row: The cycle whose child it was.
            budget: That makes up for what was foretold wrongly.
            cause: What they measured, in words.

        Raises:
            PreconditionError: there are no points, what serves is pinned, or another fit or cycle is not done.
        """
        roster, name, device_class = self._roster, row.detector, row.device_class
        hosted, config = roster.host.get(name), roster.config_of(name)
        self.require_idle(name)
        await asyncio.to_thread(require_unpinned, roster.catalog, name, device_class)
        if not hosted.points_kept:
            raise PreconditionError(f"{name!r} has seen no points.", field="name", hint="Stream points to it first.")
        waited = Waiting.of(row)
        wait = Wait({device_class: waited.budget}, self._clock() + self.wait_seconds, waited.correction + 1)

        def prepare(history: Sequence[Path]) -> dict[str, Any]:
            base = int(row.result["child"]["version"])
            return cycle_job(
                roster.store, name, config, device_class, budget=budget, history=history, on_devices=True, base=base
            )

        def publish(result: Mapping[str, Any], cycles: Mapping[str, int]) -> object:
            cycle = cycles[device_class]
            return publish_cycle(roster.store, name, device_class, result, batch=budget.batch, cycle=cycle)

        trigger = cast("Trigger", row.trigger)
        return await self._queue(name, "prune", trigger, prepare, publish, None, (device_class,), cause, wait)

    async def draw_graphs(
        self, name: str, device_class: str, *, batch: int, graphs: int, drawn: Callable[[Mapping[str, Any]], object]
    ) -> OperationRow:
        """Draws the graphs that devices of a class measure for their table.

        Args:
            name: The detector.
            device_class: The class.
            batch: Points a step.
            graphs: About so many at most.
            drawn: Is given the trainer's result; runs in a thread.

        Raises:
            PreconditionError: nothing was fitted yet, or a fit or cycle of it is not done.
        """
        roster = self._roster
        self.require_idle(name)

        def prepare(_history: Sequence[Path]) -> dict[str, Any]:
            return probe_job(roster.store, name, device_class, batch=batch, graphs=graphs)

        def publish(result: Mapping[str, Any], _cycles: Mapping[str, int]) -> object:
            return drawn(result)

        return await self._queue(name, PROBE, "schedule", prepare, publish, None)

    def _wait(self, budgets: Mapping[str, Budget]) -> Wait | None:
        """What children for those of the classes wait with that have devices; None: none has."""
        waits = {it: budget.for_trainer() for it, budget in budgets.items() if it != HUB and self.by_devices(it)}
        return Wait(waits, self._clock() + self.wait_seconds) if waits else None

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
        wait = self._wait(budgets)

        def prepare(history: Sequence[Path]) -> dict[str, Any]:
            on_devices = wait.budgets if wait else ()
            return round_job(roster.store, name, config, budgets, history=history, on_devices=on_devices)

        def publish(result: Mapping[str, Any], cycles: Mapping[str, int]) -> object:
            return publish_round(roster.store, name, result, cycles, self._on_probation(name))

        return await self._queue(name, "prune", trigger, prepare, publish, None, tuple(free), cause, wait)

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
            self._metrics.operations_ended.labels(task.operation.kind, "cancelled").inc()
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
                while self._waiting and len(self._running) < self.trainers:
                    self._start(self._waiting.popleft())
        finally:
            self._worker.stopping = True
            for running in self._running:
                running.cancel()
            if self._running:
                await asyncio.wait(self._running)

    def _start(self, task: Task) -> None:
        task.running = asyncio.create_task(self._done(task))
        self._running.add(task.running)
        task.running.add_done_callback(self._make_room)

    async def _done(self, task: Task) -> None:
        try:
            await self._worker.work(task)
        finally:
            self._forget(task)

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
        wait: Wait | None = None,
    ) -> OperationRow:
        operation = await self._operations.begin(kind, name)
        task = Task(operation, trigger, prepare, publish, upload, device_classes, cause, wait=wait)
        try:
            self.require_idle(name)  # somebody may have come first meanwhile
        except PreconditionError as error:
            await self._operations.fail(operation.name, error)
            raise
        self._active[name] = task
        self._waiting.append(task)
        self._arrived.set()
        return operation

    def _on_probation(self, name: str) -> list[str]:
        """Device classes on which what is adopted has to prove itself: the hub sees no others' points."""
        return [HUB] if self._roster.config_of(name).probation.points else []

    def _forget(self, task: Task) -> None:
        if self._active.get(task.operation.detector) is task:
            del self._active[task.operation.detector]
