"""One scoring stream: batches out, replies in, a few of them on their way at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from prunewatch.errors import status_error
from prunewatch.frames import Frame, Shape, framed, is_frame
from prunewatch.points import Batch, Naming, Points, request_of
from prunewatch.replies import Scores, failed_message, joined, scores_of
from prunewatch.v1 import scoring_pb2

UNANSWERED = 8  # messages of a stream on their way at once: keeps the server busy and the queue short
T = TypeVar("T")


@dataclass(frozen=True)
class _Cut:
    """What became of one batch: how many messages it is, and the row that each of its points came from."""

    messages: int = 1
    rows: NDArray[np.int64] | None = None


async def converse(
    call: Any,
    batches: Iterable[Batch | Frame] | AsyncIterable[Batch | Frame],
    detector: str,
    shape: Callable[[], Awaitable[Shape]],
    *,
    ephemeral: bool,
    contributions: bool,
    keep_going: bool,
) -> AsyncIterator[Scores]:
    """Sends batches over a call and gives one reply for each, in order.

    Args:
        call: Of `ScoreStream`.
        batches: The points.
        detector: Its name.
        shape: Asks what the detector wants of a frame.
        ephemeral: Start from a fresh state that lives as long as the call.
        contributions: Also say what each feature contributed to anomalies.
        keep_going: Give a reply with `error` for a batch that can not be used, instead of raising it.

    Raises:
        ServiceError: a batch can not be used.
    """
    room = asyncio.Semaphore(UNANSWERED)
    cuts: deque[_Cut] = deque()
    wanted = _Wanted(detector, shape, ephemeral=ephemeral, contributions=contributions)
    writer = asyncio.create_task(_write_batches(call, room, batches, wanted, cuts))
    parts: list[Scores] = []
    try:
        async for response in call:
            room.release()
            if response.WhichOneof("result") == "scores":
                parts.append(scores_of(response.scores, response.sequence))
            elif keep_going:
                parts.append(failed_message(status_error(response.error), response.sequence))
            else:
                raise status_error(response.error)
            if len(parts) == cuts[0].messages:
                whole, rows = joined(parts), cuts.popleft().rows
                parts = []
                yield whole if rows is None or whole.error else whole.in_order(rows)
        await writer  # raises what the source of batches raised
    finally:
        writer.cancel()
        call.cancel()


@dataclass(frozen=True)
class _Wanted:
    """What is the same for all messages of a stream."""

    detector: str
    shape: Callable[[], Awaitable[Shape]]
    ephemeral: bool
    contributions: bool

    def message(self, batch: Batch, sequence: int) -> scoring_pb2.ScoreStreamRequest:
        request = request_of(batch, self.detector, ephemeral=self.ephemeral, contributions=self.contributions)
        return scoring_pb2.ScoreStreamRequest(sequence=sequence, points=request)


async def _write_batches(
    call: Any,
    room: asyncio.Semaphore,
    batches: Iterable[Batch | Frame] | AsyncIterable[Batch | Frame],
    wanted: _Wanted,
    cuts: deque[_Cut],
) -> None:
    naming = Naming()
    shape: Shape | None = None
    sequence = 0
    try:
        async for batch in _each(batches):
            sequence += 1
            if is_frame(batch):
                shape = shape or await wanted.shape()
                taken = framed(batch, shape)
                parts = list(taken.points.messages())
                cuts.append(_Cut(len(parts), taken.rows))
            else:
                parts = []
                cuts.append(_Cut())
                naming.append(batch.series)
                await room.acquire()
                await call.write(wanted.message(batch, sequence))
            for part in parts:
                await room.acquire()
                await call.write(wanted.message(named(part, naming), sequence))
    finally:
        await call.done_writing()


def named(points: Points, naming: Naming) -> Batch:
    """Points as a batch of a stream that has sent some names already."""
    new = naming.add(points.names)
    return Batch(points.values, points.stamps, new, naming.index(points))


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
