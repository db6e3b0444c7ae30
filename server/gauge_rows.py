"""All detectors at a glance, in one read of the catalog: what gauges show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, case, func, select

from server import schema
from server.records import Measurement

FRUITLESS = ("failed", "rejected")
"""Outcomes of cycles that came to nothing."""


@dataclass(frozen=True)
class Served:
    """What serves on a device class, with its dense parent.

    Attributes:
        detector: Its name.
        device_class: The class.
        version: That serves.
        pinned: Whether it is.
        created: When the version was made, in seconds since the epoch.
        bundle_hash: Of what serves.
        error: On held-out points when it was made; None: not known.
        parent_hash: Of the dense parent; the same where nothing was pruned.
        parent_parameters: Of it.
        parent_bytes: Of its step graph.
    """

    detector: str
    device_class: str
    version: int
    pinned: bool
    created: float
    bundle_hash: str
    error: float | None
    parent_hash: str
    parent_parameters: int
    parent_bytes: int


@dataclass(frozen=True)
class Ended:
    """Cycles of a device class that ended in the same way.

    Attributes:
        detector: Whose.
        device_class: The class.
        outcome: How they ended.
        last: When the last one did, in seconds since the epoch.
        since_adoption: How many did after the last that adopted something.
    """

    detector: str
    device_class: str
    outcome: str
    last: float
    since_adoption: int


@dataclass(frozen=True)
class GaugeRows:
    """The catalog at one moment.

    Attributes:
        detectors: Name, state and whether it is frozen.
        versions: How many are kept, by detector.
        served: What serves.
        measurements: Of what serves and of its parents, by hash of the bundle.
        ended: Cycles.
        rolled_back: When a version last was for misbehaving, by detector and device class.
        labels: How many there are, by detector and label.
    """

    detectors: Sequence[tuple[str, str, bool]]
    versions: dict[str, int]
    served: Sequence[Served]
    measurements: dict[str, list[Measurement]]
    ended: Sequence[Ended]
    rolled_back: dict[tuple[str, str], float]
    labels: dict[tuple[str, str], int]


def read_gauge_rows(connection: Connection) -> GaugeRows:
    """Everything, inside a transaction that somebody has opened: a few queries, however many detectors there are."""
    detectors, versions, adoptions, labels = schema.detectors, schema.versions, schema.adoptions, schema.feedback
    states = select(detectors.c.name, detectors.c.state, detectors.c.frozen)
    served = [Served(*row) for row in connection.execute(_SERVED)]
    hashes = {it.bundle_hash for it in served} | {it.parent_hash for it in served}
    rolled_back = (
        select(adoptions.c.detector, adoptions.c.device_class, func.max(adoptions.c.ended))
        .where(adoptions.c.state == "rolled_back")
        .group_by(adoptions.c.detector, adoptions.c.device_class)
    )
    by_detector = select(versions.c.detector, func.count()).group_by(versions.c.detector)
    by_label = select(labels.c.detector, labels.c.label, func.count()).group_by(labels.c.detector, labels.c.label)
    return GaugeRows(
        detectors=[(row.name, row.state, row.frozen) for row in connection.execute(states)],
        versions={row[0]: row[1] for row in connection.execute(by_detector)},
        served=served,
        measurements=_measurements(connection, hashes),
        ended=[Ended(*row) for row in connection.execute(_ENDED)],
        rolled_back={(row[0], row[1]): row[2] for row in connection.execute(rolled_back)},
        labels={(row[0], row[1]): row[2] for row in connection.execute(by_label)},
    )


def _measurements(connection: Connection, hashes: set[str]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    table, wanted = schema.measurements, sorted(hashes)
    for start in range(0, len(wanted), 500):  # SQLite takes so many parameters and no more
        query = select(table).where(table.c.bundle_hash.in_(wanted[start : start + 500]))
        for row in connection.execute(query).mappings():
            found.setdefault(row["bundle_hash"], []).append(Measurement(**row))
    return found


def _served() -> Select[Any]:
    serving, of_version, versions = schema.serving, schema.version_bundles, schema.versions
    own, parent = schema.bundles.alias("own"), schema.bundles.alias("parent")
    return (
        select(
            *(serving.c.detector, serving.c.device_class, serving.c.version, serving.c.pinned, versions.c.created),
            *(own.c.hash, own.c.error, parent.c.hash, parent.c.parameters, parent.c.bytes),
        )
        .join(
            of_version, and_(*(serving.c[key] == of_version.c[key] for key in ("detector", "version", "device_class")))
        )
        .join(versions, and_(*(serving.c[key] == versions.c[key] for key in ("detector", "version"))))
        .join(own, own.c.hash == of_version.c.bundle_hash)
        .join(parent, parent.c.hash == versions.c.parent_hash)
    )


def _ended() -> Select[Any]:
    cycles = schema.cycles
    adopted = (
        select(cycles.c.detector, cycles.c.device_class, func.max(cycles.c.id).label("id"))
        .where(cycles.c.outcome == "adopted")
        .group_by(cycles.c.detector, cycles.c.device_class)
        .subquery()
    )
    fruitless = func.sum(case((cycles.c.id > func.coalesce(adopted.c.id, 0), 1), else_=0))
    return (
        select(cycles.c.detector, cycles.c.device_class, cycles.c.outcome, func.max(cycles.c.ended), fruitless)
        .join(adopted, and_(*(cycles.c[key] == adopted.c[key] for key in ("detector", "device_class"))), isouter=True)
        .where(cycles.c.ended.is_not(None))
        .group_by(cycles.c.detector, cycles.c.device_class, cycles.c.outcome)
    )


_SERVED, _ENDED = _served(), _ended()
