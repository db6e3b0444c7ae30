"""Records to messages and back, for the services that manage detectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import json_format, struct_pb2

from prunewatch.v1 import detectors_pb2 as detectors_pb
from prunewatch.v1 import pruning_pb2 as pruning_pb
from server.catalog import Catalog
from server.config import PARENT, DetectorConfig
from server.cycle_watch import CycleState
from server.names import detector_name
from server.records import VersionRow
from server.roster import Entry, shown_state
from server.timestamps import timestamp

STATES = {
    "learning": detectors_pb.DETECTOR_STATE_LEARNING,
    "fitting": detectors_pb.DETECTOR_STATE_FITTING,
    "ready": detectors_pb.DETECTOR_STATE_READY,
    "failed": detectors_pb.DETECTOR_STATE_FAILED,
}


def struct(fields: Mapping[str, Any]) -> struct_pb2.Struct:
    """Any JSON object."""
    return json_format.ParseDict(dict(fields), struct_pb2.Struct())


def detector_message(entry: Entry) -> detectors_pb.Detector:
    """A detector as it is now."""
    state = shown_state(entry.row.state, entry.scores, entry.problem)
    return detectors_pb.Detector(
        name=detector_name(entry.row.name),
        config=config_message(entry.config, entry.row.features),
        state=STATES[state],
        problem=entry.problem,
        threshold=entry.config.threshold,
        history_points=entry.points,
        served=[
            detectors_pb.ServedVersion(
                device_class=it.device_class,
                version=it.version,
                bundle_hash=it.bundle_hash,
                pinned=it.pinned,
                previous_version=it.previous_version or 0,
            )
            for it in entry.serving
        ],
        from_configuration=entry.from_configuration,
        create_time=timestamp(entry.row.created),
        etag=entry.etag,
        frozen=entry.row.frozen,
    )


def config_message(config: DetectorConfig, features: Sequence[str] | None) -> detectors_pb.DetectorConfig:
    """How a detector learns and alarms."""
    index = config.time == "index"
    periods = {
        name: "" if every is None else str(every)
        for name, every in (("refit_every", config.schedule.refit_every), ("prune_every", config.schedule.prune_every))
    }
    return detectors_pb.DetectorConfig(
        network=config.network,
        options=struct(config.options),
        features=features or config.features or [],
        device_classes=config.device_classes,
        false_alarm_rate=config.false_alarm_rate,
        seed=config.seed,
        fit_after=config.fit_after,
        time=detectors_pb.TIME_KIND_INDEX if index else detectors_pb.TIME_KIND_STAMP,
        score_duplicates=config.duplicate == "score",
        missing=config.missing,
        max_gap="" if config.max_gap is None else f"{config.max_gap:g}s",
        half_life=config.error.half_life,
        aggregate=config.error.aggregate,
        **periods,
    )


def config_fields(message: detectors_pb.DetectorConfig) -> dict[str, Any]:
    """What a message says of a detector, as fields of `DetectorConfig`; what it leaves out is not there."""
    fields: dict[str, Any] = {}
    for name in ("network", "features", "device_classes", "missing", "max_gap"):
        if value := getattr(message, name):
            fields[name] = value if isinstance(value, str) else list(value)
    if message.HasField("false_alarm_rate"):
        fields["false_alarm_rate"] = message.false_alarm_rate
    if message.HasField("seed"):
        fields["seed"] = message.seed
    if message.HasField("fit_after"):
        fields["fit_after"] = message.fit_after
    if message.HasField("options"):
        fields["options"] = plain(message.options)
    if message.time == detectors_pb.TIME_KIND_INDEX:
        fields["time"] = "index"
    if message.score_duplicates:
        fields["duplicate"] = "score"
    schedule = {name: getattr(message, name) for name in ("refit_every", "prune_every") if getattr(message, name)}
    error: dict[str, Any] = {"aggregate": message.aggregate} if message.aggregate else {}
    if message.HasField("half_life"):
        error["half_life"] = message.half_life
    sections = {"schedule": schedule, "error": error}
    return {**fields, **{name: section for name, section in sections.items() if section}}


def plain(message: struct_pb2.Struct) -> dict[str, Any]:
    """A JSON object with whole numbers as integers again."""

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restored(item) for key, item in value.items()}
        if isinstance(value, list):
            return [restored(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    fields: dict[str, Any] = restored(json_format.MessageToDict(message))
    return fields


def version_message(catalog: Catalog, row: VersionRow, serving: Iterable[str]) -> detectors_pb.Version:
    """A version with everything that is known of its bundles."""
    return detectors_pb.Version(
        name=f"{detector_name(row.detector)}/versions/{row.version}",
        number=row.version,
        cause=row.cause,
        create_time=timestamp(row.created),
        parent=_stored_bundle(catalog, PARENT, row.parent_hash),
        bundles=[_stored_bundle(catalog, it, bundle_hash) for it, bundle_hash in row.bundles.items()],
        serving=serving,
    )


def _stored_bundle(catalog: Catalog, device_class: str, bundle_hash: str) -> detectors_pb.BundleFacts:
    facts = catalog.bundle(bundle_hash)
    return detectors_pb.BundleFacts(
        version=facts.version,
        device_class=device_class,
        hash=facts.hash,
        units=unit_counts(facts.units),
        parameters=facts.parameters,
        bytes=facts.bytes,
        error=facts.error,
        measurements=[
            detectors_pb.StepMeasurement(
                device_class=it.device_class,
                batch=it.batch,
                p50_seconds=it.p50_seconds,
                p99_seconds=it.p99_seconds,
                measure_time=timestamp(it.measured),
            )
            for it in catalog.measurements(bundle_hash)
        ],
        derived_from=facts.derived_from or "",
    )


def made_bundle(facts: Mapping[str, Any], device_class: str) -> detectors_pb.BundleFacts:
    """A bundle as the trainer reports it; what a plan does not know is left out."""
    names = ("version", "hash", "parameters", "bytes", "error", "p50_seconds", "p99_seconds")
    known: dict[str, Any] = {name: facts[name] for name in names if facts.get(name) is not None}
    return detectors_pb.BundleFacts(device_class=device_class, units=unit_counts(facts.get("units") or {}), **known)


def unit_counts(units: Mapping[str, int]) -> list[detectors_pb.UnitCount]:
    """Hidden units by group."""
    return [detectors_pb.UnitCount(group=group, units=count) for group, count in units.items()]


def fit_result(result: Mapping[str, Any]) -> detectors_pb.FitResult:
    """What came out of a fit."""
    parent = made_bundle(result["parent"], PARENT)
    return detectors_pb.FitResult(version=parent.version, parent=parent, rows=int(result.get("rows") or 0))


def cycle_result(result: Mapping[str, Any], device_class: str = "") -> pruning_pb.CycleResult:
    """What came out of a cycle."""
    best, parent, child, gate, plan, report = (
        result.get(key) for key in ("best_reachable", "parent", "child", "gate", "plan", "report")
    )
    return pruning_pb.CycleResult(
        outcome=result.get("outcome", ""),
        reason=result.get("reason") or "",
        best_reachable=None if best is None else struct(best),
        parent=None if parent is None else made_bundle(parent, PARENT),
        child=None if child is None else made_bundle(child, device_class),
        gate=None if gate is None else struct(gate),
        plan=None if plan is None else struct(plan),
        report=None if report is None else struct({**report, "stages": result.get("stages") or {}}),
        times=result.get("times", ""),
    )


def cycle_message(state: CycleState) -> pruning_pb.Cycle:
    """A cycle in the book, with what became of its version."""
    row, adoption = state.row, state.adoption
    return pruning_pb.Cycle(
        name=f"{detector_name(row.detector)}/cycles/{row.id}",
        device_class=row.device_class,
        trigger=row.trigger,
        start_time=timestamp(row.started),
        end_time=None if row.ended is None else timestamp(row.ended),
        outcome=row.outcome,
        reason=row.reason,
        result=cycle_result(row.result, row.device_class) if row.result else None,
        cause=row.cause,
        operation=row.operation,
        adoption=adoption.state if adoption else "",
        adoption_reason=adoption.reason if adoption else "",
    )
