"""Replays a series through a hub of its own in minutes: the real loop, with the stamps of the series for a clock.

Rows go the way of live points: scored, kept, learned from. What begins by itself begins as it would on a server, and
the replay waits for its end, as if training took no time; so nothing depends on how fast this machine is, but for the
latencies that cycles measure. No points come while it waits, so a candidate is not compared on live points before it
serves, only afterwards, on probation. Beside it the first version scores the same rows: what a detector without the
loop would have said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.errors import PreconditionError
from detectors.runtime import FloatArray
from prunewatch.v1 import scoring_pb2 as pb
from server.app import Hub
from server.config import HUB, Settings
from server.csv_input import Table
from server.records import Label
from server.scoring import Session
from server.simulate_outcome import Ran, Replay, Size, runs
from server.training import COMMAND

SERIES = "series"
"""The name of the series that is streamed."""
REQUEST_ROWS = 100
"""Rows of one request; between two it is looked whether anything is due."""
WATCHED_ROWS = 10
"""The same while a version is on probation: a server looks every second."""
WAIT_SECONDS = 0.1
Report = Callable[[str, float, str], None]


class StreamClock:
    """The time of the newest row, in seconds since the epoch.

    Args:
        table: The series.
        step_seconds: Between two rows whose stamps are row numbers; None: they are nanoseconds since the epoch.
    """

    def __init__(self, table: Table, step_seconds: float | None) -> None:
        rows = np.arange(len(table))
        self._times = table.stamps / 1e9 if step_seconds is None else rows * step_seconds
        self._row = 0

    def __call__(self) -> float:
        """Now."""
        return float(self._times[self._row])

    def move_to(self, row: int) -> None:
        """Lets the time pass until this row."""
        self._row = row


async def replay(
    table: Table,
    settings: Settings,
    name: str,
    *,
    train_rows: int,
    step_seconds: float | None = None,
    answered: bool = False,
    report: Report = lambda _stage, _done, _message: None,
    trainer: Sequence[str] = COMMAND,
) -> Replay:
    """Streams a series; the detector is fitted after its first rows.

    Args:
        table: Rows in the order of time.
        settings: Of the hub, with an empty store; the detector is one of its own.
        name: Of the detector.
        train_rows: So many rows are learned from before any is scored.
        step_seconds: See `StreamClock`.
        answered: Somebody says of every alarm what the labels say: an anomaly, or normal after all.
        report: Told of progress.
        trainer: Starts the trainer.

    Raises:
        PrunewatchError: the fit failed, or there are too many alarms to answer.
    """
    stream = _Stream(table, settings, name, step_seconds, report, trainer, answered=answered)
    return await stream.run(train_rows)


class _Stream:
    """One replay; arguments as of `replay`."""

    def __init__(
        self,
        table: Table,
        settings: Settings,
        name: str,
        step_seconds: float | None,
        report: Report,
        trainer: Sequence[str],
        *,
        answered: bool,
    ) -> None:
        self._table = table
        self._answered = answered
        self._name = name
        self._report = report
        self._clock = StreamClock(table, step_seconds)
        self._hub = Hub(settings, trainer=trainer, clock=self._clock, monotonic=self._clock)
        self._rows = 0
        self._began: dict[int, int] = {}
        """Rows streamed when a cycle began, by its number."""
        self._sizes: dict[int, Size] = {}
        """By version; old ones may be let go before the end."""

    async def run(self, train_rows: int) -> Replay:
        began, hub = time.monotonic(), self._hub
        await hub.roster.load()
        working = asyncio.create_task(hub.maintenance.run())
        try:
            live = _Line(Session(hub.host.get(self._name), ephemeral=False), self._table)
            for rows in _requests(0, train_rows):
                await self._send(live, rows)
            await self._fit()
            frozen = _Line(Session(hub.host.get(self._name), ephemeral=True), self._table)
            await frozen.send(slice(max(0, train_rows - hub.settings.ring_points), train_rows))
            parts = [await self._step(live, frozen, rows) for rows in _requests(train_rows, len(self._table))]
            scores, versions, unchanged = (np.concatenate(part) for part in zip(*parts, strict=True))
            table = self._table
            return Replay(
                name=self._name,
                first_row=train_rows,
                stamps=table.stamps[train_rows:],
                labels=None if table.labels is None else table.labels[train_rows:],
                threshold=hub.host.get(self._name).threshold,
                scores=scores,
                versions=versions,
                frozen=unchanged,
                cycles=self._ran(),
                sizes=list(self._sizes.values()),
                seconds=time.monotonic() - began,
            )
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await asyncio.to_thread(hub.store.close)

    async def _step(self, live: _Line, frozen: _Line, rows: slice) -> tuple[FloatArray, NDArray[np.int64], FloatArray]:
        """One request (a few short ones while a probation lasts), and whatever is due after it."""
        got, first = [], rows.start
        while first < rows.stop:
            watched = self._hub.probations.watches(self._name)
            end = min(first + WATCHED_ROWS, rows.stop) if watched else rows.stop
            got.append(await self._send(live, slice(first, end)))
            await self._hub.probations.look()
            first = end
        scores, versions = (np.concatenate(part) for part in zip(*got, strict=True))
        unchanged, _ = await frozen.send(rows)
        if self._answered:
            await asyncio.to_thread(self._answer, rows, scores)
        if rows.stop < len(self._table):  # nobody would see what a cycle after the last row makes
            await self._hub.scheduler.look()
            await self._settle()
            await self._hub.probations.look()  # what has just come to serve is watched from its first row on
        return scores, versions, unchanged

    async def _send(self, line: _Line, rows: slice) -> tuple[FloatArray, NDArray[np.int64]]:
        self._clock.move_to(rows.stop - 1)
        answer = await line.send(rows)
        self._rows = rows.stop
        self._told("")
        return answer

    def _answer(self, rows: slice, scores: FloatArray) -> None:
        """Says of what was flagged in a request whether it is an anomaly, as the file labels it."""
        assert self._table.labels is not None
        labels, stamps = self._table.labels[rows], self._table.stamps[rows]
        flagged = scores >= self._hub.host.get(self._name).threshold
        answers: tuple[tuple[Label, NDArray[np.bool_]], ...] = (("anomaly", labels), ("normal", ~labels))
        for label, meant in answers:
            for first, end in runs(flagged & meant):
                self._hub.store.catalog.add_label(
                    self._name, label, int(stamps[first]), int(stamps[end - 1]), series=SERIES
                )

    async def _fit(self) -> None:
        await self._hub.maintenance.fit(self._name)
        await self._settle()
        row = self._hub.store.catalog.get_detector(self._name)
        if row.state == "failed":
            raise PreconditionError(row.problem, field="fit")

    async def _settle(self) -> None:
        """Waits until nothing of the detector is being worked on."""
        if not self._hub.maintenance.is_busy(self._name):
            return
        while self._hub.maintenance.is_busy(self._name):
            (operation,) = await self._hub.operations.recent(self._name, 1)
            self._told(f"{operation.kind}: {operation.stage} {operation.done:.0%}")
            await asyncio.sleep(WAIT_SECONDS)
        for cycle in self._hub.store.catalog.cycles(self._name):
            self._began.setdefault(cycle.id, self._rows)
        self._note_sizes()

    def _told(self, doing: str) -> None:
        total = len(self._table)
        at = f"row {self._rows:,} of {total:,}"
        cycles = f", {len(self._began)} cycles" if self._began else ""
        self._report("replay", self._rows / total, f"{at}{cycles}{f'; {doing}' if doing else ''}")

    def _ran(self) -> list[Ran]:
        catalog = self._hub.store.catalog
        adoptions = {it.cycle: it for it in catalog.adoptions(self._name)}
        cycles = catalog.cycles(self._name, limit=len(self._began))
        return [Ran(self._began[it.id], it, adoptions.get(it.id)) for it in reversed(cycles)]

    def _note_sizes(self) -> None:
        catalog, batch = self._hub.store.catalog, self._hub.roster.budget_of(HUB).batch
        for version in catalog.versions(self._name):
            if version.version in self._sizes:
                continue
            bundle = catalog.bundle(version.bundles.get(HUB, version.parent_hash))
            measured = next((it for it in catalog.measurements(bundle.hash) if it.batch == batch), None)
            times = (measured.p50_seconds, measured.p99_seconds) if measured else (None, None)
            self._sizes[version.version] = Size(version.version, bundle.bytes, bundle.parameters, bundle.units, *times)


def _without_shadow(settings: Settings, name: str) -> Settings:
    """The same, but that a candidate waits for no live points: none come."""
    detector = settings.detectors[name]
    proven = detector.probation.model_copy(update={"shadow_points": 0})
    unshadowed = detector.model_copy(update={"probation": proven})
    return settings.model_copy(update={"detectors": {**settings.detectors, name: unshadowed}})


def _requests(first: int, end: int) -> Iterator[slice]:
    return (slice(row, min(row + REQUEST_ROWS, end)) for row in range(first, end, REQUEST_ROWS))


class _Line:
    """The series on its way to a detector.

    Args:
        session: That it is scored in.
        table: Where its rows are.
    """

    def __init__(self, session: Session, table: Table) -> None:
        self._session = session
        self._table = table
        self._name = [SERIES]

    async def send(self, rows: slice) -> tuple[FloatArray, NDArray[np.int64]]:
        """Scores and versions of some rows."""
        values = np.ascontiguousarray(self._table.values[rows], "<f4")
        request = pb.ScoreRequest(
            series=self._name,
            stamps=self._table.stamps[rows].tolist(),
            packed_values=values.tobytes(),
            n_features=values.shape[1],
        )
        response = await self._session.answer(request)
        self._name = []  # it is named once
        scores = np.frombuffer(response.packed_scores, np.float32)
        versions = response.point_versions or np.full(len(scores), response.version)
        return scores, np.array(versions, np.int64)
