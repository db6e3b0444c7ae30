"""The scoring calls of the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from numpy.typing import ArrayLike

from prunewatch.errors import ServiceError, service_error
from prunewatch.frames import Frame, Shape, framed, is_frame, scored_frame
from prunewatch.points import (
    DEFAULT_SERIES,
    Batch,
    Naming,
    Points,
    message_rows,
    packed,
    points_of,
    refused,
    request_of,
)
from prunewatch.reconnecting import ANSWER_SECONDS, MAX_BYTES, Stream
from prunewatch.replies import Anomaly, Scores, anomaly_of, detector_json, joined, scores_of
from prunewatch.retries import Retry
from prunewatch.streams import UNANSWERED, converse, named
from prunewatch.v1 import detectors_pb2, scoring_pb2

LARGEST_PAGE = 1000  # rows; the service sends no more
LARGEST_POINTS = 65_536  # of one message; the service takes no more
LARGEST_BYTES = 3 << 20  # of its values


@dataclass(frozen=True)
class _Asked:
    """How points are to be scored, as the caller says it."""

    ephemeral: bool
    contributions: bool
    timeout_seconds: float | None


@contextmanager
def errors() -> Iterator[None]:
    """Turns what gRPC raises into `ServiceError`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise service_error(error) from None


class ScoringCalls:
    """What scores points and tells of anomalies.

    Args:
        scoring: Stub of the service.
        detectors: Stub of the detectors' service.
        connect: Opens another connection to the same place.
        retry: For `stream` and large inputs; what single calls do is the connection's own affair.
    """

    def __init__(
        self, scoring: Any, detectors: Any, connect: Callable[[], grpc.aio.Channel], retry: Retry | None
    ) -> None:
        self._scoring = scoring
        self._detectors = detectors
        self._connect = connect
        self._retry = retry

    async def score(
        self,
        detector: str,
        *,
        values: ArrayLike | Frame,
        series: str | Sequence[str] = DEFAULT_SERIES,
        stamps: ArrayLike | None = None,
        series_index: ArrayLike | None = None,
        ephemeral: bool = False,
        contributions: bool = False,
        timeout_seconds: float | None = None,
    ) -> Scores:
        """Scores N points.

        What is too large for one message is sent over a stream, in several.

        Args:
            detector: Its name.
            values: [N, F], or a DataFrame as of `score_frame`.
            series: A name for each point, or the one name of all, or the names that `series_index` points into.
            stamps: [N] nanoseconds since the epoch or row numbers; a DataFrame has its own.
            series_index: [N].
            ephemeral: Start from a fresh state and leave no trace.
            contributions: Also say what each feature contributed to anomalies.
            timeout_seconds: None: what the client was made with.

        Raises:
            ServiceError: the points can not be used, or the service can not be reached.
        """
        asked = _Asked(ephemeral, contributions, timeout_seconds)
        if is_frame(values):
            if stamps is not None or series_index is not None:
                raise refused(
                    "a DataFrame has its own stamps and series.", "stamps", "Leave stamps and series_index out."
                )
            taken = framed(values, await self._shape(detector), None if series is DEFAULT_SERIES else series)
            return (await self._score_points(detector, taken.points, asked)).in_order(taken.rows)
        names = [series] if isinstance(series, str) else series
        array = packed(values)
        if len(array) <= LARGEST_POINTS and array.nbytes <= LARGEST_BYTES:
            batch = Batch(array, stamps, names, series_index)
            return await self._score_batch(detector, batch, asked)
        points = points_of(array, stamps, names, series_index)
        return await self._score_points(detector, points, asked)

    async def score_frame(
        self,
        detector: str,
        frame: Frame,
        *,
        series: str | Sequence[str] | None = None,
        ephemeral: bool = False,
        contributions: bool = False,
        timeout_seconds: float | None = None,
    ) -> Frame:
        """Scores the rows of a DataFrame.

        Args:
            detector: Its name.
            frame: Its index has the stamps: times (naive ones are UTC), or integers, in any order. Its columns are the
                detector's features in any order, and perhaps `series`.
            series: One name, or one for each row; None: the column `series`, or else `default`.
            ephemeral: Start from a fresh state and leave no trace.
            contributions: Also say what each feature contributed to anomalies, in columns `share.NAME`.
            timeout_seconds: None: what the client was made with.

        Returns:
            A DataFrame with the same index and the columns `score` (NaN where there is none), `status`, `anomaly`,
            `threshold` and `version`.

        Raises:
            ServiceError: the frame does not fit the detector, or the service can not be reached.
        """
        shape = await self._shape(detector)
        taken = framed(frame, shape, series)
        asked = _Asked(ephemeral, contributions, timeout_seconds)
        scores = (await self._score_points(detector, taken.points, asked)).in_order(taken.rows)
        columns = shape.features or [str(it) for it in frame.columns if it != "series"]
        return scored_frame(frame, scores, columns if contributions else ())

    async def score_stream(
        self,
        detector: str,
        batches: Iterable[Batch | Frame] | AsyncIterable[Batch | Frame],
        *,
        ephemeral: bool = False,
        contributions: bool = False,
        keep_going: bool = False,
        timeout_seconds: float | None = None,
    ) -> AsyncIterator[Scores]:
        """Scores batch after batch over one stream; gives one reply for each, in order.

        Takes the next batch only when few are unanswered, so a fast source waits for a slow service. It ends with its
        connection; `stream` goes on.

        Args:
            detector: Its name.
            batches: The points; a DataFrame is a batch too.
            ephemeral: Start from a fresh state that lives as long as this stream.
            contributions: Also say what each feature contributed to anomalies.
            keep_going: Give a reply with `error` for a batch that can not be used, instead of raising it.
            timeout_seconds: For all of it; None: no limit.
        """

        async def shape() -> Shape:
            return await self._shape(detector)

        call = self._scoring.ScoreStream(timeout=timeout_seconds)
        with errors():
            async for reply in converse(
                call,
                batches,
                detector,
                shape,
                ephemeral=ephemeral,
                contributions=contributions,
                keep_going=keep_going,
            ):
                yield reply

    def stream(
        self,
        detector: str,
        *,
        contributions: bool = False,
        retry: Retry | None = None,
        answer_seconds: float = ANSWER_SECONDS,
        unanswered: int = UNANSWERED,
        max_bytes: int = MAX_BYTES,
        recall_all: bool = False,
    ) -> Stream:
        """A stream for LIVE points that survives broken connections and restarts of the service.

        Messages are kept until they are answered. When the connection breaks, or the service says that it is
        overloaded, the stream waits (exponentially longer, with jitter, and never shorter than the service has asked
        for), connects anew, names its series again and sends what was not answered, in order. Points that the service
        had taken the first time are not counted twice: their stamps are known, so they come back LATE or DUPLICATE, and
        `Scores.resent` names them. Their score is lost with the first answer, but not their anomalies: the stream asks
        for those and puts their scores in.

        Args:
            detector: Its name.
            contributions: Also say what each feature contributed to anomalies.
            retry: How patiently to connect anew; `attempts` counts failures without an answer in between. None: for
                ever.
            answer_seconds: A connection over which no answer has come for so long counts as broken.
            unanswered: Messages on their way at once. With 1, points that are refused for overload are never overtaken
                by later ones of their series (which makes them LATE).
            max_bytes: What is kept until it is answered; `send` waits while there is no room.
            recall_all: Ask for the anomalies of every point that comes back LATE or DUPLICATE, not only of those that
                this stream has sent before: for sources that deliver again after a crash (MQTT, Kafka).
        """

        async def shape() -> Shape:
            return await self._shape(detector)

        return Stream(
            self._connect,
            detector,
            shape,
            contributions=contributions,
            retry=retry,
            answer_seconds=answer_seconds,
            unanswered=unanswered,
            max_bytes=max_bytes,
            recall_all=recall_all,
        )

    async def watch(self, *detectors: str) -> AsyncIterator[Anomaly]:
        """Anomalies as they are found; of all detectors when none is named."""
        call = self._scoring.Watch(scoring_pb2.WatchRequest(detectors=[f"detectors/{it}" for it in detectors]))
        try:
            with errors():
                async for it in call:
                    yield anomaly_of(it)
        finally:
            call.cancel()

    async def anomalies(
        self,
        detector: str,
        *,
        series: str | None = None,
        start: int | None = None,
        end: int | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Anomaly]:
        """Anomalies that the service has found in LIVE points and kept, newest first; asks for pages as they are read.

        Args:
            detector: Its name.
            series: Only of this series.
            start: Only stamps from here on.
            end: Only stamps before this.
            limit: At most so many.
        """
        request = scoring_pb2.ListAnomaliesRequest(
            parent=f"detectors/{detector}", series=series or "", start_stamp=start, end_stamp=end
        )
        left = LARGEST_PAGE if limit is None else limit
        while left > 0:
            request.page_size = min(left, LARGEST_PAGE)
            with errors():
                page = await self._scoring.ListAnomalies(request)
            for it in page.anomalies:
                yield anomaly_of(it)
            if not (token := page.next_page_token):
                return
            request.page_token = token
            left -= 0 if limit is None else len(page.anomalies)

    async def _shape(self, detector: str) -> Shape:
        """What a detector wants of a frame; a device does not say."""
        try:
            with errors():
                request = detectors_pb2.GetDetectorRequest(name=f"detectors/{detector}")
                known = detector_json(await self._detectors.GetDetector(request))
        except ServiceError as error:
            if error.code != "UNIMPLEMENTED":
                raise
            return Shape()
        return Shape(known["features"], known["time"])

    async def _score_points(self, detector: str, points: Points, asked: _Asked) -> Scores:
        """Points in as many messages as they need."""
        if len(points) <= message_rows(points.values.shape[1]):
            batch = Batch(points.values, points.stamps, points.names, points.index)
            return await self._score_batch(detector, batch, asked)
        if self._retry is not None and not asked.ephemeral and points.stamps is not None:
            lasting = self.stream(detector, contributions=asked.contributions, retry=self._retry)
            try:
                async with lasting, asyncio.timeout(asked.timeout_seconds):
                    return await (await lasting.send_points(points))
            except TimeoutError:
                raise ServiceError("DEADLINE_EXCEEDED", f"no scores within {asked.timeout_seconds:g} s.") from None
        naming = Naming()
        replies = self.score_stream(
            detector,
            (named(part, naming) for part in points.messages()),
            ephemeral=asked.ephemeral,
            contributions=asked.contributions,
            timeout_seconds=asked.timeout_seconds,
        )
        return joined([reply async for reply in replies])

    async def _score_batch(self, detector: str, batch: Batch, asked: _Asked) -> Scores:
        request = request_of(batch, detector, ephemeral=asked.ephemeral, contributions=asked.contributions)
        with errors():
            return scores_of(await self._scoring.Score(request, timeout=asked.timeout_seconds))
