"""What the client gives back: scores as arrays, everything else as plain JSON objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from google.longrunning import operations_pb2
from google.protobuf import json_format
from numpy.typing import NDArray

from prunewatch.errors import ServiceError
from prunewatch.v1 import detectors_pb2, feedback_pb2, pruning_pb2, scoring_pb2

STATUSES = [name.removeprefix("POINT_STATUS_") for name in scoring_pb2.PointStatus.keys()]  # noqa: SIM118  (no mapping)


@dataclass(frozen=True)
class Anomaly:
    """One anomaly, as it was watched or asked for later."""

    detector: str
    series: str
    stamp: int
    score: float
    threshold: float
    version: int
    contributions: Mapping[str, float]
    """Share of the error by feature, the largest ones, largest first."""
    dropped: int = 0
    """Anomalies this reader of `Client.watch` has lost because it was too slow."""
    found_seconds: float = 0.0
    """When it was found by the server's clock, in seconds since the epoch."""


@dataclass(frozen=True)
class Series:
    """One series of a detector, as it was when its page was asked for.

    Attributes:
        name: Its name.
        last_stamp: Of its newest point, nanoseconds since the epoch or a row number; None: it has none.
        points: Taken since it began, or began anew.
        warming_up: They are too few for a score.
        heard_seconds: When it last took a point by the server's clock, in seconds since the epoch.
        in_memory: Whether its state is; it waits on disk otherwise.
    """

    name: str
    last_stamp: int | None
    points: int
    warming_up: bool
    heard_seconds: float
    in_memory: bool


@dataclass(frozen=True)
class Scores:
    """What became of N points.

    Attributes:
        scores: [N] float32; NaN where the status is not OK.
        statuses: [N]; numbers of `prunewatch.v1.PointStatus`.
        threshold: Scores from here on are anomalies.
        version: That scored; 0 while the detector learns.
        point_versions: [N].
        contributions: By index of an anomaly, [F] shares of the error; only when asked for.
        muted: Indexes of points that have reached the threshold in a maintenance window: no anomalies.
        sequence: Number of the message in a stream.
        error: Why a message of a stream could not be used; the arrays are empty then.
        resent: Indexes of points that came to the service again, from a stream that reconnects: their status is LATE or
            DUPLICATE and their score is lost, except that of anomalies, which the service keeps.
    """

    scores: NDArray[np.float32]
    statuses: NDArray[np.uint8]
    threshold: float
    version: int
    point_versions: NDArray[np.int64]
    contributions: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    muted: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    sequence: int = 0
    error: ServiceError | None = None
    resent: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def anomalies(self) -> NDArray[np.bool_]:
        """[N]; whether the point is one."""
        flags: NDArray[np.bool_] = self.scores >= np.float32(self.threshold)
        flags[self.muted] = False
        return flags

    @property
    def status_names(self) -> list[str]:
        """[N]; `OK`, `WARMING_UP`, ..."""
        return [STATUSES[status] for status in self.statuses.tolist()]

    def in_order(self, rows: NDArray[np.int64]) -> Scores:
        """The same for points in another order: point i of these becomes point `rows[i]`."""
        back = np.empty_like(rows)
        back[rows] = np.arange(len(rows))
        return replace(
            self,
            scores=self.scores[back],
            statuses=self.statuses[back],
            point_versions=self.point_versions[back],
            contributions={int(rows[i]): each for i, each in self.contributions.items()},
            muted=rows[self.muted],
            resent=rows[self.resent],
        )


def scores_of(response: scoring_pb2.ScoreResponse, sequence: int = 0) -> Scores:
    """The arrays of a response."""
    scores = np.frombuffer(response.packed_scores, "<f4") if response.packed_scores else np.array(response.scores, "f4")
    versions = np.array(response.point_versions, np.int64)
    flagged = list(response.flagged_index)
    shares = np.frombuffer(response.packed_contributions, "<f4").reshape(len(flagged), -1) if flagged else ()
    return Scores(
        scores=scores,
        statuses=np.frombuffer(response.statuses, np.uint8),
        threshold=response.threshold,
        version=response.version,
        point_versions=versions if len(versions) else np.full(len(scores), response.version, np.int64),
        contributions=dict(zip(flagged, shares, strict=True)),
        muted=np.array(response.muted_index, np.int64),
        sequence=sequence,
    )


def joined(parts: Sequence[Scores]) -> Scores:
    """The replies to the messages that some points were cut into, as one; the error of the first that has one."""
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return first
    if failed := next((it for it in parts if it.error), None):
        return replace(failed, sequence=first.sequence)
    starts = np.cumsum([0, *(len(it.scores) for it in parts)]).tolist()
    return Scores(
        scores=np.concatenate([it.scores for it in parts]),
        statuses=np.concatenate([it.statuses for it in parts]),
        threshold=last.threshold,
        version=last.version,
        point_versions=np.concatenate([it.point_versions for it in parts]),
        contributions={
            start + i: each for start, it in zip(starts, parts, strict=False) for i, each in it.contributions.items()
        },
        muted=np.concatenate([start + it.muted for start, it in zip(starts, parts, strict=False)]),
        sequence=first.sequence,
        resent=np.concatenate([start + it.resent for start, it in zip(starts, parts, strict=False)]),
    )


def anomaly_of(message: scoring_pb2.Anomaly | scoring_pb2.WatchResponse) -> Anomaly:
    """An anomaly, watched or kept."""
    return Anomaly(
        detector=message.detector.rpartition("/")[2],
        series=message.series,
        stamp=message.stamp,
        score=message.score,
        threshold=message.threshold,
        version=message.version,
        contributions={share.feature: share.share for share in message.contributions},
        dropped=message.dropped if isinstance(message, scoring_pb2.WatchResponse) else 0,
        found_seconds=message.find_time.seconds + message.find_time.nanos / 1e9,
    )


def series_of(message: scoring_pb2.Series) -> Series:
    """A series of a list."""
    return Series(
        name=message.name,
        last_stamp=message.last_stamp if message.HasField("last_stamp") else None,
        points=message.points,
        warming_up=message.warming_up,
        heard_seconds=message.heard_time.seconds + message.heard_time.nanos / 1e9,
        in_memory=message.in_memory,
    )


def failed_message(error: ServiceError, sequence: int) -> Scores:
    """The reply to a message of a stream that could not be used."""
    return Scores(
        np.empty(0, np.float32), np.empty(0, np.uint8), np.nan, 0, np.empty(0, np.int64), sequence=sequence, error=error
    )


def detector_json(message: detectors_pb2.Detector) -> dict[str, Any]:
    """A detector as `prunewatch show --json` says it, without its versions."""
    return {
        "name": message.name.rpartition("/")[2],
        "state": detectors_pb2.DetectorState.Name(message.state).removeprefix("DETECTOR_STATE_").lower(),
        "problem": message.problem,
        "network": message.config.network,
        "time": "index" if message.config.time == detectors_pb2.TIME_KIND_INDEX else "stamp",
        "features": list(message.config.features),
        "false_alarm_rate": message.config.false_alarm_rate,
        "threshold": message.threshold,
        "history_points": message.history_points,
        "served": [
            {
                "device_class": it.device_class,
                "version": it.version,
                "bundle_hash": it.bundle_hash,
                "pinned": it.pinned,
                "previous_version": it.previous_version or None,
            }
            for it in message.served
        ],
        "frozen": message.frozen,
        "etag": message.etag,
    }


def version_json(message: detectors_pb2.Version) -> dict[str, Any]:
    """A version as `prunewatch show --json` says it."""
    return {
        "version": message.number,
        "cause": message.cause,
        "created_seconds": message.create_time.seconds + message.create_time.nanos / 1e9,
        "serving": list(message.serving),
        "parent": _stored_json(message.parent),
        "children": {it.device_class: _stored_json(it) for it in message.bundles if it.hash != message.parent.hash},
    }


def result_json(operation: operations_pb2.Operation) -> dict[str, Any]:
    """The result of an operation as the command line prints it."""
    fit, cycle, frontier = detectors_pb2.FitResult(), pruning_pb2.CycleResult(), pruning_pb2.Frontier()
    if operation.response.Unpack(fit):
        return {"outcome": "adopted", "parent": _made_json(fit.parent), "rows": fit.rows}
    if operation.response.Unpack(frontier):
        return frontier_json(frontier)
    operation.response.Unpack(cycle)
    return cycle_json(cycle)


def book_json(cycle: pruning_pb2.Cycle) -> dict[str, Any]:
    """A cycle of the book."""
    return {
        "id": int(cycle.name.rpartition("/")[2]),
        "device_class": cycle.device_class,
        "trigger": cycle.trigger,
        "cause": cycle.cause,
        "operation": cycle.operation,
        "started_seconds": cycle.start_time.seconds + cycle.start_time.nanos / 1e9,
        "ended_seconds": cycle.end_time.seconds + cycle.end_time.nanos / 1e9 if cycle.HasField("end_time") else None,
        "outcome": cycle.outcome,
        "reason": cycle.reason,
        "adoption": cycle.adoption,
        "adoption_reason": cycle.adoption_reason,
        "result": cycle_json(cycle.result) if cycle.HasField("result") else None,
    }


def cycle_json(cycle: pruning_pb2.CycleResult) -> dict[str, Any]:
    """The result of a cycle as `prunewatch prune --json` prints it; `stages` come with the report."""
    report = _struct_json(cycle.report) if cycle.HasField("report") else None
    return {
        "outcome": cycle.outcome,
        "reason": cycle.reason,
        "best_reachable": _struct_json(cycle.best_reachable) if cycle.HasField("best_reachable") else None,
        "parent": _made_json(cycle.parent) if cycle.HasField("parent") else None,
        "child": _made_json(cycle.child) if cycle.HasField("child") else None,
        "gate": _struct_json(cycle.gate) if cycle.HasField("gate") else None,
        "stages": report.pop("stages", {}) if report else {},
        "plan": _struct_json(cycle.plan) if cycle.HasField("plan") else None,
        "report": report,
        "version": cycle.child.version or None,
        "times": cycle.times,
    }


def frontier_json(message: pruning_pb2.Frontier) -> dict[str, Any]:
    """A frontier as `prunewatch frontier --json` prints it."""
    return {
        "name": message.name.rpartition("/")[2],
        "device_class": message.device_class,
        "batch": message.batch,
        "created_seconds": message.create_time.seconds + message.create_time.nanos / 1e9,
        "parent": _made_json(message.parent),
        "points": [
            {
                "units": {count.group: count.units for count in it.units},
                "structure": it.structure,
                "parameters": it.parameters,
                "bytes": it.bytes,
                "p50_seconds": it.p50_seconds,
                "p99_seconds": it.p99_seconds,
                "speedup": it.speedup,
                "error_ratio": it.error_ratio,
                "agreement": it.agreement,
                "injected_change": it.injected_change,
                "on_front": it.on_front,
            }
            for it in message.points
        ],
    }


def label_json(message: feedback_pb2.Feedback) -> dict[str, Any]:
    """A label as `prunewatch feedback --json` says it."""
    return {**window_json(message), "label": feedback_pb2.Label.Name(message.label).removeprefix("LABEL_").lower()}


def window_json(message: feedback_pb2.Feedback | feedback_pb2.MaintenanceWindow) -> dict[str, Any]:
    """A maintenance window as `prunewatch maintenance --json` says it."""
    return {
        "id": int(message.name.rpartition("/")[2]),
        "series": message.series,
        "first_stamp": message.first_stamp,
        "last_stamp": message.last_stamp,
        "note": message.note,
        "created_seconds": message.create_time.seconds + message.create_time.nanos / 1e9,
    }


def _stored_json(facts: detectors_pb2.BundleFacts) -> dict[str, Any]:
    return {
        "hash": facts.hash,
        "version": facts.version,
        "device_class": facts.device_class,
        "units": {it.group: it.units for it in facts.units},
        "parameters": facts.parameters,
        "bytes": facts.bytes,
        "error": facts.error if facts.HasField("error") else None,
        "derived_from": facts.derived_from or None,
        "measurements": [
            {
                "device_class": it.device_class,
                "batch": it.batch,
                "p50_seconds": it.p50_seconds,
                "p99_seconds": it.p99_seconds,
                "measured_seconds": it.measure_time.seconds + it.measure_time.nanos / 1e9,
            }
            for it in facts.measurements
        ],
    }


def _made_json(facts: detectors_pb2.BundleFacts) -> dict[str, Any]:
    return {
        "hash": facts.hash or None,
        "version": facts.version or None,
        "units": {it.group: it.units for it in facts.units},
        "parameters": facts.parameters,
        "bytes": facts.bytes,
        "p50_seconds": facts.p50_seconds if facts.HasField("p50_seconds") else None,
        "p99_seconds": facts.p99_seconds if facts.HasField("p99_seconds") else None,
        "error": facts.error if facts.HasField("error") else None,
    }


def _struct_json(message: Any) -> dict[str, Any]:
    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restored(item) for key, item in value.items()}
        if isinstance(value, list):
            return [restored(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    fields: dict[str, Any] = restored(json_format.MessageToDict(message))
    return fields
