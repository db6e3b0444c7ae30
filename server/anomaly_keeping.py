"""Anomalies on their way into the catalog: the newest of each detector wait in memory, a thread writes them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from server.anomalies import Anomaly, Found
from server.background import in_background

MAX_WAITING = 10_000
"""Anomalies of one detector that wait for the next write, whatever it may keep."""
DETECTORS_AT_ONCE = 10  # in one transaction: few commits, and other writers of the catalog never wait for long
logger = logging.getLogger("prunewatch.anomaly_keeping")


@dataclass(frozen=True)
class AnomalyQuery:
    """Which anomalies of a detector are asked for, newest first.

    Attributes:
        detector: Its name.
        series: Only of this series; None: of all.
        start: Only stamps from here on.
        end: Only stamps before this.
        before: Only those found before the one of this id.
        limit: At most so many; None: all.
    """

    detector: str
    series: str | None = None
    start: int | None = None
    end: int | None = None
    before: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Batch:
    """Anomalies of one detector, in the order they were found.

    Attributes:
        detector: Its name.
        anomalies: What to keep.
        limit: The oldest go when more than so many are kept.
    """

    detector: str
    anomalies: Iterable[Anomaly]
    limit: int


class AnomalyBook(Protocol):
    """What keeps anomalies for good (`server.catalog.Catalog`); called from threads."""

    def keep_anomalies(self, batches: Iterable[Batch]) -> None:
        """Keeps anomalies, all or none of them."""

    def anomalies(self, query: AnomalyQuery) -> list[Anomaly]:
        """Anomalies, newest first."""


class AnomalyBuffer:
    """Anomalies of one detector that are not written yet, the newest ones.

    Args:
        detector: Its name.
        limit: How many the book keeps of this detector.
        on_drop: Told how many were lost unwritten, because too many came at once or the book could not be written.
    """

    def __init__(self, detector: str, limit: int, on_drop: Callable[[int], None]) -> None:
        self.detector = detector
        self.limit = limit
        self.is_kept_to = False
        """Whether the book has been told of the limit, which may have been larger before a restart."""
        self._room = min(limit, MAX_WAITING)
        self._on_drop = on_drop
        self._parts: deque[Found] = deque()
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, found: Found) -> None:
        """Takes the anomalies of one request."""
        self._parts.append(found)
        self._rows += len(found)
        self._shrink()

    def take(self) -> list[Found]:
        """Everything that waits; the buffer is empty afterwards."""
        parts, self._parts, self._rows = list(self._parts), deque(), 0
        return parts

    def waiting(self) -> list[Anomaly]:
        """The same, oldest first, left where it is."""
        return [anomaly for part in self._parts for anomaly in part]

    def put_back(self, parts: Sequence[Found]) -> None:
        """Returns what could not be written: it waits again, before what has come since."""
        self._parts.extendleft(reversed(parts))
        self._rows += sum(map(len, parts))
        self._shrink()

    def _shrink(self) -> None:
        """Lets the oldest go."""
        excess = self._rows - self._room
        if excess <= 0:
            return
        self._rows = self._room
        self._on_drop(excess)
        while excess > 0:
            oldest = self._parts.popleft()
            if len(oldest) > excess:
                self._parts.appendleft(oldest.newest(len(oldest) - excess))
            excess -= len(oldest)


class AnomalyKeeper:
    """Takes the anomalies of all detectors to the book.

    Scoring only ever appends to a buffer: it waits for no write, and no write that fails reaches it.

    Args:
        book: Keeps them for good.
        failed: Told of each write that failed.
    """

    def __init__(self, book: AnomalyBook, failed: Callable[[], None] = lambda: None) -> None:
        self._book = book
        self._told = failed
        self._buffers: dict[str, AnomalyBuffer] = {}
        self._writing = asyncio.Lock()
        self._failed = False

    def begin(self, detector: str, limit: int, on_drop: Callable[[int], None]) -> AnomalyBuffer | None:
        """Where the anomalies of a detector go, the newest `limit` of which are kept; None where none are."""
        buffer = self._buffers[detector] = AnomalyBuffer(detector, limit, on_drop)
        return buffer if limit else None

    def end(self, detector: str) -> None:
        """Keeps nothing more of a detector."""
        self._buffers.pop(detector, None)

    async def settle(self) -> None:
        """Waits for a write that is running: it may still hold anomalies of a detector that has ended."""
        async with self._writing:
            return

    async def flush(self) -> None:
        """Makes the anomalies so far durable; where that fails, the newest ones wait for the next flush."""
        # A caller who goes away must not leave a write behind that nobody waits for.
        await asyncio.shield(self._flush())

    async def _flush(self) -> None:
        async with self._writing:
            names = list(self._buffers)
            for start in range(0, len(names), DETECTORS_AT_ONCE):
                await self._write(
                    [self._buffers[it] for it in names[start:][:DETECTORS_AT_ONCE] if it in self._buffers]
                )

    async def _write(self, buffers: Sequence[AnomalyBuffer]) -> None:
        taken = [(buffer, parts) for buffer in buffers if (parts := buffer.take()) or not buffer.is_kept_to]
        if not taken:
            return
        try:
            await in_background(self._keep, taken)
        except Exception:
            self._told()
            if not self._failed:  # once, not every few seconds while a disk is full
                logger.exception("anomalies could not be written; it will be tried again")
            self._failed = True
            for buffer, parts in taken:
                buffer.put_back(parts)
        else:
            self._failed = False
            for buffer, _ in taken:
                buffer.is_kept_to = True

    def _keep(self, taken: Sequence[tuple[AnomalyBuffer, Sequence[Found]]]) -> None:
        self._book.keep_anomalies(
            [Batch(buffer.detector, chain.from_iterable(parts), buffer.limit) for buffer, parts in taken]
        )

    async def find(self, query: AnomalyQuery) -> list[Anomaly]:
        """Anomalies, newest first; a query without `before` sees everything that was found until now."""
        if query.before is None:
            await self.flush()
        return await asyncio.to_thread(self._book.anomalies, query)
