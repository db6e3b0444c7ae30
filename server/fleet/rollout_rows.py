"""Roll-outs in the catalog, inside a transaction that somebody else has opened."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from detectors.errors import NotFoundError
from server import schema
from server.fleet.records import OPEN_STAGES, Member, RolloutRow, Standing

KEPT = 100
"""Roll-outs of a detector that are remembered, the newest."""


def add(connection: Connection, row: RolloutRow) -> RolloutRow:
    """Begins one; its number is given."""
    fields = {key: value for key, value in vars(row).items() if key != "id"}
    key = connection.execute(schema.rollouts.insert().values(fields)).inserted_primary_key
    table = schema.rollouts
    newest = select(table.c.id).where(table.c.detector == row.detector).order_by(table.c.id.desc()).limit(KEPT)
    connection.execute(
        delete(table).where(table.c.detector == row.detector, table.c.ended.is_not(None), table.c.id.not_in(newest))
    )
    return RolloutRow(**{**vars(row), "id": int(key[0]) if key else 0})


def require(connection: Connection, number: int) -> RolloutRow:
    """One; NotFoundError if there is none."""
    query = select(schema.rollouts).where(schema.rollouts.c.id == number)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"there is no roll-out {number}.", field="name", hint="List them: `prunewatch rollouts`.")
    return RolloutRow(**row)


def find(
    connection: Connection, detector: str = "", device_class: str = "", *, before: int | None = None, limit: int
) -> list[RolloutRow]:
    """Roll-outs, newest first."""
    table = schema.rollouts
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if detector:
        query = query.where(table.c.detector == detector)
    if device_class:
        query = query.where(table.c.device_class == device_class)
    if before is not None:
        query = query.where(table.c.id < before)
    return [RolloutRow(**row) for row in connection.execute(query).mappings()]


def going_on(connection: Connection, detector: str = "", device_class: str = "") -> list[RolloutRow]:
    """Those that have not ended, oldest first."""
    table = schema.rollouts
    query = select(table).where(table.c.stage.in_(OPEN_STAGES)).order_by(table.c.id)
    if detector:
        query = query.where(table.c.detector == detector)
    if device_class:
        query = query.where(table.c.device_class == device_class)
    return [RolloutRow(**row) for row in connection.execute(query).mappings()]


def change(connection: Connection, number: int, **values: Any) -> None:
    """Changes columns of one."""
    connection.execute(update(schema.rollouts).where(schema.rollouts.c.id == number).values(**values))


def members(connection: Connection, number: int) -> list[Member]:
    """The devices that one has asked."""
    table = schema.rollout_devices
    columns = [column for column in table.c if column.key != "rollout"]
    query = select(*columns).where(table.c.rollout == number).order_by(table.c.device)
    return [Member(**row) for row in connection.execute(query).mappings()]


def ask(connection: Connection, number: int, devices: Iterable[str], now: float) -> None:
    """Adds devices to those that are asked."""
    for device in devices:
        row = {"rollout": number, "device": device, "state": "asked", "reason": "", "asked": now}
        connection.execute(insert(schema.rollout_devices).values(row).on_conflict_do_nothing())


def set_member(
    connection: Connection, number: int, device: str, state: Standing, *, reason: str = "", proven: float | None = None
) -> None:
    """Notes where a device stands."""
    table = schema.rollout_devices
    connection.execute(
        update(table)
        .where(table.c.rollout == number, table.c.device == device)
        .values(state=state, reason=reason, proven=proven)
    )


def asked_devices(connection: Connection) -> dict[str, set[int]]:
    """Which roll-outs that go on have asked each device."""
    table, rollouts = schema.rollout_devices, schema.rollouts
    query = select(table.c.device, table.c.rollout).join_from(table, rollouts).where(rollouts.c.stage.in_(OPEN_STAGES))
    found: dict[str, set[int]] = {}
    for device, rollout in connection.execute(query):
        found.setdefault(device, set()).add(rollout)
    return found


def counts(connection: Connection, numbers: Iterable[int]) -> dict[int, dict[str, int]]:
    """How many devices of each roll-out stand where."""
    table = schema.rollout_devices
    query = (
        select(table.c.rollout, table.c.state, func.count())
        .where(table.c.rollout.in_(list(numbers)))
        .group_by(table.c.rollout, table.c.state)
    )
    found: dict[int, dict[str, int]] = {}
    for rollout, state, count in connection.execute(query):
        found.setdefault(rollout, {})[state] = count
    return found
