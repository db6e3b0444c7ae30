"""What became of versions that cycles made serve: rows, inside a transaction that somebody has opened."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select, update

from server import schema
from server.records import AdoptionRow, AdoptionState

LONGEST_BACK_OFF = 7 * 86400.0
REMEMBERED = 100
"""Adoptions of a detector that are looked at, the newest."""
BY_HAND = "somebody rolled it back"


def add(
    connection: Connection,
    detector: str,
    device_class: str,
    version: int,
    previous_version: int | None,
    *,
    cycle: int,
    state: AdoptionState,
    now: float,
) -> None:
    """Notes that a cycle's version serves from now on."""
    connection.execute(
        schema.adoptions.insert().values(
            detector=detector,
            device_class=device_class,
            version=version,
            previous_version=previous_version,
            cycle=cycle,
            began=now,
            ended=None if state == "probation" else now,
            state=state,
            reason="",
        )
    )


def newest(connection: Connection, detector: str) -> list[AdoptionRow]:
    """Adoptions of a detector, newest first."""
    table = schema.adoptions
    query = select(table).where(table.c.detector == detector).order_by(table.c.id.desc()).limit(REMEMBERED)
    return [AdoptionRow(**row) for row in connection.execute(query).mappings()]


def end(connection: Connection, adoption: int, state: AdoptionState, reason: str, now: float) -> bool:
    """Ends a probation; one that has ended stays as it is. Returns whether it lasted until now."""
    table = schema.adoptions
    ended = connection.execute(
        update(table)
        .where(table.c.id == adoption, table.c.state == "probation")
        .values(state=state, reason=reason, ended=now)
    )
    return ended.rowcount > 0


def unproven_before(connection: Connection, adoption: AdoptionRow) -> list[AdoptionRow]:
    """Versions on probation that another one on probation took over from, one after the other, newest first.

    Where cycles follow each other faster than probations end, the version before has not proven itself either; the last
    that has is what served before the last of these.
    """
    versions = schema.versions
    there = set(
        connection.execute(select(versions.c.version).where(versions.c.detector == adoption.detector)).scalars()
    )
    found, last = [], adoption
    for it in newest(connection, adoption.detector):
        is_before = it.device_class == last.device_class and it.id < last.id and it.version == last.previous_version
        if is_before and it.state == "probation" and it.previous_version in there:
            found.append(it)
            last = it
    return found


def keep(connection: Connection, adoption: AdoptionRow, reason: str, now: float) -> int:
    """Ends a probation well, and those of the versions it took over from; returns how many have ended."""
    if not end(connection, adoption.id, "kept", reason, now):
        return 0
    passed = f"version {adoption.version}, which took over from it, was kept"
    between = unproven_before(connection, adoption)
    return 1 + sum(end(connection, it.id, "kept", passed, now) for it in between)


def give_up(connection: Connection, adoption: AdoptionRow, reason: str, now: float) -> tuple[int | None, int]:
    """Ends a probation badly, and those of the versions it took over from.

    Returns:
        The last version that has proven itself, or None; and how many probations have ended.
    """
    between = unproven_before(connection, adoption)
    ended = int(end(connection, adoption.id, "rolled_back", reason, now))
    passed = f"it had not proven itself when version {adoption.version}, which took over from it, went back: {reason}"
    ended += sum(end(connection, it.id, "rolled_back", passed, now) for it in between)
    return [adoption, *between][-1].previous_version, ended


def end_by_hand(connection: Connection, detector: str, device_class: str, to: int, now: float) -> None:
    """Ends the probations of versions newer than the one that somebody has rolled back to."""
    table = schema.adoptions
    connection.execute(
        update(table)
        .where(
            table.c.detector == detector,
            table.c.device_class == device_class,
            table.c.version > to,
            table.c.state == "probation",
        )
        .values(state="rolled_back", reason=BY_HAND, ended=now)
    )


def back_off_until(adoptions: Sequence[AdoptionRow], device_class: str, seconds: float) -> float:
    """Until when no cycle of a device class may begin by itself, in seconds since the epoch; 0: it may.

    Args:
        adoptions: Of the detector, newest first.
        device_class: The class.
        seconds: After the first roll back; doubled by each that followed it without a version that was kept.

    >>> went_back = AdoptionRow(1, "pump", "hub", 2, 1, None, began=0.0, ended=100.0, state="rolled_back")
    >>> back_off_until([went_back, went_back], "hub", 3600.0)
    7300.0
    """
    own = [it for it in adoptions if it.device_class == device_class and it.ended is not None]
    in_a_row = next((i for i, it in enumerate(own) if it.state != "rolled_back"), len(own))
    if not in_a_row:
        return 0.0
    return (own[0].ended or 0.0) + min(seconds * 2.0 ** (in_a_row - 1), LONGEST_BACK_OFF)
