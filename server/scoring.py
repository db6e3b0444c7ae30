"""ScoringService: messages to arrays, arrays to the host, arrays to messages."""

from __future__ import annotations

import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError
from detectors.runtime import FloatArray
from prunewatch.v1 import scoring_pb2 as pb
from prunewatch.v1.scoring_pb2_grpc import ScoringServiceServicer, add_ScoringServiceServicer_to_server
from server.anomalies import shares_of
from server.anomaly_messages import anomaly_fields, page_message, query_of
from server.host import Host
from server.hosted import HostedDetector, Outcome
from server.interceptors import readable
from server.metrics import Metrics
from server.names import detector_id
from server.paging import page_limit
from server.series_messages import required, series_page
from server.statuses import status_of
from server.streams import Stream, Streams
from server.tracks import Index

MAX_POINTS = 65_536  # of one message; a longer one of one series would be that many steps
MAX_FEATURES = 4096
Context = grpc.aio.ServicerContext[Any, Any]


class ScoringServicer(ScoringServiceServicer):
    """Scores points, announces anomalies and says which ones there were.

    Args:
        host: The detectors.
        metrics: Times the messages of streams.
        streams: Those that are open.
    """

    def __init__(self, host: Host, metrics: Metrics, streams: Streams) -> None:
        self._streams = streams
        self._host = host
        self._message_seconds = metrics.message_seconds.labels("ScoringService/ScoreStream")

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """One message of points."""
        if not (request.packed_values or request.values):
            raise InvalidInputError("there are no points.", field="packed_values", hint="Send at least one.")
        session = self._begin(request)
        with session.hosted.stepper.calling():
            return await session.answer(request)

    async def ScoreStream(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Messages of points, each answered once, in order."""
        async with self._streams.opened(context) as stream:
            with ExitStack() as open_calls:
                await self._answer(stream, open_calls)

    async def _answer(self, stream: Stream, open_calls: ExitStack) -> None:
        session: Session | None = None
        # Reading and writing by hand: an asynchronous generator costs a few microseconds more for each message.
        while (message := await stream.read()) is not grpc.aio.EOF:
            began = time.perf_counter()
            sequence = getattr(message, "sequence", 0)
            try:
                request = readable(message).points
                current = session or self._begin(request)
                response = pb.ScoreStreamResponse(sequence=sequence)
                await current.answer(request, response.scores)  # where it belongs: a message in another is copied
                if session is None:
                    session = current
                    open_calls.enter_context(session.hosted.stepper.calling())
            except Exception as error:  # noqa: BLE001  (the stream goes on; status_of logs what was not expected)
                response = pb.ScoreStreamResponse(sequence=sequence, error=status_of(error))
            await stream.write(response)
            self._message_seconds.observe(time.perf_counter() - began)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """Anomalies as they are found."""
        names = [detector_id(name, f"detectors[{i}]") for i, name in enumerate(request.detectors)]
        for name in names:
            self._host.get(name)
        subscription = self._host.watchers.add(names)
        try:
            await context.send_initial_metadata(())  # tells the caller that nothing is missed from now on
            async for anomaly in subscription:
                yield pb.WatchResponse(**anomaly_fields(anomaly), dropped=subscription.dropped)
        finally:
            self._host.watchers.remove(subscription)

    async def ListAnomalies(self, request: pb.ListAnomaliesRequest, context: Context) -> pb.ListAnomaliesResponse:
        """A page of anomalies, newest first."""
        query = query_of(request)
        self._host.get(query.detector)
        if self._host.anomalies is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "A device keeps no anomalies; ask the hub, or Watch.")
        return page_message(request, await self._host.anomalies.find(query))

    async def ListSeries(self, request: pb.ListSeriesRequest, context: Context) -> pb.ListSeriesResponse:
        """A page of series, by name."""
        hosted = self._hosted(request.parent)
        page_limit(request.page_size)
        return series_page(hosted.live(), request) if hosted.n_features else pb.ListSeriesResponse()

    async def ResetSeries(self, request: pb.ResetSeriesRequest, context: Context) -> pb.ResetSeriesResponse:
        """Lets series warm up again."""
        hosted, names = self._hosted(request.parent), required(request.series)
        return pb.ResetSeriesResponse(count=await hosted.restart(names) if hosted.n_features else 0)

    async def DeleteSeries(self, request: pb.DeleteSeriesRequest, context: Context) -> pb.DeleteSeriesResponse:
        """Forgets series."""
        hosted, names = self._hosted(request.parent), required(request.series)
        return pb.DeleteSeriesResponse(count=await hosted.forget(names) if hosted.n_features else 0)

    def _hosted(self, parent: str) -> HostedDetector:
        return self._host.get(detector_id(parent, "parent"))

    def _begin(self, request: pb.ScoreRequest) -> Session:
        name = detector_id(request.detector, "detector")
        return Session(self._host.get(name), ephemeral=request.mode == pb.SCORE_MODE_EPHEMERAL)


class Session:
    """One request, or one stream of them: a detector, a mode and the series named so far."""

    def __init__(self, hosted: HostedDetector, *, ephemeral: bool) -> None:
        self.hosted = hosted
        self._ephemeral = ephemeral
        self._track = hosted.track(ephemeral=ephemeral)
        self._identity: Index = np.empty(0, np.int64)

    async def answer(self, request: pb.ScoreRequest, response: pb.ScoreResponse | None = None) -> pb.ScoreResponse:
        """Scores the points of one message; returns `response`, filled, or a new one.

        Raises:
            InvalidInputError: the message can not be used; no series has changed.
        """
        hosted = self.hosted
        self._check_same(request)
        values = _values(request)
        n = self._points(request, values)
        stamps = self._stamps(request, n)
        index = self._index(request, n)
        if hosted.n_features is None and n:
            hosted.take_width(len(values) // n)
        scorer, slots = self._track.add(request.series)
        points = values.reshape(n, scorer.series.n_features)
        all_series = index is self._identity
        rows = (self._track.run or slots) if all_series else slots[index]
        outcome = await hosted.score(scorer, rows, stamps, points)
        if not self._ephemeral:
            outcome = hosted.record(outcome, self._track.names, index, points)
        return _filled(pb.ScoreResponse() if response is None else response, request, outcome)

    def _check_same(self, request: pb.ScoreRequest) -> None:
        if request.detector and detector_id(request.detector, "detector") != self.hosted.name:
            raise InvalidInputError(
                "a stream scores one detector.", field="detector", hint="Leave it out, or open another stream."
            )
        if request.mode and (request.mode == pb.SCORE_MODE_EPHEMERAL) != self._ephemeral:
            raise InvalidInputError(
                "a stream has one mode.", field="mode", hint="Leave it out, or open another stream."
            )

    def _points(self, request: pb.ScoreRequest, values: FloatArray) -> int:
        """How many points the values are."""
        size, width = len(values), self.hosted.n_features
        if request.n_features and width is not None and request.n_features != width:
            raise InvalidInputError(
                f"these points have {request.n_features} features, the detector has {width}.",
                field=_field(request),
                hint=f"Send {width} values for each point: {', '.join((self.hosted.features or ())[:8])}.",
            )
        if width is None:
            names = len(self._track.names) + len(request.series)
            told = size // request.n_features if request.n_features and size % request.n_features == 0 else 0
            n = told or len(request.stamps) or len(request.series_index) or (names if names > 1 else 0)
            if size and (not n or size % n or size // n > MAX_FEATURES):
                raise InvalidInputError(
                    f"it can not be told how many points {size} values are.",
                    field=_field(request),
                    hint="The first points of a detector tell its features: set n_features, or send a stamp for each.",
                )
            n = n if size else 0
        else:
            n, rest = divmod(size, width)
            if rest:
                raise InvalidInputError(
                    f"{size} values are not a whole number of points of {width} features.",
                    field=_field(request),
                    hint=f"Send {width} values for each point: {', '.join((self.hosted.features or ())[:8])}.",
                )
        if n > MAX_POINTS:
            raise InvalidInputError(
                f"{n} points are too many.", field=_field(request), hint=f"Send {MAX_POINTS} at most."
            )
        return n

    def _stamps(self, request: pb.ScoreRequest, n: int) -> NDArray[np.int64] | None:
        if not request.stamps:
            if n and self.hosted.config.time != "index" and not self._ephemeral:
                raise InvalidInputError(
                    "this detector wants time stamps.",
                    field="stamps",
                    hint="Send one for each point, or configure the detector with time: index.",
                )
            return None
        if len(request.stamps) != n:
            raise InvalidInputError(
                f"there are {len(request.stamps)} stamps for {n} points.", field="stamps", hint="Send one for each."
            )
        return _whole(request.stamps)

    def _index(self, request: pb.ScoreRequest, n: int) -> Index:
        """Which series each point belongs to; `self._identity` when they are all series in order."""
        names = len(self._track.names) + len(request.series)
        if request.series_index:
            if len(request.series_index) != n:
                raise InvalidInputError(
                    f"there are {len(request.series_index)} indexes for {n} points.",
                    field="series_index",
                    hint="Send one for each.",
                )
            index = _whole(request.series_index)
            if int(index.max()) >= names:
                raise InvalidInputError(
                    f"index {int(index.max())} is not below the number of series, {names}.",
                    field="series_index",
                    hint="Name the series in `series` first.",
                )
            return index
        if names == n:
            if len(self._identity) != n:
                self._identity = np.arange(n)
            return self._identity
        if names == 1 or not n:
            return np.zeros(n, np.int64)
        raise InvalidInputError(
            f"it is not said to which of {names} series the {n} points belong."
            if names
            else "the points belong to no series.",
            field="series_index" if names else "series",
            hint="Send an index for each point, or one name, or a name for each point.",
        )


def _whole(numbers: Sequence[int]) -> NDArray[np.int64]:
    """Numbers of a message, at least one, as an array: a list and an `array` between are quicker than `np.fromiter`."""
    return np.frombuffer(array("q", numbers[:]), np.int64)


def _field(request: pb.ScoreRequest) -> str:
    """Where the values of a message are."""
    return "packed_values" if request.packed_values else "values"


def _values(request: pb.ScoreRequest) -> FloatArray:
    packed = request.packed_values
    if packed and request.values:
        raise InvalidInputError("there are values twice.", field="values", hint="Send packed_values or values.")
    if not packed:
        return np.fromiter(request.values, np.float32, len(request.values))
    if len(packed) % 4:
        raise InvalidInputError(
            f"{len(packed)} bytes are not a whole number of float32.",
            field="packed_values",
            hint="Send little-endian float32, for example array.astype('<f4').tobytes().",
        )
    return np.frombuffer(packed, "<f4")


def _filled(response: pb.ScoreResponse, request: pb.ScoreRequest, outcome: Outcome) -> pb.ScoreResponse:
    scored = outcome.scored
    response.version, response.threshold = outcome.version, outcome.threshold
    response.statuses = scored.status.tobytes()
    if request.values:
        response.scores.extend(scored.score.tolist())
    else:
        response.packed_scores = scored.score.tobytes()
    if outcome.point_versions is not None:
        response.point_versions.extend(outcome.point_versions.tolist())
    if outcome.muted is not None:
        response.muted_index.extend(outcome.muted.tolist())
    if request.contributions and outcome.flagged.any():
        response.flagged_index.extend(np.flatnonzero(outcome.flagged).tolist())
        response.packed_contributions = shares_of(scored.contribution[outcome.flagged]).tobytes()
    return response


def scoring_service(host: Host, metrics: Metrics, streams: Streams) -> tuple[str, Callable[[grpc.aio.Server], None]]:
    """ScoringService, which hub and device share."""
    scoring = ScoringServicer(host, metrics, streams)

    def register(server: grpc.aio.Server) -> None:
        add_ScoringServiceServicer_to_server(scoring, server)

    return "prunewatch.v1.ScoringService", register
