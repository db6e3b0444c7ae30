"""All detectors of the catalog at a glance, in a few queries whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from server import schema
from server.anomalies import Anomaly
from server.anomaly_rows import anomaly_of
from server.records import DetectorState, Measurement


@dataclass(frozen=True)
class Glance:
    """A detector, without its configuration."""

    name: str
    state: DetectorState
    problem: str
    frozen: bool
    created: float


@dataclass(frozen=True)
class BundleGlance:
    """Sizes of a bundle."""

    hash: str
    units: dict[str, int]
    parameters: int
    bytes: int


@dataclass(frozen=True)
class ServedGlance:
    """What serves on a device class of a detector, and the dense parent of its version."""

    detector: str
    device_class: str
    version: int
    pinned: bool
    created: float
    bundle: BundleGlance
    parent: BundleGlance


@dataclass(frozen=True)
class CycleGlance:
    """A cycle without its result."""

    id: int
    detector: str
    device_class: str
    trigger: str
    cause: str
    started: float
    ended: float | None
    outcome: str
    reason: str
    operation: str


@dataclass(frozen=True)
class Overview:
    """All of it, of one moment.

    Attributes:
        detectors: By name.
        served: What serves where.
        measurements: Of the bundles that serve and of their parents.
        running: Cycles that have not ended.
        decided: The newest cycles that have, newest first.
        probations: (detector, device class, version) of what has to prove itself yet.
        anomalies: The newest of all detectors, newest first.
    """

    detectors: Sequence[Glance]
    served: Sequence[ServedGlance]
    measurements: Sequence[Measurement]
    running: Sequence[CycleGlance]
    decided: Sequence[CycleGlance]
    probations: frozenset[tuple[str, str, int]]
    anomalies: Sequence[Anomaly]


def overview(connection: Connection, *, detectors: int, newest: int) -> Overview:
    """Reads it.

    Args:
        connection: A transaction that reads.
        detectors: At most so many, by name.
        newest: At most so many cycles that have ended, and anomalies.
    """
    table = schema.detectors
    columns = [table.c[name] for name in Glance.__dataclass_fields__]
    found = connection.execute(select(*columns).order_by(table.c.name).limit(detectors)).mappings()
    served = _served(connection)
    return Overview(
        detectors=[Glance(**row) for row in found],
        served=served,
        measurements=_measurements(connection, served),
        running=_cycles(connection, running=True, limit=2 * detectors),
        decided=_cycles(connection, running=False, limit=newest),
        probations=_probations(connection),
        anomalies=[
            anomaly_of(row)
            for row in connection.execute(
                select(schema.anomalies).order_by(schema.anomalies.c.id.desc()).limit(newest)
            ).mappings()
        ],
    )


def _served(connection: Connection) -> list[ServedGlance]:
    serving, named, versions = schema.serving, schema.version_bundles, schema.versions
    own, dense = schema.bundles.alias("own"), schema.bundles.alias("dense")
    names = list(BundleGlance.__dataclass_fields__)
    query = (
        select(
            *(serving.c[it] for it in ("detector", "device_class", "version", "pinned")),
            versions.c.created,
            *(own.c[it].label(f"own_{it}") for it in names),
            *(dense.c[it].label(f"dense_{it}") for it in names),
        )
        .join_from(serving, named)
        .join(versions, (versions.c.detector == serving.c.detector) & (versions.c.version == serving.c.version))
        .join(own, own.c.hash == named.c.bundle_hash)
        .join(dense, dense.c.hash == versions.c.parent_hash)
        .order_by(serving.c.detector, serving.c.device_class)
    )
    return [
        ServedGlance(
            **{it: row[it] for it in ("detector", "device_class", "version", "pinned", "created")},
            bundle=BundleGlance(**{it: row[f"own_{it}"] for it in names}),
            parent=BundleGlance(**{it: row[f"dense_{it}"] for it in names}),
        )
        for row in connection.execute(query).mappings()
    ]


def _measurements(connection: Connection, served: Sequence[ServedGlance]) -> list[Measurement]:
    hashes = {bundle.hash for it in served for bundle in (it.bundle, it.parent)}
    table = schema.measurements
    query = select(table).where(table.c.bundle_hash.in_(hashes))
    return [Measurement(**row) for row in connection.execute(query).mappings()]


def _cycles(connection: Connection, *, running: bool, limit: int) -> list[CycleGlance]:
    table = schema.cycles
    state = table.c.outcome == "running" if running else table.c.outcome != "running"
    columns = [table.c[name] for name in CycleGlance.__dataclass_fields__]
    found = connection.execute(select(*columns).where(state).order_by(table.c.id.desc()).limit(limit))
    return [CycleGlance(**row) for row in found.mappings()]


def _probations(connection: Connection) -> frozenset[tuple[str, str, int]]:
    table = schema.adoptions
    query = select(table.c.detector, table.c.device_class, table.c.version).where(table.c.state == "probation")
    found: list[Any] = list(connection.execute(query))
    return frozenset((row.detector, row.device_class, row.version) for row in found)
