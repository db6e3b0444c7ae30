"""The scoring service of a hub, behind a door that refuses on demand as an overloaded one does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from prunewatch.v1 import scoring_pb2
from prunewatch.v1.scoring_pb2_grpc import add_ScoringServiceServicer_to_server
from server.app import Hub
from server.scoring import ScoringServicer
from server.statuses import DETAILS


def overload(seconds: float | None) -> status_pb2.Status:
    """RESOURCE_EXHAUSTED, with or without `RetryInfo`."""
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="too much at once.")
    if seconds is not None:
        delay = duration_pb2.Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status.details.append(packed)
    return status


class Shedding(ScoringServicer):
    """Refuses as many calls and messages as it is told to.

    Attributes:
        calls: Calls still to refuse.
        pushback: What is said to them in `grpc-retry-pushback-ms`; None: nothing.
        messages: Numbers of messages of streams to refuse, once each.
        retry_seconds: What `RetryInfo` says; None: there is none.
        seen: When each call or message arrived, refused or not.
    """

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub.host, hub.metrics, hub.listener.streams)
        self.calls = 0
        self.pushback: str | None = None
        self.messages: list[int] = []
        self.retry_seconds: float | None = None
        self.seen: list[float] = []

    async def Score(  # noqa: N802  (gRPC decides)
        self, request: scoring_pb2.ScoreRequest, context: Any
    ) -> scoring_pb2.ScoreResponse:
        """Refuses the call, or scores it."""
        await self._admit(context)
        return await super().Score(request, context)

    async def ScoreStream(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Refuses the call, or some of its messages."""
        await self._admit(context)
        await super().ScoreStream(request_iterator, _Door(context, self))

    async def _admit(self, context: Any) -> None:
        self.seen.append(time.monotonic())
        if not self.calls:
            return
        self.calls -= 1
        status = overload(self.retry_seconds)
        trailing = [(DETAILS, status.SerializeToString())]
        if self.pushback is not None:
            trailing.append(("grpc-retry-pushback-ms", self.pushback))
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, status.message, tuple(trailing))


class _Door:
    """A context that answers some messages itself."""

    def __init__(self, context: Any, owner: Shedding) -> None:
        self._context = context
        self._owner = owner
        self.write = context.write

    async def read(self) -> Any:
        """The next message that is let in."""
        while True:
            message = await self._context.read()
            if message is grpc.aio.EOF or message.sequence not in self._owner.messages:
                return message
            self._owner.messages.remove(message.sequence)
            self._owner.seen.append(time.monotonic())
            error = overload(self._owner.retry_seconds)
            await self._context.write(scoring_pb2.ScoreStreamResponse(sequence=message.sequence, error=error))


@asynccontextmanager
async def shedding(hub: Hub) -> AsyncIterator[tuple[str, Shedding]]:
    """The address of such a server, and what it does."""
    server = grpc.aio.server()
    door = Shedding(hub)
    add_ScoringServiceServicer_to_server(door, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", door
    await server.stop(0)
