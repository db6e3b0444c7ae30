"""Messages of the link to and from what the rest of the device works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from google.protobuf import struct_pb2

from prunewatch.v1 import devices_pb2 as pb
from server.edge.conditions import Facts
from server.edge.device import FieldLimits
from server.edge.outbox import Kind, Waiting
from server.edge.reports import DeviceStatus, FieldPoints, Measured, ReleaseEvent, ReleaseState, Report
from server.names import detector_name
from server.releases import Signed

DEVICES = "devices/"
STATES = {state: pb.ReleaseState.Value(f"RELEASE_STATE_{state.name}") for state in ReleaseState}


def signed_of(message: pb.Statement) -> Signed:
    """A statement; nothing is verified yet."""
    return Signed(message.payload, message.key_id, message.signature)


def limits_of(message: pb.FieldLimits) -> FieldLimits:
    """What may be sent; nonsense is nothing."""
    return FieldLimits(
        wanted=message.wanted,
        bytes_per_hour=max(message.bytes_per_hour, 0),
        windows_per_hour=max(message.windows_per_hour, 0),
    )


def facts_message(facts: Facts) -> pb.DeviceFacts:
    """What kind of machine it is."""
    return pb.DeviceFacts(**asdict(facts))


def status_message(status: DeviceStatus) -> pb.DeviceStatus:
    """How it is."""
    served = [
        pb.ServedRelease(**{**asdict(it), "detector": detector_name(it.detector), "state": STATES[it.state]})
        for it in status.served
    ]
    return pb.DeviceStatus(**{**vars(status), "served": served})


def kind_of(report: Report) -> Kind:
    """What goes first where there is no room."""
    if isinstance(report, FieldPoints):
        return Kind.FLAGGED if report.flagged else Kind.NORMAL
    return Kind.PROBE if isinstance(report, Measured) else Kind.RELEASE


def packed(report: Report) -> bytes:
    """A report as the outbox keeps it: without its number."""
    message = pb.DeviceReport(time=report.time_ns)
    if isinstance(report, FieldPoints):
        message.points.CopyFrom(_points(report))
    elif isinstance(report, Measured):
        conditions = struct_pb2.Struct()
        conditions.update(dict(report.conditions))
        costs = [
            pb.GraphCost(sha256=sha256, p50_seconds=p50, p99_seconds=p99) for sha256, (p50, p99) in report.costs.items()
        ]
        message.probe.CopyFrom(
            pb.ProbeResult(
                probe_id=report.probe_id,
                batch=report.batch,
                costs=costs,
                conditions=conditions,
                problem=report.problem,
            )
        )
    else:
        message.release.CopyFrom(_event(report))
    return message.SerializeToString()


def reports_message(waiting: Sequence[Waiting]) -> pb.DeviceReports:
    """Reports with their numbers."""
    reports = []
    for it in waiting:
        report = pb.DeviceReport.FromString(it.body)
        report.sequence = it.sequence
        reports.append(report)
    return pb.DeviceReports(reports=reports)


def _points(points: FieldPoints) -> pb.FieldPoints:
    return pb.FieldPoints(
        detector=detector_name(points.detector),
        series=points.series,
        stamps=points.stamps.tolist(),
        packed_values=points.values.astype("<f4").tobytes(),
        packed_scores=np.asarray(points.scores, "<f4").tobytes(),
        threshold=points.threshold,
        counter=points.counter,
        flagged=points.flagged,
        features=points.features,
    )


def _event(event: ReleaseEvent) -> pb.ReleaseEvent:
    return pb.ReleaseEvent(
        detector=detector_name(event.detector),
        bundle_hash=event.bundle_hash,
        counter=event.counter,
        state=STATES[event.state],
        reason=event.reason,
    )
