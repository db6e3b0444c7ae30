"""What the catalog lets go: versions that nothing needs any more, and old pages of the book."""

from __future__ import annotations

from sqlalchemy import Column, Connection, Table, delete, func, select

from server import schema, waiting_rows

PAGES_KEPT = 1000
"""Cycles and adoptions of each detector, the newest."""
OPERATIONS_KEPT_SECONDS = 30 * 86400.0
"""How long an operation that has ended can be asked for."""


def let_versions_go(connection: Connection, name: str, keep: int) -> list[str]:
    """Forgets the versions of a detector that nothing needs, but for the newest `keep` of them.

    Needed is what serves or served before on any device class, what waits for devices, what is on probation and what
    would come back after it,
    the version that the parent of a kept one was made for, and the fit that a kept one goes back to.

    Args:
        connection: A transaction that writes.
        name: The detector.
        keep: At least 1.

    Returns:
        Hashes of the bundles that no version names any more.
    """
    versions, bundles, named = schema.versions, schema.bundles, schema.version_bundles
    kept = _kept(connection, name, keep)
    connection.execute(delete(versions).where(versions.c.detector == name, versions.c.version.not_in(kept)))
    gone = select(bundles.c.hash).where(
        bundles.c.detector == name,
        bundles.c.hash.not_in(select(named.c.bundle_hash).where(named.c.detector == name)),
        bundles.c.hash.not_in(select(versions.c.parent_hash).where(versions.c.detector == name)),
    )
    hashes = list(connection.execute(gone).scalars())
    connection.execute(delete(bundles).where(bundles.c.hash.in_(hashes)))
    return hashes


def _kept(connection: Connection, name: str, keep: int) -> set[int]:
    table = schema.versions
    query = select(table.c.version, table.c.parent_hash, table.c.cause).where(table.c.detector == name)
    known = connection.execute(query.order_by(table.c.version.desc())).all()
    bundles = schema.bundles
    made_for = {
        row.hash: row.version
        for row in connection.execute(select(bundles.c.hash, bundles.c.version).where(bundles.c.detector == name))
    }
    used = _used(connection, name)
    newest = [row.version for row in known if row.version not in used][:keep]
    kept = used | set(newest)
    for row in known:
        if row.version in used or row.version in newest:
            kept.add(made_for[row.parent_hash])
            kept.add(
                max((fit.version for fit in known if fit.cause == "fit" and fit.version <= row.version), default=0)
            )
    return kept


def _used(connection: Connection, name: str) -> set[int]:
    """Versions that serve, would serve after a roll back, are on probation, wait for devices, or are to run there."""
    serving, adoptions, releases = schema.serving, schema.adoptions, schema.releases
    on_probation = [adoptions.c.detector == name, adoptions.c.state == "probation"]
    queries = [
        select(serving.c.version, serving.c.previous_version).where(serving.c.detector == name),
        select(adoptions.c.version, adoptions.c.previous_version).where(*on_probation),
        select(releases.c.version).where(releases.c.detector == name, releases.c.live),
    ]
    found = [version for query in queries for row in connection.execute(query) for version in row]
    return {version for version in found if version is not None} | waiting_rows.versions(connection, name)


def bound_book(connection: Connection, now: float) -> None:
    """Lets old cycles, adoptions and operations go; what runs stays.

    Args:
        connection: A transaction that writes.
        now: In seconds since the epoch.
    """
    _keep_newest(connection, schema.cycles, schema.cycles.c.ended)
    _keep_newest(connection, schema.adoptions, schema.adoptions.c.ended)
    operations = schema.operations
    connection.execute(delete(operations).where(operations.c.ended < now - OPERATIONS_KEPT_SECONDS))


def _keep_newest(connection: Connection, table: Table, ended: Column[float]) -> None:
    place = func.row_number().over(partition_by=table.c.detector, order_by=table.c.id.desc())
    ranked = select(table.c.id, place.label("place")).subquery()
    old = select(ranked.c.id).where(ranked.c.place > PAGES_KEPT)
    connection.execute(delete(table).where(table.c.id.in_(old), ended.is_not(None)))
