"""A small asynchronous client of a prunewatch service; arrays or DataFrames in, scores out.

    async with Client("127.0.0.1:8001") as client:
        reply = await client.score("pump", series=["north"], stamps=[time.time_ns()], values=[[1.5, 20.0]])
        print(reply.scores, reply.threshold, reply.version)

Errors are raised as `ServiceError`, with `code`, `problem`, `field` and `hint`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2, json_format
from numpy.typing import ArrayLike

from prunewatch.credentials import Credentials
from prunewatch.errors import ServiceError, status_error
from prunewatch.fleet import FleetCalls
from prunewatch.points import Batch, packed
from prunewatch.reconnecting import Stream
from prunewatch.replies import (
    Anomaly,
    Scores,
    Series,
    book_json,
    detector_json,
    frontier_json,
    label_json,
    result_json,
    version_json,
    window_json,
)
from prunewatch.retries import Patience, Retry
from prunewatch.scoring import LARGEST_PAGE, ScoringCalls, errors
from prunewatch.series import SeriesCalls
from prunewatch.streams import UNANSWERED
from prunewatch.v1 import (
    detectors_pb2,
    detectors_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    pruning_pb2,
    pruning_pb2_grpc,
    scoring_pb2_grpc,
)

__all__ = [
    "UNANSWERED",
    "Anomaly",
    "Batch",
    "Client",
    "Credentials",
    "Retry",
    "Scores",
    "Series",
    "ServiceError",
    "Stream",
]

CHUNK_BYTES = 1 << 20  # of an upload; a message may have four times that
POLL_SECONDS = 0.25
MAX_MESSAGE_BYTES = 64 << 20
OPTIONS = [
    *((f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("receive", "send")),
    (
        "grpc.initial_reconnect_backoff_ms",
        100,
    ),  # gRPC's own would leave a server that is back alone for up to 2 minutes
    ("grpc.max_reconnect_backoff_ms", 5000),
]
Progress = Callable[[str, float, str], None]
"""Told of a stage, the share done and words about it."""


class Client(ScoringCalls, SeriesCalls):
    """A connection to one service; use it as an asynchronous context manager.

    Args:
        address: `HOST:PORT`.
        timeout_seconds: For each try of a call with one request and one answer, waiting for operations aside; None: no
            limit.
        retry: Tries again what can be tried again without harm: what only reads; points with stamps and ephemeral ones
            when the service could not be reached; everything that an overloaded service has refused. None: one try.
        credentials: A token, TLS, a certificate; None: plain text.

    Raises:
        ValueError: a token would be sent where others can read it.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float | None = None,
        retry: Retry | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._address = address
        self._credentials = credentials or Credentials()
        patience = [Patience(timeout_seconds, retry)] if timeout_seconds is not None or retry is not None else None
        self._channel = self._credentials.channel(address, OPTIONS, patience)
        detectors: Any = detectors_pb2_grpc.DetectorServiceStub(self._channel)
        super().__init__(scoring_pb2_grpc.ScoringServiceStub(self._channel), detectors, self._another_channel, retry)
        self._pruning: Any = pruning_pb2_grpc.PruningServiceStub(self._channel)
        self._feedback: Any = feedback_pb2_grpc.FeedbackServiceStub(self._channel)
        self.fleet = FleetCalls(self._channel)
        """Devices, their classes, roll-outs and signing keys."""
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

    def _another_channel(self) -> grpc.aio.Channel:
        """A connection that shares nothing with the others, so that it is new indeed."""
        return self._credentials.channel(self._address, [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])

    # detectors

    async def create(self, detector: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Creates a detector that learns; `config` has the names of `prunewatch.v1.DetectorConfig`."""
        request = detectors_pb2.CreateDetectorRequest(detector_id=detector, config=_config(config))
        with errors():
            return detector_json(await self._detectors.CreateDetector(request))

    async def get(self, detector: str) -> dict[str, Any]:
        """A detector: state, features, threshold, what it serves."""
        with errors():
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
        with errors():
            while True:
                page = await self._detectors.ListDetectors(detectors_pb2.ListDetectorsRequest(page_token=token))
                found += [detector_json(it) for it in page.detectors]
                if not (token := page.next_page_token):
                    return found

    async def versions(self, detector: str) -> Any:
        """All versions of a detector, oldest first."""
        found: Any = []
        token = ""
        with errors():
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
        with errors():
            await self._detectors.DeleteDetector(detectors_pb2.DeleteDetectorRequest(name=_name(detector), etag=etag))

    async def freeze(self, detector: str, *, etag: str = "") -> dict[str, Any]:
        """Stops all fits and cycles that would begin by themselves; what serves goes on."""
        request = detectors_pb2.FreezeDetectorRequest(name=_name(detector), etag=etag)
        with errors():
            return detector_json(await self._detectors.FreezeDetector(request))

    async def unfreeze(self, detector: str, *, etag: str = "") -> dict[str, Any]:
        """Lets fits and cycles begin by themselves again."""
        request = detectors_pb2.UnfreezeDetectorRequest(name=_name(detector), etag=etag)
        with errors():
            return detector_json(await self._detectors.UnfreezeDetector(request))

    async def pin(self, detector: str, device_class: str = "hub", *, etag: str = "") -> dict[str, Any]:
        """Keeps a device class on what it serves."""
        request = detectors_pb2.PinVersionRequest(name=_name(detector), device_class=device_class, etag=etag)
        with errors():
            return detector_json(await self._detectors.PinVersion(request))

    async def unpin(self, detector: str, device_class: str = "hub", *, etag: str = "") -> dict[str, Any]:
        """Lets a device class adopt new versions again."""
        request = detectors_pb2.UnpinVersionRequest(name=_name(detector), device_class=device_class, etag=etag)
        with errors():
            return detector_json(await self._detectors.UnpinVersion(request))

    async def roll_back(
        self, detector: str, version: int | None = None, device_class: str = "hub", *, etag: str = ""
    ) -> dict[str, Any]:
        """Makes a device class serve an earlier version; without one, that before."""
        request = detectors_pb2.RollBackRequest(
            name=_name(detector), device_class=device_class, version=version or 0, etag=etag
        )
        with errors():
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
        with errors():
            return label_json(await self._feedback.CreateFeedback(request))

    async def labels(self, detector: str) -> Any:
        """All labels of a detector, newest first."""
        found: Any = []
        request = feedback_pb2.ListFeedbackRequest(parent=_name(detector), page_size=LARGEST_PAGE)
        with errors():
            while True:
                page = await self._feedback.ListFeedback(request)
                found += map(label_json, page.feedback)
                if not (token := page.next_page_token):
                    return found
                request.page_token = token

    async def delete_label(self, detector: str, number: int) -> None:
        """Takes a label back."""
        request = feedback_pb2.DeleteFeedbackRequest(name=f"{_name(detector)}/feedback/{number}")
        with errors():
            await self._feedback.DeleteFeedback(request)

    async def add_window(
        self, detector: str, first_stamp: int, last_stamp: int, *, series: str = "", note: str = ""
    ) -> dict[str, Any]:
        """Plans or notes a maintenance window: no alarms, no learning; arguments as of `add_label`."""
        window = feedback_pb2.MaintenanceWindow(
            series=series, first_stamp=first_stamp, last_stamp=last_stamp, note=note
        )
        request = feedback_pb2.CreateMaintenanceWindowRequest(parent=_name(detector), maintenance_window=window)
        with errors():
            return window_json(await self._feedback.CreateMaintenanceWindow(request))

    async def windows(self, detector: str) -> Any:
        """All maintenance windows of a detector, newest first."""
        found: Any = []
        request = feedback_pb2.ListMaintenanceWindowsRequest(parent=_name(detector), page_size=LARGEST_PAGE)
        with errors():
            while True:
                page = await self._feedback.ListMaintenanceWindows(request)
                found += map(window_json, page.maintenance_windows)
                if not (token := page.next_page_token):
                    return found
                request.page_token = token

    async def delete_window(self, detector: str, number: int) -> None:
        """Takes a maintenance window back."""
        name = f"{_name(detector)}/maintenanceWindows/{number}"
        with errors():
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
        with errors():
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

        with errors():
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
            with errors():
                return str((await self._pruning.Prune(request)).name)
        header = pruning_pb2.PruneHeader(request=request, features=features)

        def messages() -> Iterable[pruning_pb2.PruneFromUploadRequest]:
            yield pruning_pb2.PruneFromUploadRequest(header=header)
            for points in _chunks(stamps, values):
                yield pruning_pb2.PruneFromUploadRequest(points=points)

        with errors():
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
        with errors():
            return str((await self._pruning.BuildFrontier(request)).name)

    async def frontier(self, detector: str, *, device_class: str = "hub", batch: int | None = None) -> dict[str, Any]:
        """The frontier that was built last, as `prunewatch frontier --json` prints it; `NOT_FOUND`: there is none."""
        request = pruning_pb2.GetFrontierRequest(name=_name(detector), device_class=device_class, batch=batch or 0)
        with errors():
            return frontier_json(await self._pruning.GetFrontier(request))

    async def cycles(self, detector: str) -> Any:
        """The last cycles of a detector, newest first."""
        with errors():
            page = await self._pruning.ListCycles(pruning_pb2.ListCyclesRequest(parent=_name(detector)))
        return [book_json(it) for it in page.cycles]

    async def watch_cycles(self, detector: str, *, newest: int = 10) -> AsyncIterator[dict[str, Any]]:
        """The newest cycles of a detector, oldest first, then each change of one as it happens.

        Each is as of `cycles`, with `stage`, `done` and `message` of what it is doing (empty: it has ended).
        """
        request = pruning_pb2.WatchCyclesRequest(parent=_name(detector), newest=newest)
        with errors():
            async for it in self._pruning.WatchCycles(request):
                yield {**book_json(it.cycle), "stage": it.stage, "done": it.done, "message": it.message}

    async def wait_operation(self, name: str, on_progress: Progress | None = None) -> dict[str, Any]:
        """Waits until a fit, cycle or frontier has ended; returns its result as the command line prints it.

        Raises:
            ServiceError: it failed or was cancelled.
        """
        timeout = duration_pb2.Duration(nanos=int(POLL_SECONDS * 1e9))
        request = operations_pb2.WaitOperationRequest(name=name, timeout=timeout)
        with errors():
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
        with errors():
            await self._operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name))


def _name(detector: str) -> str:
    return f"detectors/{detector}"


def _config(fields: Mapping[str, Any] | None) -> detectors_pb2.DetectorConfig:
    return json_format.ParseDict(dict(fields or {}), detectors_pb2.DetectorConfig())


def _chunks(stamps: ArrayLike, values: ArrayLike) -> Iterable[detectors_pb2.PointColumns]:
    array, times = packed(values), np.asarray(stamps, np.int64)
    if times.shape != (len(array),):
        raise ServiceError("INVALID_ARGUMENT", "there is not one stamp for each point.", "stamps", "Give [N].")
    rows = max(1, CHUNK_BYTES // (4 * array.shape[1] + 8))
    for start in range(0, len(array), rows):
        part = slice(start, start + rows)
        yield detectors_pb2.PointColumns(stamps=times[part].tolist(), packed_values=array[part].tobytes())
