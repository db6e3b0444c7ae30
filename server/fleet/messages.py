"""Messages of devices and the fleet to records and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from google.protobuf import json_format

from detectors.errors import InvalidInputError
from prunewatch.v1 import devices_pb2, fleet_pb2, pruning_pb2
from server.config import Budget
from server.fleet.keys import KeyFacts
from server.fleet.records import Device, RolloutRow, Served, Stage, State, Status
from server.fleet.reports import FieldRun, ProbeReport, ReleaseNote, Report, believable, plain
from server.names import detector_id, detector_name, device_name
from server.releases import key_id
from server.timestamps import timestamp

STATES: dict[int, State] = {
    devices_pb2.RELEASE_STATE_FETCHING: "fetching",
    devices_pb2.RELEASE_STATE_TRYING: "trying",
    devices_pb2.RELEASE_STATE_SERVING: "serving",
    devices_pb2.RELEASE_STATE_FELL_BACK: "fell_back",
    devices_pb2.RELEASE_STATE_REFUSED: "refused",
}
STATE_NUMBERS = {state: number for number, state in STATES.items()}
STAGES: dict[Stage, Any] = {
    "measuring": fleet_pb2.ROLLOUT_STAGE_MEASURING,
    "canary": fleet_pb2.ROLLOUT_STAGE_CANARY,
    "partial": fleet_pb2.ROLLOUT_STAGE_PARTIAL,
    "complete": fleet_pb2.ROLLOUT_STAGE_COMPLETE,
    "stopped": fleet_pb2.ROLLOUT_STAGE_STOPPED,
}
LONGEST_REASON = 500
MOST_SERVED = 1000


# from devices


def status_of_message(message: devices_pb2.DeviceStatus) -> Status:
    """How a device is; a name that can be none is left out."""
    served = (_served(it) for it in message.served[:MOST_SERVED])
    return Status(
        served={it.detector: it for it in served if it is not None},
        temperature_celsius=_number(message.temperature_celsius),
        uptime_seconds=_number(message.uptime_seconds) or 0.0,
        dropped_reports=message.dropped_reports,
        waiting_bytes=message.waiting_bytes,
        resident_bytes=message.resident_bytes,
    )


def _served(message: devices_pb2.ServedRelease) -> Served | None:
    try:
        detector = detector_id(message.detector)
    except InvalidInputError:
        return None
    return Served(
        detector=detector,
        bundle=message.bundle_hash[:64],
        counter=message.counter,
        state=STATES.get(message.state, ""),
        reason=message.reason[:LONGEST_REASON],
        asked_counter=message.asked_counter,
        points=max(message.points, 0),
        flagged=max(message.flagged, 0),
        step_p50=_number(message.step_p50_seconds),
        step_p99=_number(message.step_p99_seconds),
        series=message.series,
    )


def facts_of_message(message: devices_pb2.DeviceFacts) -> dict[str, Any]:
    """What kind of machine it is."""
    return {
        field.name: value[:200] if isinstance(value := getattr(message, field.name), str) else value
        for field in message.DESCRIPTOR.fields
    }


def report_of_message(device: str, message: devices_pb2.DeviceReport) -> Report:
    """A report; what can not be used says nothing, but has been heard."""
    kind = message.WhichOneof("report")
    try:
        if kind == "points":
            return Report(message.sequence, _run(message.points))
        if kind == "probe":
            return Report(message.sequence, _probe(device, message.time, message.probe))
        if kind == "release":
            return Report(message.sequence, _note(message.release))
    except (InvalidInputError, ValueError):
        pass
    return Report(message.sequence, None)


def _run(message: devices_pb2.FieldPoints) -> FieldRun:
    n, width = len(message.stamps), len(message.features)
    return FieldRun(
        detector=detector_id(message.detector),
        series=message.series,
        stamps=np.array(message.stamps, np.int64),
        values=np.frombuffer(message.packed_values, "<f4").astype(np.float32).reshape(n, width),
        scores=np.frombuffer(message.packed_scores, "<f4").astype(np.float32).reshape(n),
        threshold=message.threshold,
        counter=message.counter,
        flagged=message.flagged,
        features=tuple(message.features),
        size=message.ByteSize(),
    )


def _probe(device: str, time_ns: int, message: devices_pb2.ProbeResult) -> ProbeReport:
    costs = {it.sha256: (it.p50_seconds, it.p99_seconds) for it in message.costs if len(it.sha256) == 64}
    return ProbeReport(
        device=device,
        probe_id=message.probe_id[:64],
        batch=message.batch,
        costs=believable(costs),
        conditions=plain(json_format.MessageToDict(message.conditions)),
        problem=message.problem[:LONGEST_REASON],
        time_ns=time_ns,
    )


def _note(message: devices_pb2.ReleaseEvent) -> ReleaseNote:
    return ReleaseNote(
        detector_id(message.detector),
        message.bundle_hash[:64],
        message.counter,
        STATES.get(message.state, ""),
        message.reason[:LONGEST_REASON],
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


# to operators


def device_message(
    device: Device, status: Status | None, last_seen: float | None, *, connected: bool
) -> fleet_pb2.Device:
    """A device as it is known."""
    seen = None if last_seen is None else timestamp(last_seen)
    return fleet_pb2.Device(
        name=device_name(device.name),
        device_class=device.device_class,
        facts=devices_pb2.DeviceFacts(**device.facts),
        status=None if status is None else status_message(status),
        last_seen_time=seen,
        connected=connected,
        enrol_time=timestamp(device.enrolled),
        key_id=key_id(bytes.fromhex(device.public_key)),
    )


def status_message(status: Status) -> devices_pb2.DeviceStatus:
    """What a device said of itself."""
    return devices_pb2.DeviceStatus(
        served=[
            devices_pb2.ServedRelease(
                detector=detector_name(it.detector),
                bundle_hash=it.bundle,
                counter=it.counter,
                state=STATE_NUMBERS.get(it.state, devices_pb2.RELEASE_STATE_UNSPECIFIED),  # type: ignore[arg-type]
                reason=it.reason,
                asked_counter=it.asked_counter,
                points=it.points,
                flagged=it.flagged,
                step_p50_seconds=math.nan if it.step_p50 is None else it.step_p50,
                step_p99_seconds=math.nan if it.step_p99 is None else it.step_p99,
                series=it.series,
            )
            for it in status.served.values()
        ],
        temperature_celsius=math.nan if status.temperature_celsius is None else status.temperature_celsius,
        uptime_seconds=status.uptime_seconds,
        dropped_reports=status.dropped_reports,
        waiting_bytes=status.waiting_bytes,
        resident_bytes=status.resident_bytes,
    )


def rollout_message(row: RolloutRow, counts: dict[str, int]) -> fleet_pb2.Rollout:
    """A roll-out; `counts` are its devices by where they stand."""
    return fleet_pb2.Rollout(
        name=f"rollouts/{row.id}",
        detector=detector_name(row.detector),
        device_class=row.device_class,
        version=row.version,
        bundle_hash=row.bundle_hash,
        stage=STAGES[row.stage],
        asked=sum(counts.values()),
        serving=counts.get("serving", 0),
        failed=counts.get("failed", 0),
        reason=row.reason,
        create_time=timestamp(row.created),
        end_time=None if row.ended is None else timestamp(row.ended),
    )


def budget_message(budget: Budget) -> pruning_pb2.Budget:
    """What a step may cost."""
    return pruning_pb2.Budget(
        p99_seconds=budget.p99,
        p50_seconds=budget.p50,
        speedup=budget.speedup,
        size_bytes=budget.size,
        batch=budget.batch,
    )


def key_message(key: KeyFacts, *, current: bool) -> fleet_pb2.SigningKey:
    """The public half of a key."""
    return fleet_pb2.SigningKey(
        key_id=key.key_id,
        public_key=bytes.fromhex(key.public_key),
        create_time=timestamp(key.created),
        current=current,
    )
