"""What has passed since fits and cycles last began, in a transaction that somebody has opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from server import rows, schema
from server.records import PaceRow


def find(connection: Connection, detector: str) -> list[PaceRow]:
    """What is known of a detector."""
    table = schema.paces
    query = select(table).where(table.c.detector == detector).order_by(table.c.what)
    return [PaceRow(**row) for row in connection.execute(query).mappings()]


def keep(connection: Connection, changed: Iterable[PaceRow]) -> None:
    """Replaces rows; those of a detector that is gone are let go."""
    for row in changed:
        if rows.find_detector(connection, row.detector) is None:
            continue
        statement = insert(schema.paces).values(asdict(row))
        values = {key: statement.excluded[key] for key in asdict(row) if key not in {"detector", "what"}}
        connection.execute(statement.on_conflict_do_update(index_elements=list(schema.paces.primary_key), set_=values))
