"""Devices, tokens, classes and measurements in the catalog, inside a transaction that somebody else has opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from detectors.errors import NotFoundError
from server import schema
from server.fleet.records import Device, Status

TOKENS_KEPT_SECONDS = 7 * 86400.0
"""How long a token is remembered that can not be used any more: so long whoever comes late is told why."""


# devices


def find_device(connection: Connection, name: str) -> Device | None:
    """A device, if there is one."""
    query = select(schema.devices).where(schema.devices.c.name == name)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Device(**row)


def require_device(connection: Connection, name: str) -> Device:
    """A device; NotFoundError if there is none."""
    device = find_device(connection, name)
    if device is None:
        raise NotFoundError(f"there is no device {name[:80]!r}.", field="name", hint="List them: `prunewatch devices`.")
    return device


def list_devices(
    connection: Connection, device_class: str = "", *, after: str = "", limit: int | None = None
) -> list[Device]:
    """Devices by name; of one class, or of all."""
    table = schema.devices
    query = select(table).where(table.c.name > after).order_by(table.c.name).limit(limit)
    if device_class:
        query = query.where(table.c.device_class == device_class)
    return [Device(**row) for row in connection.execute(query).mappings()]


def class_of_each(connection: Connection) -> dict[str, str]:
    """The class of each device."""
    table = schema.devices
    return {row.name: row.device_class for row in connection.execute(select(table.c.name, table.c.device_class))}


def count_devices(connection: Connection) -> dict[str, int]:
    """Devices of each class that has any."""
    table = schema.devices
    query = select(table.c.device_class, func.count()).group_by(table.c.device_class)
    return {row[0]: row[1] for row in connection.execute(query)}


def put_device(connection: Connection, device: Device) -> None:
    """Adds a device; one of the same name begins anew, and what it was asked is forgotten."""
    delete_device(connection, device.name)
    connection.execute(schema.devices.insert().values(vars(device)))


def delete_device(connection: Connection, name: str) -> bool:
    """Forgets a device; returns whether there was one."""
    return connection.execute(delete(schema.devices).where(schema.devices.c.name == name)).rowcount > 0


def change_device(connection: Connection, name: str, **values: Any) -> None:
    """Changes columns of a device."""
    connection.execute(update(schema.devices).where(schema.devices.c.name == name).values(**values))


def keep_statuses(connection: Connection, heard: Iterable[tuple[str, Status, float]]) -> None:
    """Keeps how devices were, and when they said so."""
    for name, status, at in heard:
        change_device(connection, name, status=status.to_json(), last_seen=at)


def trusted_keys(connection: Connection) -> set[str]:
    """Fingerprints of the signing keys that devices are known to trust."""
    return set(connection.execute(select(schema.devices.c.trusted_key).distinct()).scalars())


# tokens


def add_token(
    connection: Connection, digest: str, device_class: str, device: str, *, created: float, expires: float
) -> None:
    """Keeps the hash of a token, and lets those go that nobody can use any more."""
    table = schema.enrolment_tokens
    connection.execute(delete(table).where(table.c.expires < created - TOKENS_KEPT_SECONDS))
    connection.execute(
        table.insert().values(hash=digest, device_class=device_class, device=device, created=created, expires=expires)
    )


def find_token(connection: Connection, digest: str) -> Mapping[str, Any] | None:
    """A token by its hash: `device_class`, `device`, `expires`, `used`."""
    table = schema.enrolment_tokens
    row = connection.execute(select(table).where(table.c.hash == digest)).mappings().one_or_none()
    return None if row is None else {str(key): value for key, value in row.items()}


def use_token(connection: Connection, digest: str, now: float) -> None:
    """Marks a token as used."""
    table = schema.enrolment_tokens
    connection.execute(update(table).where(table.c.hash == digest).values(used=now))


# classes


def device_classes(connection: Connection) -> dict[str, dict[str, Any]]:
    """Budgets, as JSON, of the classes that were made over the API."""
    table = schema.device_classes
    return {row.name: row.budget for row in connection.execute(select(table).order_by(table.c.name))}


def put_device_class(connection: Connection, name: str, budget: Mapping[str, Any], now: float) -> None:
    """Adds a class, or changes its budget."""
    statement = insert(schema.device_classes).values(name=name, budget=dict(budget), created=now)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"budget": statement.excluded.budget})
    )


def delete_device_class(connection: Connection, name: str) -> None:
    """Forgets a class."""
    connection.execute(delete(schema.device_classes).where(schema.device_classes.c.name == name))


# measurements


def keep_costs(
    connection: Connection, device: str, batch: int, costs: Mapping[str, tuple[float, float]], now: float
) -> None:
    """Keeps the newest measurement of each graph on a device: median and 99th percentile of a step, in seconds."""
    for sha256, (p50, p99) in costs.items():
        statement = insert(schema.device_measurements).values(
            device=device, sha256=sha256, batch=batch, p50_seconds=p50, p99_seconds=p99, measured=now
        )
        newer = {key: statement.excluded[key] for key in ("p50_seconds", "p99_seconds", "measured")}
        connection.execute(
            statement.on_conflict_do_update(index_elements=list(schema.device_measurements.primary_key), set_=newer)
        )


def costs_of(
    connection: Connection, device_class: str, sha256: str, batch: int, since: float = 0.0
) -> dict[str, tuple[float, float]]:
    """What devices of a class have measured of a graph: (median, 99th percentile) in seconds by device."""
    table, devices = schema.device_measurements, schema.devices
    query = (
        select(table.c.device, table.c.p50_seconds, table.c.p99_seconds)
        .join_from(table, devices)
        .where(
            devices.c.device_class == device_class,
            table.c.sha256 == sha256,
            table.c.batch == batch,
            table.c.measured >= since,
        )
    )
    return {name: (p50, p99) for name, p50, p99 in connection.execute(query)}
