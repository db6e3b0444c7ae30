"""Looks into a catalog without changing it: whether it is whole, and what it names."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from detectors.errors import NewerStoreError, NotFoundError, PreconditionError
from server import schema

SHOWN = 3
"""Complaints of SQLite that are passed on."""


@dataclass(frozen=True)
class Named:
    """What a catalog names.

    Attributes:
        schema_version: Of its tables.
        features: Columns by detector; None where they are not known.
        bundles: Detector by hash.
        serving: Hashes of the bundles that serve.
    """

    schema_version: int
    features: Mapping[str, list[str] | None]
    bundles: Mapping[str, str]
    serving: frozenset[str]


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that can not write; other processes may."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def look_into(path: Path) -> Named:
    """Checks a catalog and says what it names.

    Raises:
        NotFoundError: there is none.
        NewerStoreError: it was written by a newer prunewatch.
        PreconditionError: it is damaged, no catalog, or contradicts itself.
    """
    if not path.is_file() or not path.stat().st_size:
        raise NotFoundError("is missing.", field=str(path))
    try:
        with closing(open_read_only(path)) as connection:
            _require_sound(connection, path)
            return _named(connection, path)
    except (sqlite3.Error, ValueError) as error:
        raise PreconditionError(f"is not a readable catalog ({error}).", field=str(path)) from error


def _require_sound(connection: sqlite3.Connection, path: Path) -> None:
    complaints = [row[0] for row in connection.execute(f"PRAGMA integrity_check({SHOWN})")]
    if complaints != ["ok"]:
        raise PreconditionError(f"is damaged: {'; '.join(complaints)}.", field=str(path))
    dangling = [row[0] for row in connection.execute("PRAGMA foreign_key_check")]
    if dangling:
        tables = ", ".join(sorted(set(dangling)))
        raise PreconditionError(
            f"contradicts itself: {len(dangling)} rows of {tables} belong to nothing.", field=str(path)
        )


def _named(connection: sqlite3.Connection, path: Path) -> Named:
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    version = int(row[0]) if row else 0
    if version > schema.SCHEMA_VERSION:
        raise NewerStoreError(
            f"was written by a newer prunewatch (schema {version}; this reads up to {schema.SCHEMA_VERSION}).",
            field=str(path),
            hint="Upgrade prunewatch.",
        )
    if version == schema.SCHEMA_VERSION:
        _require_columns(connection, path)
    serving = connection.execute(
        "SELECT bundle_hash FROM serving JOIN version_bundles USING (detector, version, device_class)"
    )
    return Named(
        schema_version=version,
        features={
            name: None if features is None else list(json.loads(features))
            for name, features in connection.execute("SELECT name, features FROM detectors")
        },
        bundles=dict(connection.execute("SELECT hash, detector FROM bundles").fetchall()),
        serving=frozenset(row[0] for row in serving),
    )


def _require_columns(connection: sqlite3.Connection, path: Path) -> None:
    for table in schema.tables.sorted_tables:
        found = {row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")}
        if lacking := {column.name for column in table.columns} - found:
            raise PreconditionError(f"lacks {', '.join(sorted(lacking))} in {table.name}.", field=str(path))
