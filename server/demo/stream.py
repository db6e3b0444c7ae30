"""The demo's stream: as many copies of the series as a step takes, to every detector, with a cycle under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunewatch.client import Batch, Client, Scores, ServiceError
from prunewatch.v1 import scoring_pb2
from server.demo.sources import Point, Source

COPIES = 256  # series that run side by side: one message is one step
ROWS_AFTER_SWAP = 200
BEFORE_SECONDS = 0.008  # pace of a recorded stream before the cycles ...
DURING_SECONDS = 0.15  # ... and while they run, so that there is a stream to swap under
WAITING_SECONDS = 1.0  # where they take longer than that
DISTURB_AFTER_ROWS = 60  # after the last swap, when a source that has no anomalies of its own makes one


@dataclass
class Watched:
    """One detector of the demo and what came back for it.

    Attributes:
        name: Its name.
        network: Its network.
        options: Of the network, where the default does not suit.
        speedup: What its cycle is asked for.
        scores: Score of the first copy by row; NaN while warming up.
        versions: Version by row.
        points: Points that were scored or warming up, over all copies.
        errors: Messages that failed, and points whose status was anything else.
        result: Of the cycle.
    """

    name: str
    network: str
    options: dict[str, int]
    speedup: float
    threshold: float = 0.0
    scores: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    points: int = 0
    errors: int = 0
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def swaps(self) -> int:
        """How often the version changed from one row to the next."""
        return int((np.diff(self.versions) != 0).sum())

    def take(self, reply: Scores) -> None:
        """Notes the reply to one row."""
        if reply.error is not None:
            self.errors += 1
            return
        good = np.isin(reply.statuses, (scoring_pb2.POINT_STATUS_OK, scoring_pb2.POINT_STATUS_WARMING_UP))
        self.points += int(good.sum())
        self.errors += int((~good).sum())
        self.threshold = reply.threshold
        self.scores.append(float(reply.scores[0]))
        self.versions.append(int(reply.point_versions[0]))


class Pacer:
    """Hands every row to all detectors, at a pace that leaves the cycles time."""

    def __init__(self, source: Source, watched: Sequence[Watched]) -> None:
        self.row = 0
        self.pruning = asyncio.Event()
        """Set when the cycles are to begin."""
        self.swapped_at: int | None = None
        """Row at which the last cycle had ended."""
        self._source = source
        self._queues = [asyncio.Queue[Point | None](maxsize=4) for _ in watched]

    async def run(self) -> None:
        """Reads the source to its end, or until enough rows have followed the swap."""
        async for point in self._source.points():
            self.row = point.row
            if point.row >= self._source.prune_at:
                self.pruning.set()
            for queue in self._queues:
                await queue.put(point)
            if self._source.end is None and self._is_enough():
                break
            if self.swapped_at is not None and point.row == self.swapped_at + DISTURB_AFTER_ROWS:
                self._source.disturb()
            if self._source.end is not None:
                await asyncio.sleep(self._pause())
        for queue in self._queues:
            await queue.put(None)

    async def batches(self, index: int) -> AsyncIterator[Batch]:
        """Messages for one detector: the same point for every copy of the series."""
        names = [f"copy-{i}" for i in range(COPIES)]
        while (point := await self._queues[index].get()) is not None:
            yield Batch(np.repeat(point.values[None], COPIES, 0), np.full(COPIES, point.stamp), series=names)
            names = []

    def _pause(self) -> float:
        if not self.pruning.is_set():
            return BEFORE_SECONDS
        if self.swapped_at is not None:
            return BEFORE_SECONDS
        return DURING_SECONDS if self.row < self._source.hold_at else WAITING_SECONDS

    def _is_enough(self) -> bool:
        return self.swapped_at is not None and self.row >= self.swapped_at + ROWS_AFTER_SWAP


async def stream(client: Client, source: Source, watched: Sequence[Watched], say: Any) -> float:
    """Streams the source to every detector and prunes them under way; returns seconds of streaming."""
    pacer = Pacer(source, watched)
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pacer.run())
        for index, it in enumerate(watched):
            tasks.create_task(_score(client, it, pacer.batches(index)))
        tasks.create_task(_prune(client, watched, pacer, say))
    return time.monotonic() - began


async def _score(client: Client, it: Watched, batches: AsyncIterator[Batch]) -> None:
    async for reply in client.score_stream(it.name, batches, keep_going=True):
        it.take(reply)


async def _prune(client: Client, watched: Sequence[Watched], pacer: Pacer, say: Any) -> None:
    """One cycle a detector while the stream goes on."""
    await pacer.pruning.wait()
    for it in reversed(watched):  # the quicker cycle first
        began, row = time.monotonic(), pacer.row
        say(f"row {row}: asking for {it.name} to become {it.speedup:g} times faster")
        try:
            operation = await client.prune(it.name, speedup=it.speedup, batch=COPIES)
            it.result = await client.wait_operation(operation)
        except ServiceError as error:
            it.result = {"outcome": "failed", "reason": str(error), "parent": None, "child": None}
        seconds, rows = time.monotonic() - began, pacer.row - row
        say(f"row {pacer.row}: {it.name} {it.result['outcome']} after {seconds:.0f} s, {rows} rows later")
    pacer.swapped_at = pacer.row
