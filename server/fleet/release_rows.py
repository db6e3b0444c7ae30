"""Releases in the catalog, inside a transaction that somebody else has opened.

Of each detector and class one release is live for the class, and one for each roll-out that goes on. Older ones stay
for a while, so that a counter says which version it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import Connection, delete, func, select, update

from server import schema
from server.fleet.records import LiveRelease

KEPT = 50
"""Releases of a detector and class that are remembered."""
COLUMNS = [column for column in schema.releases.c if column.key != "live"]
Sign = Callable[[int], LiveRelease]
"""Makes the release of a number."""


def live(connection: Connection, detector: str | None = None) -> list[LiveRelease]:
    """What devices are to run: of a detector, or of all."""
    table = schema.releases
    query = select(*COLUMNS).where(table.c.live).order_by(table.c.detector, table.c.counter)
    if detector is not None:
        query = query.where(table.c.detector == detector)
    return [LiveRelease(**row) for row in connection.execute(query).mappings()]


def of_class(
    connection: Connection, detector: str, device_class: str, rollout: int | None = None
) -> LiveRelease | None:
    """What a class is to run, or the devices that a roll-out has asked."""
    table = schema.releases
    query = select(*COLUMNS).where(
        table.c.detector == detector, table.c.device_class == device_class, table.c.live, table.c.rollout.is_(rollout)
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else LiveRelease(**row)


EXPORTED = 0
"""In place of the number of a roll-out: the release went into a file, and is meant for no device that is connected."""


def issue(
    connection: Connection, detector: str, device_class: str, rollout: int | None, now: float, sign: Sign
) -> LiveRelease:
    """Adds a release that replaces the live one of the class or roll-out; one that is `EXPORTED` is never live.

    Counters follow the clock (and never go back): a hub that was restored from an old backup, or a detector that was
    deleted and made again, begins above whatever its devices have seen.
    """
    table = schema.releases
    same = (table.c.detector == detector, table.c.device_class == device_class)
    last = connection.execute(select(func.max(table.c.counter)).where(*same)).scalar() or 0
    release = sign(max(last + 1, int(now)))
    retire(connection, detector, device_class, rollout)
    connection.execute(table.insert().values(**asdict(release), live=rollout != EXPORTED))
    newest = select(table.c.counter).where(*same).order_by(table.c.counter.desc()).limit(KEPT)
    connection.execute(delete(table).where(*same, ~table.c.live, table.c.counter.not_in(newest)))
    return release


def retire(connection: Connection, detector: str, device_class: str, rollout: int | None) -> bool:
    """Takes back the live release of a class or roll-out; returns whether there was one."""
    table = schema.releases
    found = connection.execute(
        update(table)
        .where(
            table.c.detector == detector,
            table.c.device_class == device_class,
            table.c.rollout.is_(rollout),
            table.c.live,
        )
        .values(live=False)
    )
    return found.rowcount > 0


def promote(connection: Connection, release: LiveRelease) -> None:
    """Makes the release of a roll-out the one of its class."""
    retire(connection, release.detector, release.device_class, None)
    table = schema.releases
    connection.execute(
        update(table)
        .where(
            table.c.detector == release.detector,
            table.c.device_class == release.device_class,
            table.c.counter == release.counter,
        )
        .values(rollout=None)
    )


def whole_class_had(connection: Connection, detector: str, device_class: str, bundle_hash: str) -> bool:
    """Whether a bundle was released to a whole class before."""
    table = schema.releases
    query = select(table.c.counter).where(
        table.c.detector == detector,
        table.c.device_class == device_class,
        table.c.bundle_hash == bundle_hash,
        table.c.rollout.is_(None),
    )
    return connection.execute(query.limit(1)).first() is not None


def version_of(connection: Connection, detector: str, device_class: str, counter: int) -> int:
    """The version that a release was of; 0: it is not remembered."""
    table = schema.releases
    query = select(table.c.version).where(
        table.c.detector == detector, table.c.device_class == device_class, table.c.counter == counter
    )
    return connection.execute(query).scalar() or 0
