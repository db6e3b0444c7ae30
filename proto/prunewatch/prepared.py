"""Scoring requests as bytes that are made beforehand and sent many times: for load generators and gateways.

A protobuf message is the concatenation of its parts, so a request is put together from a head (detector, mode, names of
series), a body (values) and stamps, each encoded once, without building a message for each call.

    async with PreparedScoring("127.0.0.1:8001") as scoring:
        request = head("pump", ["a"], ephemeral=True) + body(values)
        print(await scoring.score(request))
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from google.rpc import code_pb2
from numpy.typing import ArrayLike

from prunewatch.credentials import Credentials
from prunewatch.v1 import scoring_pb2 as pb

MAX_MESSAGE_BYTES = 64 << 20
LOST = "UNAVAILABLE"
"""Code of a stream that has ended without saying why."""
_WRITTEN_TOO_LATE = "Internal error from Core"
"""What grpcio makes of a write to a stream that is just ending, instead of the status that is on its way."""
_SERVICE = "/prunewatch.v1.ScoringService"
_STAMPS = pb.ScoreRequest.DESCRIPTOR.fields_by_name["stamps"].number << 3 | 2  # packed: a length, then the bytes
_POINTS = pb.ScoreStreamRequest.DESCRIPTOR.fields_by_name["points"].number << 3 | 2


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered to one request.

    Attributes:
        statuses: A byte for each point, a number of `prunewatch.v1.PointStatus`; empty after an error.
        version: That scored.
        threshold: Scores from here on are anomalies.
        code: Name of the gRPC status code of an error; empty: there was none.
        problem: What the service said of it.
    """

    statuses: bytes = b""
    version: int = 0
    threshold: float = 0.0
    code: str = ""
    problem: str = ""


def head(detector: str, series: Sequence[str], *, ephemeral: bool) -> bytes:
    """What the first message of a stream, or every single request, begins with."""
    mode = pb.SCORE_MODE_EPHEMERAL if ephemeral else pb.SCORE_MODE_LIVE
    return pb.ScoreRequest(detector=f"detectors/{detector}", series=series, mode=mode).SerializeToString()


def body(values: ArrayLike, series_index: ArrayLike | None = None) -> bytes:
    """The values of N points.

    Args:
        values: [N, F].
        series_index: [N]; None: point i belongs to series i, or all to the only one.
    """
    packed = np.ascontiguousarray(values, "<f4")
    request = pb.ScoreRequest(packed_values=packed.tobytes(), n_features=packed.shape[1])
    if series_index is not None:
        request.series_index.extend(np.asarray(series_index, np.uint32).tolist())
    return request.SerializeToString()


def stamps(values: ArrayLike) -> bytes:
    """The stamps of N points, in nanoseconds since the epoch.

    Args:
        values: [N] int64.
    """
    packed = np.ascontiguousarray(values, "<i8").tobytes()
    return _varint(_STAMPS) + _varint(len(packed)) + packed


def streamed(points: bytes) -> bytes:
    """A message of a stream around the points of a request."""
    return _varint(_POINTS) + _varint(len(points)) + points


def _varint(number: int) -> bytes:
    """A number as protobuf writes lengths.

    >>> _varint(300).hex()
    'ac02'
    """
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class PreparedScoring:
    """A connection that takes requests as bytes; use it as an asynchronous context manager.

    Args:
        address: `HOST:PORT`.
        credentials: A token, TLS, a certificate; None: plain text.
    """

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("receive", "send")]
        self._channel = (credentials or Credentials()).channel(address, limits)
        self._score: Any = self._channel.unary_unary(f"{_SERVICE}/Score")
        self._stream: Any = self._channel.stream_stream(f"{_SERVICE}/ScoreStream")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def score(self, request: bytes, within_seconds: float | None = None) -> Reply:
        """The answer to one request; an error, also that it took too long, is a reply with a `code`."""
        began = time.monotonic()
        try:
            return _reply(pb.ScoreResponse.FromString(await self._score(request, timeout=within_seconds)))
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.CANCELLED and time.monotonic() - began >= (within_seconds or math.inf):
                code = grpc.StatusCode.DEADLINE_EXCEEDED  # the service was a little faster to end it than we were
            return Reply(code=code.name, problem=error.details() or "")

    def stream(self) -> PreparedStream:
        """Opens a stream; nothing is sent yet."""
        return PreparedStream(self._stream())


class PreparedStream:
    """One scoring stream; write and read may run side by side. Answers come in the order of what was written."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def write(self, message: bytes) -> bool:
        """Sends a message of `streamed`, when flow control lets it go; False: the stream has ended."""
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        return True

    async def read(self) -> Reply | None:
        """The next answer; None: the stream has ended, and `ended` says why."""
        try:
            raw = await self._call.read()
        except grpc.aio.AioRpcError:
            return None
        if raw is grpc.aio.EOF:
            return None
        response = pb.ScoreStreamResponse.FromString(raw)
        if response.WhichOneof("result") == "scores":
            return _reply(response.scores)
        return Reply(code=code_pb2.Code.Name(response.error.code), problem=response.error.message)

    async def ended(self) -> Reply:
        """Why the stream has ended, as an error."""
        code, details = (await self._call.code()).name, await self._call.details() or ""
        if code == "OK" or details == _WRITTEN_TOO_LATE:
            return Reply(code=LOST, problem="the stream has ended.")
        return Reply(code=code, problem=details)

    def cancel(self) -> None:
        """Ends it at once."""
        self._call.cancel()


def _reply(response: pb.ScoreResponse) -> Reply:
    return Reply(response.statuses, response.version, response.threshold)
