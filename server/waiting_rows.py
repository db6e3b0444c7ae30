"""Cycles whose child waits for devices: rows, inside a transaction that somebody has opened."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from detectors.errors import ConflictError
from server import adoptions, rows, schema
from server.records import AWAITING, CycleRow


def find(connection: Connection) -> list[CycleRow]:
    """Cycles whose child waits, oldest first."""
    table = schema.cycles
    query = select(table).where(table.c.outcome == AWAITING).order_by(table.c.id)
    return [CycleRow(**row) for row in connection.execute(query).mappings()]


def change(connection: Connection, cycle: int, **values: Any) -> None:
    """Changes the row of one.

    Raises:
        ConflictError: it does not wait any more.
    """
    table = schema.cycles
    changed = connection.execute(update(table).where(table.c.id == cycle, table.c.outcome == AWAITING).values(**values))
    if not changed.rowcount:
        raise ConflictError(f"the child of cycle {cycle} does not wait any more.", field="cycle")


def adopt(connection: Connection, row: CycleRow, serving: int | None, now: float) -> None:
    """Makes the version of a cycle serve on its class.

    Raises:
        ConflictError: another version serves than when it began to wait.
        PreconditionError: what serves is pinned.
        NotFoundError: the version is gone.
    """
    version = int(row.result["child"]["version"])
    rows.adopt(connection, row.detector, row.device_class, version, serving)
    adoptions.add(connection, row.detector, row.device_class, version, serving, cycle=row.id, state="kept", now=now)


def versions(connection: Connection, detector: str) -> set[int]:
    """Versions of a detector whose child waits."""
    return {int(row.result["child"]["version"]) for row in find(connection) if row.detector == detector}
