"""How much may be going on at once: beyond it callers are told to come again later, before their messages are parsed.

gRPC's own limit (`maximum_concurrent_rpcs`) would also turn health checks away: a busy process would be killed for it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import grpc
import grpc.aio

from detectors.errors import OverloadedError

EXEMPT = ("/grpc.health.", "/grpc.reflection.", "/inference.GRPCInferenceService/Server")
"""What asks whether this process lives, and what it offers."""
SLOW_READER = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "The answers of this stream were not read. Read them while you send, and open it again.",
)
LEAST_DELAY, LONGEST_DELAY = 0.05, 5.0
SMOOTHING = 0.05


class Gate:
    """Counts calls and streams, and refuses those that are too many.

    Args:
        max_calls: Calls that are answered once and have not been.
        max_streams: Streams that are open.
        refused: Told of each call that was refused.
    """

    def __init__(self, max_calls: int, max_streams: int, refused: Callable[[], None] = lambda: None) -> None:
        self._limits = {False: max_calls, True: max_streams}
        self._open = {False: 0, True: 0}
        self._refused = refused
        self._seconds = 0.0

    @property
    def calls(self) -> int:
        """Calls that run."""
        return self._open[False]

    @property
    def streams(self) -> int:
        """Streams that are open."""
        return self._open[True]

    def is_full(self, *, streaming: bool) -> bool:
        """Whether one more is too many."""
        return self._open[streaming] >= self._limits[streaming]

    def refusal(self, *, streaming: bool) -> OverloadedError:
        """What one that is too many is told: to come again in about the time that a call takes now, not all at once."""
        self._refused()
        what, key = ("streams are open", "max_streams") if streaming else ("calls are running", "max_calls")
        delay = min(max(self._seconds, LEAST_DELAY), LONGEST_DELAY) * random.uniform(1, 2)  # noqa: S311  (no secret)
        return OverloadedError(
            f"{self._limits[streaming]} {what} already.",
            hint=f"Come again in a moment, with more points in each message; or raise {key}.",
            retry_seconds=delay,
        )

    @contextmanager
    def admitted(self, *, streaming: bool) -> Iterator[None]:
        """While one that was let in runs."""
        self._open[streaming] += 1
        began = time.perf_counter()
        try:
            yield
        finally:
            self._open[streaming] -= 1
            if not streaming:
                self._seconds += SMOOTHING * (time.perf_counter() - began - self._seconds)


class Writer:
    """A stream that answers.

    Attributes:
        since: When the answer was begun that has not been taken yet, in monotonic seconds; 0: none waits.
        is_slow: It was ended because nobody read.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.since = 0.0
        self.is_slow = False
        self._context = context
        self._task = asyncio.current_task()

    async def write(self, response: Any) -> None:
        """Sends an answer."""
        self.since = time.monotonic()
        await self._context.write(response)
        self.since = 0.0

    def end(self) -> None:
        """Ends the stream."""
        self.is_slow, self.since = True, 0.0
        if self._task is not None:
            self._task.cancel()


class SlowReaders:
    """Ends streams whose answers nobody reads: only the reader itself has to wait for them.

    Args:
        limit_seconds: How long an answer may wait.
        ended: Told of each stream that was ended.
    """

    def __init__(self, limit_seconds: float, ended: Callable[[], None] = lambda: None) -> None:
        self._limit = limit_seconds
        self._ended = ended
        self._writers: set[Writer] = set()

    @asynccontextmanager
    async def answering(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Writer]:
        """While a stream answers, from its own task and through the writer."""
        writer = Writer(context)
        self._writers.add(writer)
        try:
            yield writer
        except asyncio.CancelledError:
            if writer.is_slow:  # what it has not read may keep its end from it for ever; nobody waits for that
                with suppress(TimeoutError):
                    await asyncio.wait_for(context.abort(*SLOW_READER), 1.0)
            raise
        finally:
            self._writers.discard(writer)

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.sleep(self._limit / 10)
            before = time.monotonic() - self._limit
            for writer in [it for it in self._writers if 0 < it.since < before]:
                self._ended()
                writer.end()
