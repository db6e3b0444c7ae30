"""A scoring stream that outlives its connections: what was not answered is kept and sent again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunewatch.errors import ServiceError, service_error, status_error
from prunewatch.frames import Frame, Shape, framed, is_frame
from prunewatch.points import DEFAULT_SERIES, Naming, Points, points_of, refused, request_of
from prunewatch.recall import recalled
from prunewatch.replies import Scores, joined, scores_of
from prunewatch.retries import Retry
from prunewatch.streams import UNANSWERED, named
from prunewatch.v1 import scoring_pb2, scoring_pb2_grpc

MAX_BYTES = 32 << 20  # of points kept until they are answered
OVERHEAD_BYTES = 1024  # a message of few points costs that in objects
MAX_NAMES = 65_536  # of one call: series that come and go must not pile up on either side
ANSWER_SECONDS = 30.0


@dataclass(eq=False)
class _Message:
    """Points that wait for an answer."""

    number: int
    points: Points
    answer: asyncio.Future[Scores]
    tries: int = 0
    has_names: bool = False
    size: int = field(init=False)

    def __post_init__(self) -> None:
        names = sum(map(len, self.points.names))
        self.size = self.points.values.nbytes + 16 * len(self.points) + names + OVERHEAD_BYTES


class Stream:
    """A stream that survives broken connections and restarts of the service; use it as an asynchronous context manager.

    Made by `Client.stream`, which says what the arguments mean. Leaving the `async with` waits until everything is
    answered; leaving it by an exception does not.
    """

    def __init__(
        self,
        connect: Callable[[], grpc.aio.Channel],
        detector: str,
        shape: Callable[[], Awaitable[Shape]],
        *,
        contributions: bool = False,
        retry: Retry | None = None,
        answer_seconds: float = ANSWER_SECONDS,
        unanswered: int = UNANSWERED,
        max_bytes: int = MAX_BYTES,
        recall_all: bool = False,
    ) -> None:
        self.reconnects = 0
        """Times that a connection was begun anew after a failure."""
        self.last_error: ServiceError | None = None
        """Why the last one failed."""
        self._connect = connect
        self._detector = detector
        self._ask_shape = shape
        self._shape: Shape | None = None
        self._contributions = contributions
        self._retry = retry or Retry(attempts=None)
        self._answer_seconds = answer_seconds
        self._most_unanswered = self._window = max(1, unanswered)
        self._max_bytes = max_bytes
        self._recall_all = recall_all
        self._waiting: deque[_Message] = deque()
        self._flight: deque[_Message] = deque()
        self._shed: list[_Message] = []
        self._kept_bytes = self._sent = self._answered = 0
        self._turn = asyncio.Lock()  # senders get room in the order in which they came
        self._room, self._work = asyncio.Event(), asyncio.Event()
        self._channel: grpc.aio.Channel | None = None
        self._limit: asyncio.Timeout | None = None
        self._ending = False
        self._overload: ServiceError | None = None
        self._failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"prunewatch stream of {self._detector}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.drain()
        finally:
            await self.close()

    @property
    def unanswered(self) -> int:
        """Messages that wait for an answer."""
        return len(self._waiting) + len(self._flight) + len(self._shed)

    @property
    def kept_bytes(self) -> int:
        """What they hold."""
        return self._kept_bytes

    async def send(
        self,
        values: ArrayLike | Frame,
        stamps: ArrayLike | None = None,
        series: str | Sequence[str] | None = None,
        series_index: ArrayLike | None = None,
    ) -> asyncio.Future[Scores]:
        """Takes points over; returns as soon as there is room for them, with the promise of their scores.

        Args:
            values: [N, F], or a DataFrame as of `Client.score_frame`.
            stamps: [N] nanoseconds since the epoch or row numbers; they tell a point that is sent again from a new one.
            series: One name, a name for each point, or the names that `series_index` points into.
            series_index: [N].

        Raises:
            ServiceError: the points can not be used, or the stream has failed for good.
        """
        rows: NDArray[np.int64] | None = None
        if is_frame(values):
            taken = framed(values, await self._known_shape(), series)
            points, rows = taken.points, taken.rows
        else:
            points = points_of(values, stamps, DEFAULT_SERIES if series is None else series, series_index)
        if points.stamps is None:
            raise refused(
                "a stream that reconnects needs stamps.", "stamps", "Send row numbers where there are no times."
            )
        if not len(points):
            raise refused("there are no points.", "values", "Send at least one.")
        return await self.send_points(points, rows)

    async def send_points(self, points: Points, rows: NDArray[np.int64] | None = None) -> asyncio.Future[Scores]:
        """`send` of points that have been checked, with stamps.

        Args:
            points: One or more.
            rows: [N]; where the caller had each of them; None: in this order.
        """
        self._require_alive()
        answers = [await self._keep(part) for part in points.messages()]
        return asyncio.ensure_future(_whole(answers, rows))

    async def score(
        self,
        values: ArrayLike | Frame,
        stamps: ArrayLike | None = None,
        series: str | Sequence[str] | None = None,
        series_index: ArrayLike | None = None,
    ) -> Scores:
        """`send`, and the scores when they are there."""
        return await (await self.send(values, stamps, series, series_index))

    async def drain(self) -> None:
        """Waits until everything is answered.

        Raises:
            ServiceError: the stream has failed for good.
        """
        while self.unanswered:
            self._require_alive()
            await self._changed()
        self._require_alive()

    async def close(self) -> None:
        """Ends the stream; what is not answered is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._fail(ServiceError("CANCELLED", "the stream is closed.", hint="Open another one."))
        await self._disconnect()

    # taking points over

    async def _known_shape(self) -> Shape:
        """What the detector wants of a frame; asked once, as patiently as anything here."""
        failures = 0
        while self._shape is None:
            try:
                self._shape = await self._ask_shape()
            except ServiceError as error:
                failures += 1
                if not error.is_of_the_connection or self._retry.exhausted(failures):
                    raise
                await asyncio.sleep(self._retry.wait_seconds(failures, error.retry_seconds))
        return self._shape

    async def _keep(self, points: Points) -> asyncio.Future[Scores]:
        async with self._turn:
            message = _Message(self._sent, points, asyncio.get_running_loop().create_future())
            while self._kept_bytes and self._kept_bytes + message.size > self._max_bytes:
                await self._changed()
                self._require_alive()
            self._sent += 1
            self._kept_bytes += message.size
            self._waiting.append(message)
            self._work.set()
            return message.answer

    async def _changed(self) -> None:
        self._room.clear()
        await self._room.wait()

    def _require_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._task is None:
            raise refused("the stream is not open.", "stream", "async with client.stream(...) as stream: ...")

    def _settle(self, message: _Message, outcome: Scores | ServiceError) -> None:
        """Gives a message its answer and lets go of it."""
        self._kept_bytes -= message.size
        self._answered += 1
        if message.answer.done():  # the caller has given it up
            pass
        elif isinstance(outcome, Scores):
            message.answer.set_result(outcome)
        else:
            message.answer.set_exception(outcome)
        self._room.set()

    def _fail(self, error: BaseException) -> None:
        """Ends it for good."""
        self._failure = self._failure or error
        for message in [*self._shed, *self._flight, *self._waiting]:
            self._kept_bytes -= message.size
            if not message.answer.done():
                message.answer.set_exception(self._failure)
        self._shed, self._flight, self._waiting = [], deque(), deque()
        self._room.set()

    # one connection after the other

    async def _run(self) -> None:
        failures = 0
        try:
            while True:
                while not self._waiting:
                    self._work.clear()
                    await self._work.wait()
                before = self._answered
                error = await self._talk()
                failures = (failures if self._answered == before else 0) + (error is not None)
                if error is None:
                    continue
                self.last_error = error
                if not error.is_of_the_connection or self._retry.exhausted(failures):
                    self._fail(error)
                    return
                self.reconnects += 1
                await asyncio.sleep(self._retry.wait_seconds(failures, error.retry_seconds))
        except Exception as error:
            self._fail(error)  # a mistake in here must not leave callers waiting
            raise

    async def _talk(self) -> ServiceError | None:
        """One call from beginning to end; returns why it ended, None if only to begin another."""
        channel = self._channel = self._channel or self._connect()
        stub: Any = scoring_pb2_grpc.ScoringServiceStub(channel)
        call = stub.ScoreStream()
        self._ending, self._overload = False, None
        error: ServiceError | None = None
        writer = asyncio.create_task(self._write(call))
        try:
            async with asyncio.timeout(None) as self._limit:
                error = await self._read(call, stub)
        except TimeoutError:
            error = ServiceError(
                "DEADLINE_EXCEEDED", f"the server has not answered for {self._answer_seconds:g} seconds."
            )
        except grpc.aio.AioRpcError as broken:
            error = service_error(broken)
        finally:
            writer.cancel()
            (written,) = await asyncio.gather(writer, return_exceptions=True)
            call.cancel()
            back = sorted([*self._shed, *self._flight], key=lambda message: message.number)
            self._shed, self._flight = [], deque()
            self._waiting.extendleft(reversed(back))
        if isinstance(written, Exception):
            raise written
        if error is not None and error.retry_seconds is None:
            await self._disconnect()  # never again over a connection that may be dead without having said so
        return error

    async def _disconnect(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _write(self, call: Any) -> None:
        naming = Naming()
        try:
            while True:
                while not self._is_clear():
                    if self._ending:
                        await call.done_writing()
                        return
                    self._work.clear()
                    await self._work.wait()
                if len(naming) > MAX_NAMES:
                    self._ending = True
                    continue
                await self._send_next(call, naming)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call has ended; whoever reads from it learns why

    def _is_clear(self) -> bool:
        """Whether a message may be sent now.

        One with names of series is answered before the next is sent: were it refused, the numbers of those that follow
        would mean other series.
        """
        if self._ending or not self._waiting or len(self._flight) >= self._window:
            return False
        return not (self._flight and self._flight[-1].has_names)

    async def _send_next(self, call: Any, naming: Naming) -> None:
        message = self._waiting.popleft()
        if not self._flight:
            self._expect_answer(True)
        self._flight.append(message)
        message.tries += 1
        batch = named(message.points, naming)
        message.has_names = bool(batch.series)
        request = request_of(batch, self._detector, ephemeral=False, contributions=self._contributions)
        await call.write(scoring_pb2.ScoreStreamRequest(sequence=message.number, points=request))

    def _expect_answer(self, expected: bool) -> None:
        if self._limit is not None:
            now = asyncio.get_running_loop().time()
            self._limit.reschedule(now + self._answer_seconds if expected else None)

    async def _read(self, call: Any, stub: Any) -> ServiceError | None:
        while (response := await call.read()) is not grpc.aio.EOF:
            if not self._flight or response.sequence != self._flight[0].number:
                return ServiceError("INTERNAL", "the server has answered another message than it was asked.")
            message = self._flight[0]
            if response.WhichOneof("result") == "scores":
                scores = scores_of(response.scores, response.sequence)
                if self._recall_all or message.tries > 1:
                    scores = await recalled(stub, self._detector, message.points, scores, self._answer_seconds)
                self._window = min(self._most_unanswered, self._window + 1)
                self._settle(self._flight.popleft(), scores)
            else:
                self._refused(self._flight.popleft(), status_error(response.error))
            self._expect_answer(bool(self._flight))
            self._work.set()
        if self._ending:
            return self._overload
        return ServiceError("UNAVAILABLE", "the server has ended the stream.")

    def _refused(self, message: _Message, error: ServiceError) -> None:
        """A message that the service did not take: for now, or at all."""
        if error.is_transient:
            message.tries -= 1
            self._shed.append(message)
            self._overload = error
            self._window = 1  # from now on none can be overtaken by the next while it is refused
            self._ending = True
        else:
            self._settle(message, error)
            self._ending = self._ending or message.has_names  # it is not known which names were taken


async def _whole(answers: Sequence[asyncio.Future[Scores]], rows: NDArray[np.int64] | None) -> Scores:
    parts = await asyncio.gather(*answers)
    scores = joined(parts)
    return scores if rows is None else scores.in_order(rows)
