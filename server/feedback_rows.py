"""Labels and maintenance windows in the catalog, inside a transaction that somebody else has opened."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, delete, func, select

from detectors.errors import ExhaustedError, NotFoundError
from server import rows, schema
from server.records import FeedbackRow, WindowRow

MOST_ROWS = 10_000
"""Labels, and maintenance windows, of one detector."""


def add_label(connection: Connection, row: FeedbackRow) -> FeedbackRow:
    """Keeps a label; returns it with its number.

    Raises:
        NotFoundError: there is no such detector.
        ExhaustedError: it has `MOST_ROWS` labels.
    """
    key = _add(connection, schema.feedback, row.detector, _fields(row), "labels")
    return FeedbackRow(**{**_fields(row), "id": key})


def add_window(connection: Connection, row: WindowRow) -> WindowRow:
    """Keeps a maintenance window; see `add_label`."""
    key = _add(connection, schema.maintenance_windows, row.detector, _fields(row), "maintenance windows")
    return WindowRow(**{**_fields(row), "id": key})


def labels(connection: Connection, detector: str, before: int | None, limit: int | None) -> list[FeedbackRow]:
    """Labels of a detector, newest first: those older than the one of the number `before`."""
    return [FeedbackRow(**row) for row in _find(connection, schema.feedback, detector, before, limit)]


def windows(connection: Connection, detector: str, before: int | None, limit: int | None) -> list[WindowRow]:
    """Maintenance windows of a detector, newest first; see `labels`."""
    return [WindowRow(**row) for row in _find(connection, schema.maintenance_windows, detector, before, limit)]


def delete_label(connection: Connection, detector: str, number: int) -> None:
    """Takes a label back; NotFoundError if there is none of this number."""
    _delete(connection, schema.feedback, detector, number, "label")


def delete_window(connection: Connection, detector: str, number: int) -> None:
    """Takes a maintenance window back; NotFoundError if there is none of this number."""
    _delete(connection, schema.maintenance_windows, detector, number, "maintenance window")


def _fields(row: FeedbackRow | WindowRow) -> dict[str, Any]:
    return dict(vars(row))


def _add(connection: Connection, table: Table, detector: str, fields: dict[str, Any], what: str) -> int:
    rows.require_detector(connection, detector)
    count = select(func.count()).select_from(table).where(table.c.detector == detector)
    if connection.execute(count).scalar_one() >= MOST_ROWS:
        raise ExhaustedError(
            f"{detector!r} has {MOST_ROWS} {what} and may have no more.", field="parent", hint="Delete old ones."
        )
    del fields["id"]
    key = connection.execute(table.insert().values(fields)).inserted_primary_key
    return int(key[0]) if key else 0


def _find(connection: Connection, table: Table, detector: str, before: int | None, limit: int | None) -> Any:
    rows.require_detector(connection, detector)
    query = select(table).where(table.c.detector == detector).order_by(table.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(table.c.id < before)
    return connection.execute(query).mappings()


def _delete(connection: Connection, table: Table, detector: str, number: int, what: str) -> None:
    rows.require_detector(connection, detector)
    gone = connection.execute(delete(table).where(table.c.detector == detector, table.c.id == number))
    if not gone.rowcount:
        raise NotFoundError(f"{detector!r} has no {what} {number}.", field="name")
