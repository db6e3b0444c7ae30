"""Anomalies in the catalog, inside a transaction that somebody else has opened."""

from __future__ import annotations

from itertools import islice
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, select

from server import rows, schema
from server.anomalies import Anomaly
from server.anomaly_keeping import AnomalyQuery, Batch

ROWS_AT_ONCE = 500  # that are Python objects at the same time, in the process that scores


def keep(connection: Connection, batch: Batch) -> None:
    """Adds anomalies, and lets the oldest of the detector go; one that is gone itself keeps none."""
    if rows.find_detector(connection, batch.detector) is None:
        return
    table = schema.anomalies
    waiting = iter(batch.anomalies)
    while some := [_fields(anomaly) for anomaly in islice(waiting, ROWS_AT_ONCE)]:
        connection.execute(table.insert(), some)
    newest = select(table.c.id).where(table.c.detector == batch.detector).order_by(table.c.id.desc())
    too_old = newest.limit(1).offset(batch.limit).scalar_subquery()
    connection.execute(delete(table).where(table.c.detector == batch.detector, table.c.id <= too_old))


def find(connection: Connection, query: AnomalyQuery) -> list[Anomaly]:
    """Anomalies, newest first."""
    table = schema.anomalies
    asked = select(table).where(table.c.detector == query.detector).order_by(table.c.id.desc()).limit(query.limit)
    if query.series is not None:
        asked = asked.where(table.c.series == query.series)
    if query.start is not None:
        asked = asked.where(table.c.stamp >= query.start)
    if query.end is not None:
        asked = asked.where(table.c.stamp < query.end)
    if query.before is not None:
        asked = asked.where(table.c.id < query.before)
    return [anomaly_of(row) for row in connection.execute(asked).mappings()]


def anomaly_of(row: RowMapping) -> Anomaly:
    """A row of the table."""
    return Anomaly(**{**row, "shares": tuple((name, share) for name, share in row["shares"])})


def _fields(anomaly: Anomaly) -> dict[str, Any]:
    return {
        "detector": anomaly.detector,
        "series": anomaly.series,
        "stamp": anomaly.stamp,
        "score": anomaly.score,
        "threshold": anomaly.threshold,
        "version": anomaly.version,
        "shares": anomaly.shares,
        "found": anomaly.found,
    }
