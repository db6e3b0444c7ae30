"""Streams that are open: those whose answers nobody reads are ended, and all of them are when the process ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]
Reason = tuple[grpc.StatusCode, str]
NOT_READ: Reason = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "The answers of this stream were not read. Read them while you send, and open it again.",
)
ENDING: Reason = (
    grpc.StatusCode.UNAVAILABLE,
    "The server ends. Open the stream again, and send what was not answered.",
)


class Stream:
    """A stream of messages, each answered once.

    Attributes:
        since: When the answer was begun that has not been taken yet, in monotonic seconds; 0: none waits.
        why: Why it is to end; None: it is not.
    """

    def __init__(self, context: Context) -> None:
        self.since = 0.0
        self.why: Reason | None = None
        self._context = context
        self._task = asyncio.current_task()
        self._is_idle = False

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`."""
        self._is_idle = True
        message = await self._context.read()
        self._is_idle = False
        return message

    async def write(self, response: Any) -> None:
        """Sends an answer."""
        self.since = time.monotonic()
        await self._context.write(response)
        self.since = 0.0
        if self.why is not None:
            raise asyncio.CancelledError

    def end(self, why: Reason, *, at_once: bool) -> None:
        """Ends it: at once, or when the message that is worked on has been answered."""
        self.why, self.since = why, 0.0
        if self._task is not None and (at_once or self._is_idle):
            self._task.cancel()


class Streams:
    """The streams of a process.

    Args:
        limit_seconds: How long an answer may wait to be read: only who does not read has to wait for that.
        not_read: Told of each stream that was ended for it.
    """

    def __init__(self, limit_seconds: float, not_read: Callable[[], None] = lambda: None) -> None:
        self._limit = limit_seconds
        self._not_read = not_read
        self._open: set[Stream] = set()

    def __len__(self) -> int:
        return len(self._open)

    def waiting(self, seconds: float) -> list[Stream]:
        """Those whose answer nobody has read for so long."""
        before = time.monotonic() - seconds
        return [it for it in self._open if 0 < it.since < before]

    @asynccontextmanager
    async def opened(self, context: Context) -> AsyncIterator[Stream]:
        """While a stream is open, from its own task."""
        stream = Stream(context)
        self._open.add(stream)
        try:
            yield stream
        except asyncio.CancelledError:
            if stream.why is not None:  # what it has not read may keep its end from it for ever; nobody waits for that
                with suppress(TimeoutError):
                    await asyncio.wait_for(context.abort(*stream.why), 1.0)
            raise
        finally:
            self._open.discard(stream)

    def end(self) -> None:
        """The process ends: streams end when the message that each works on has been answered."""
        for stream in list(self._open):
            stream.end(ENDING, at_once=False)

    async def run(self) -> None:
        """Looks for answers that nobody reads until cancelled."""
        while True:
            await asyncio.sleep(self._limit / 10)
            for stream in self.waiting(self._limit):
                self._not_read()
                stream.end(NOT_READ, at_once=True)
