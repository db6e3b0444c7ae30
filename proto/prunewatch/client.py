"""A small asynchronous client of a prunewatch service; numpy arrays in, numpy arrays out.

    async with Client("127.0.0.1:8001") as client:
        reply = await client.score("pump", series=["north"], stamps=[time.time_ns()], values=[[1.5, 20.0]])
        print(reply.scores, reply.threshold, reply.version)

Errors are raised as `ServiceError`, with `code`, `problem`, `field` and `hint`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
import numpy as np
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2, json_format
from numpy.typing import ArrayLike, NDArray

from prunewatch.replies import (
    Anomaly,
    Scores,
    ServiceError,
    anomaly_of,
    book_json,
    detector_json,
    failed_message,
    frontier_json,
    label_json,
    result_json,
    scores_of,
    service_error,
    status_error,
    version_json,
    window_json,
)
from prunewatch.v1 import (
    detectors_pb2,
    detectors_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    pruning_pb2,
    pruning_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
)

__all__ = ["Anomaly", "Batch", "Client", "Scores", "ServiceError"]

CHUNK_BYTES = 1 << 20  # of an upload; a message may have four times that
POLL_SECONDS = 0.25
UNANSWERED = 8  # messages of a stream on their way at once: keeps the server busy and the queue short
MAX_MESSAGE_BYTES = 64 << 20
LARGEST_PAGE = 1000  # rows; the service sends no more
Progress = Callable[[str, float, str], None]
"""Told of a stage, the share done and words about it."""
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Points of one message of a stream.

    Attributes:
        values: [N, F].
        stamps: [N] nanoseconds or row numbers; None: row numbers go on.
        series: Names that were not sent before in this stream.
        series_index: [N] into all names sent so far; None: point i belongs to series i, or all to the only one.
    """

    values: ArrayLike
    stamps: ArrayLike | None = None
    series: Sequence[str] = ()
    series_index: ArrayLike | None = None


class Client:
    """A connection to one service; use it as an asynchronous context manager.

    Args:
        address: `HOST:PORT`.
    """

    def __init__(self, address: str) -> None:
        limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("receive", "send")]
        self._channel = grpc.aio.insecure_channel(address, options=limits)
        self._scoring: Any = scoring_pb2_grpc.ScoringServiceStub(self._channel)
        self._detectors: Any = detectors_pb2_grpc.DetectorServiceStub(self._channel)
        self._pruning: Any = pruning_pb2_grpc.PruningServiceStub(self._channel)
        self._feedback: Any = feedback_pb2_grpc.FeedbackServiceStub(self._channel)
        self._operations: Any = operations_pb2_grpc.OperationsStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    # scoring

    async def score(
        self,
        detector: str,
        *,
        values: ArrayLike,
        series: Sequence[str] = ("default",),
        stamps: ArrayLike | None = None,
        series_index: ArrayLike | None = None,
        ephemeral: bool = False,
        contributions: bool = False,
    ) -> Scores:
        """Scores N points.

        Args:
            detector: Its name.
            values: [N, F].
            series: A name for each point, or the one name of all, or the names that `series_index` points into.
            stamps: [N] nanoseconds since the epoch or row numbers.
            series_index: [N].
            ephemeral: Start from a fresh state and leave no trace.
            contributions: Also say what each feature contributed to anomalies.
        """
        batch = Batch(values, stamps, series, series_index)
        request = _request(batch, detector, ephemeral=ephemeral, contributions=contributions)
        with _errors():
            return scores_of(await self._scoring.Score(request))

    async def score_stream(
        self,
        detector: str,
        batches: Iterable[Batch] | AsyncIterable[Batch],
        *,
        ephemeral: bool = False,
        contributions: bool = False,
        keep_going: bool = False,
    ) -> AsyncIterator[Scores]:
        """Scores batch after batch over one stream; gives one reply for each, in order.

        Takes the next batch only when few are unanswered, so a fast source waits for a slow service.

        Args:
            detector: Its name.
            batches: The points.
            ephemeral: Start from a fresh state that lives as long as this stream.
            contributions: Also say what each feature contributed to anomalies.
            keep_going: Give a reply with `error` for a batch that can not be used, instead of raising it.
        """
        call = self._scoring.ScoreStream()
        room = asyncio.Semaphore(UNANSWERED)
        writer = asyncio.create_task(
            _write_batches(call, room, batches, detector, ephemeral=ephemeral, contributions=contributions)
        )
        try:
            with _errors():
                async for response in call:
                    room.release()
                    if response.WhichOneof("result") == "scores":
                        yield scores_of(response.scores, response.sequence)
                        continue
                    error = status_error(response.error)
                    if not keep_going:
                        raise error
                    yield failed_message(error, response.sequence)
                await writer  # raises what the source of batches raised
        finally:
            writer.cancel()
            call.cancel()

    async def watch(self, *detectors: str) -> AsyncIterator[Anomaly]:
        """Anomalies as they are found; of all detectors when none is named."""
        call = self._scoring.Watch(scoring_pb2.WatchRequest(detectors=[_name(it) for it in detectors]))
        try:
            with _errors():
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
            parent=_name(detector), series=series or "", start_stamp=start, end_stamp=end
        )
        left = LARGEST_PAGE if limit is None else limit
        while left > 0:
            request.page_size = min(left, LARGEST_PAGE)
            with _errors():
                page = await self._scoring.ListAnomalies(request)
            for it in page.anomalies:
                yield anomaly_of(it)
            if not (token := page.next_page_token):
                return
            request.page_token = token
            left -= 0 if limit is None else len(page.anomalies)

    # detectors

    async def create(self, detector: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Creates a detector that learns; `config` has the names of `prunewatch.v1.DetectorConfig`."""
        request = detectors_pb2.CreateDetectorRequest(detector_id=detector, config=_config(config))
        with _errors():
            return detector_json(await self._detectors.CreateDetector(request))

    async def get(self, detector: str) -> dict[str, Any]:
        """A detector: state, features, threshold, what it serves."""
        with _errors():
            return detector_json(
                await self._detectors.GetDetector(detectors_pb2.GetDetectorRequest(name=_name(detector)))
            )

    async def show(self, detector: str) -> dict[str, Any]:
        """A detector with all its versions, oldest first: what `prunewatch show --json` prints."""
        return {**await self.get(detector), "versions": await self.versions(detector)}

    async def list(self) -> list[dict[str, Any]]:
        """All detectors by name."""
        found: list[dict[str, Any]] = []
        token = ""
        with _errors():
            while True:
                page = await self._detectors.ListDetectors(detectors_pb2.ListDetectorsRequest(page_token=token))
                found += [detector_json(it) for it in page.detectors]
                if not (token := page.next_page_token):
                    return found

    async def versions(self, detector: str) -> Any:
        """All versions of a detector, oldest first."""
        found: Any = []
        token = ""
        with _errors():
            while True:
                request = detectors_pb2.ListVersionsRequest(parent=_name(detector), page_token=token)
                page = await self._detectors.ListVersions(request)
                found += [version_json(it) for it in page.versions]
                if not (token := page.next_page_token):
                    return found[::-1]

    # An `etag` is that of the detector as it was last read: where somebody else has changed it since, the call is
    # refused with ABORTED. Without one it is changed as it is.

    async def delete(self, detector: str, *, etag: str = "") -> None:
        """Deletes a detector with its versions and history."""
        with _errors():
            await self._detectors.DeleteDetector(detectors_pb2.DeleteDetectorRequest(name=_name(detector), etag=etag))

    async def freeze(self, detector: str, *, etag: str = "") -> dict[str, Any]:
        """Stops all fits and cycles that would begin by themselves; what serves goes on."""
        request = detectors_pb2.FreezeDetectorRequest(name=_name(detector), etag=etag)
        with _errors():
            return detector_json(await self._detectors.FreezeDetector(request))

    async def unfreeze(self, detector: str, *, etag: str = "") -> dict[str, Any]:
        """Lets fits and cycles begin by themselves again."""
        request = detectors_pb2.UnfreezeDetectorRequest(name=_name(detector), etag=etag)
        with _errors():
            return detector_json(await self._detectors.UnfreezeDetector(request))

    async def pin(self, detector: str, device_class: str = "hub", *, etag: str = "") -> dict[str, Any]:
        """Keeps a device class on what it serves."""
        request = detectors_pb2.PinVersionRequest(name=_name(detector), device_class=device_class, etag=etag)
        with _errors():
            return detector_json(await self._detectors.PinVersion(request))

    async def unpin(self, detector: str, device_class: str = "hub", *, etag: str = "") -> dict[str, Any]:
        """Lets a device class adopt new versions again."""
        request = detectors_pb2.UnpinVersionRequest(name=_name(detector), device_class=device_class, etag=etag)
        with _errors():
            return detector_json(await self._detectors.UnpinVersion(request))

    async def roll_back(
        self, detector: str, version: int | None = None, device_class: str = "hub", *, etag: str = ""
    ) -> dict[str, Any]:
        """Makes a device class serve an earlier version; without one, that before."""
        request = detectors_pb2.RollBackRequest(
            name=_name(detector), device_class=device_class, version=version or 0, etag=etag
        )
        with _errors():
            return detector_json(await self._detectors.RollBack(request))

    # what people say

    async def add_label(
        self, detector: str, label: str, first_stamp: int, last_stamp: int, *, series: str = "", note: str = ""
    ) -> dict[str, Any]:
        """Says what points are, `anomaly` or `normal`; the newest label of a point counts.

        Args:
            detector: Its name.
            label: What they are.
            first_stamp: Of the first point.
            last_stamp: Of the last.
            series: Only of this series; empty: of all.
            note: Why.
        """
        feedback = feedback_pb2.Feedback(
            series=series,
            first_stamp=first_stamp,
            last_stamp=last_stamp,
            label=feedback_pb2.Label.Value(f"LABEL_{label.upper()}"),
            note=note,
        )
        request = feedback_pb2.CreateFeedbackRequest(parent=_name(detector), feedback=feedback)
        with _errors():
            return label_json(await self._feedback.CreateFeedback(request))

    async def labels(self, detector: str) -> Any:
        """All labels of a detector, newest first."""
        found: Any = []
        request = feedback_pb2.ListFeedbackRequest(parent=_name(detector), page_size=LARGEST_PAGE)
        with _errors():
            while True:
                page = await self._feedback.ListFeedback(request)
                found += map(label_json, page.feedback)
                if not (token := page.next_page_token):
                    return found
                request.page_token = token

    async def delete_label(self, detector: str, number: int) -> None:
        """Takes a label back."""
        request = feedback_pb2.DeleteFeedbackRequest(name=f"{_name(detector)}/feedback/{number}")
        with _errors():
            await self._feedback.DeleteFeedback(request)

    async def add_window(
        self, detector: str, first_stamp: int, last_stamp: int, *, series: str = "", note: str = ""
    ) -> dict[str, Any]:
        """Plans or notes a maintenance window: no alarms, no learning; arguments as of `add_label`."""
        window = feedback_pb2.MaintenanceWindow(
            series=series, first_stamp=first_stamp, last_stamp=last_stamp, note=note
        )
        request = feedback_pb2.CreateMaintenanceWindowRequest(parent=_name(detector), maintenance_window=window)
        with _errors():
            return window_json(await self._feedback.CreateMaintenanceWindow(request))

    async def windows(self, detector: str) -> Any:
        """All maintenance windows of a detector, newest first."""
        found: Any = []
        request = feedback_pb2.ListMaintenanceWindowsRequest(parent=_name(detector), page_size=LARGEST_PAGE)
        with _errors():
            while True:
                page = await self._feedback.ListMaintenanceWindows(request)
                found += map(window_json, page.maintenance_windows)
                if not (token := page.next_page_token):
                    return found
                request.page_token = token

    async def delete_window(self, detector: str, number: int) -> None:
        """Takes a maintenance window back."""
        name = f"{_name(detector)}/maintenanceWindows/{number}"
        with _errors():
            await self._feedback.DeleteMaintenanceWindow(feedback_pb2.DeleteMaintenanceWindowRequest(name=name))

    # fits and cycles

    async def fit(self, detector: str, *, seed: int | None = None, start_from: str | None = None) -> str:
        """Begins a fit on the points the service has seen; returns the operation's name.

        Args:
            detector: Its name.
            seed: Of this fit.
            start_from: The detector whose weights to begin with.
        """
        start = _name(start_from) if start_from else ""
        request = detectors_pb2.FitDetectorRequest(name=_name(detector), seed=seed, start_from=start)
        with _errors():
            operation = await self._detectors.FitDetector(request)
        return str(operation.name)

    async def fit_upload(
        self,
        detector: str,
        *,
        features: Sequence[str],
        stamps: ArrayLike,
        values: ArrayLike,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        start_from: str | None = None,
    ) -> str:
        """Begins a fit on points that are sent; a detector that does not exist is created.

        Args:
            detector: Its name.
            features: Column names.
            stamps: [N], ascending.
            values: [N, F].
            config: Of a detector that is created.
            seed: Of this fit.
            start_from: The detector whose weights to begin with.

        Returns:
            The operation's name.
        """
        header = detectors_pb2.FitHeader(
            name=_name(detector),
            features=features,
            allow_missing=True,
            config=_config(config),
            seed=seed,
            start_from=_name(start_from) if start_from else "",
        )

        def messages() -> Iterable[detectors_pb2.FitDetectorFromUploadRequest]:
            yield detectors_pb2.FitDetectorFromUploadRequest(header=header)
            for points in _chunks(stamps, values):
                yield detectors_pb2.FitDetectorFromUploadRequest(points=points)

        with _errors():
            return str((await self._detectors.FitDetectorFromUpload(messages())).name)

    async def prune(
        self,
        detector: str,
        *,
        p99_seconds: float | None = None,
        p50_seconds: float | None = None,
        speedup: float | None = None,
        size_bytes: int | None = None,
        batch: int | None = None,
        device_class: str = "hub",
        dry_run: bool = False,
        fresh: bool = False,
        seed: int | None = None,
        features: Sequence[str] | None = None,
        stamps: ArrayLike | None = None,
        values: ArrayLike | None = None,
    ) -> str:
        """Begins a cycle; returns the operation's name.

        Without any limit the device class's budget holds. With `features`, `stamps` and `values` the cycle runs on
        these points instead of those the service has seen; `fresh` does not pick from a frontier.
        """
        budget = pruning_pb2.Budget(
            p99_seconds=p99_seconds, p50_seconds=p50_seconds, speedup=speedup, size_bytes=size_bytes, batch=batch or 0
        )
        request = pruning_pb2.PruneRequest(
            name=_name(detector), device_class=device_class, budget=budget, dry_run=dry_run, seed=seed, fresh=fresh
        )
        if features is None or stamps is None or values is None:
            with _errors():
                return str((await self._pruning.Prune(request)).name)
        header = pruning_pb2.PruneHeader(request=request, features=features)

        def messages() -> Iterable[pruning_pb2.PruneFromUploadRequest]:
            yield pruning_pb2.PruneFromUploadRequest(header=header)
            for points in _chunks(stamps, values):
                yield pruning_pb2.PruneFromUploadRequest(points=points)

        with _errors():
            return str((await self._pruning.PruneFromUpload(messages())).name)

    async def build_frontier(
        self,
        detector: str,
        *,
        device_class: str = "hub",
        batch: int | None = None,
        points: int | None = None,
        seed: int | None = None,
    ) -> str:
        """Begins to build the frontier of a detector's parent; returns the operation's name.

        Args:
            detector: Its name.
            device_class: The class whose cycles will pick from it.
            batch: Points a step; None: what the service says of the device class.
            points: Children to build.
            seed: Of every random draw.
        """
        request = pruning_pb2.BuildFrontierRequest(
            name=_name(detector), device_class=device_class, batch=batch or 0, points=points or 0, seed=seed
        )
        with _errors():
            return str((await self._pruning.BuildFrontier(request)).name)

    async def frontier(self, detector: str, *, device_class: str = "hub", batch: int | None = None) -> dict[str, Any]:
        """The frontier that was built last, as `prunewatch frontier --json` prints it; `NOT_FOUND`: there is none."""
        request = pruning_pb2.GetFrontierRequest(name=_name(detector), device_class=device_class, batch=batch or 0)
        with _errors():
            return frontier_json(await self._pruning.GetFrontier(request))

    async def cycles(self, detector: str) -> Any:
        """The last cycles of a detector, newest first."""
        with _errors():
            page = await self._pruning.ListCycles(pruning_pb2.ListCyclesRequest(parent=_name(detector)))
        return [book_json(it) for it in page.cycles]

    async def watch_cycles(self, detector: str, *, newest: int = 10) -> AsyncIterator[dict[str, Any]]:
        """The newest cycles of a detector, oldest first, then each change of one as it happens.

        Each is as of `cycles`, with `stage`, `done` and `message` of what it is doing (empty: it has ended).
        """
        request = pruning_pb2.WatchCyclesRequest(parent=_name(detector), newest=newest)
        with _errors():
            async for it in self._pruning.WatchCycles(request):
                yield {**book_json(it.cycle), "stage": it.stage, "done": it.done, "message": it.message}

    async def wait_operation(self, name: str, on_progress: Progress | None = None) -> dict[str, Any]:
        """Waits until a fit, cycle or frontier has ended; returns its result as the command line prints it.

        Raises:
            ServiceError: it failed or was cancelled.
        """
        timeout = duration_pb2.Duration(nanos=int(POLL_SECONDS * 1e9))
        request = operations_pb2.WaitOperationRequest(name=name, timeout=timeout)
        with _errors():
            while True:
                operation = await self._operations.WaitOperation(request)
                metadata = detectors_pb2.OperationMetadata()
                if on_progress and operation.metadata.Unpack(metadata):
                    on_progress(metadata.stage, metadata.done, metadata.message)
                if operation.done:
                    break
        if operation.HasField("error"):
            raise status_error(operation.error)
        return result_json(operation)

    async def cancel_operation(self, name: str) -> None:
        """Ends a fit or cycle."""
        with _errors():
            await self._operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name))


@contextmanager
def _errors() -> Any:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise service_error(error) from None


def _name(detector: str) -> str:
    return f"detectors/{detector}"


def _config(fields: Mapping[str, Any] | None) -> detectors_pb2.DetectorConfig:
    return json_format.ParseDict(dict(fields or {}), detectors_pb2.DetectorConfig())


def _packed(values: ArrayLike) -> NDArray[np.float32]:
    array = np.ascontiguousarray(values, "<f4")
    if array.ndim != 2:
        raise ServiceError("INVALID_ARGUMENT", f"values have {array.ndim} dimensions.", "values", "Give [N, F].")
    return array


def _request(batch: Batch, detector: str, *, ephemeral: bool, contributions: bool) -> scoring_pb2.ScoreRequest:
    values = _packed(batch.values)
    request = scoring_pb2.ScoreRequest(
        detector=_name(detector),
        series=batch.series,
        packed_values=values.tobytes(),
        n_features=values.shape[1],
        mode=scoring_pb2.SCORE_MODE_EPHEMERAL if ephemeral else scoring_pb2.SCORE_MODE_LIVE,
        contributions=contributions,
    )
    if batch.stamps is not None:
        request.stamps.extend(np.asarray(batch.stamps, np.int64).tolist())
    if batch.series_index is not None:
        request.series_index.extend(np.asarray(batch.series_index, np.uint32).tolist())
    return request


async def _write_batches(
    call: Any,
    room: asyncio.Semaphore,
    batches: Iterable[Batch] | AsyncIterable[Batch],
    detector: str,
    *,
    ephemeral: bool,
    contributions: bool,
) -> None:
    sequence = 0
    try:
        async for batch in _each(batches):
            await room.acquire()
            sequence += 1
            request = _request(batch, detector, ephemeral=ephemeral, contributions=contributions)
            await call.write(scoring_pb2.ScoreStreamRequest(sequence=sequence, points=request))
    finally:
        await call.done_writing()


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _chunks(stamps: ArrayLike, values: ArrayLike) -> Iterable[detectors_pb2.PointColumns]:
    packed, times = _packed(values), np.asarray(stamps, np.int64)
    if times.shape != (len(packed),):
        raise ServiceError("INVALID_ARGUMENT", "there is not one stamp for each point.", "stamps", "Give [N].")
    rows = max(1, CHUNK_BYTES // (4 * packed.shape[1] + 8))
    for start in range(0, len(packed), rows):
        part = slice(start, start + rows)
        yield detectors_pb2.PointColumns(stamps=times[part].tolist(), packed_values=packed[part].tobytes())
