"""Finding rows of the catalog and moving what serves, inside a transaction that somebody else has opened."""

from __future__ import annotations

from sqlalchemy import Connection, func, select, update

from detectors.errors import ConflictError, NotFoundError, PreconditionError
from server import schema
from server.records import DetectorRow, Serving

SERVING = select(
    schema.serving.c.detector,
    schema.serving.c.device_class,
    schema.serving.c.version,
    schema.version_bundles.c.bundle_hash,
    schema.serving.c.pinned,
    schema.serving.c.previous_version,
).join_from(schema.serving, schema.version_bundles)


def find_detector(connection: Connection, name: str) -> DetectorRow | None:
    """A detector, if there is one."""
    query = select(schema.detectors).where(schema.detectors.c.name == name)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else DetectorRow(**row)


def require_detector(connection: Connection, name: str) -> DetectorRow:
    """A detector; NotFoundError names those there are."""
    row = find_detector(connection, name)
    if row is None:
        known = connection.execute(select(schema.detectors.c.name).order_by(schema.detectors.c.name).limit(5)).scalars()
        names = ", ".join(known)
        raise NotFoundError(
            f"there is no detector {name!r}.",
            field="name",
            hint=f"There are: {names}." if names else "Make one with `prunewatch fit`.",
        )
    return row


def last_version(connection: Connection, name: str) -> int:
    """Number of the newest version; 0 before the first."""
    query = select(func.max(schema.versions.c.version)).where(schema.versions.c.detector == name)
    return connection.execute(query).scalar() or 0


def find_serving(connection: Connection, name: str, device_class: str) -> Serving | None:
    """What serves on a device class, if anything does."""
    table = schema.serving
    query = SERVING.where(table.c.detector == name, table.c.device_class == device_class)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Serving(**row)


def require_serving(connection: Connection, name: str, device_class: str) -> Serving:
    """What serves on a device class; PreconditionError while nothing does."""
    require_detector(connection, name)
    serving = find_serving(connection, name, device_class)
    if serving is None:
        raise PreconditionError(
            f"no version of {name!r} serves on {device_class!r} yet.", field="device_class", hint="Fit it first."
        )
    return serving


def adopt(
    connection: Connection, name: str, device_class: str, version: int, expected_version: int | None = None
) -> Serving:
    """Moves the pointer of a device class; see `server.catalog.Catalog.adopt`."""
    now = find_serving(connection, name, device_class)
    table = schema.version_bundles
    found = connection.execute(
        select(table.c.bundle_hash).where(
            table.c.detector == name, table.c.version == version, table.c.device_class == device_class
        )
    ).scalar_one_or_none()
    if found is None:
        raise NotFoundError(f"{name!r} has no version {version} for {device_class!r}.", field="version")
    current = now.version if now else None
    if expected_version is not None and current != expected_version:
        raise ConflictError(
            f"version {current} of {name!r} serves on {device_class!r}, not {expected_version}.",
            field="version",
            hint="Look again and repeat.",
        )
    if current == version:
        return require_serving(connection, name, device_class)
    if now is not None and now.pinned:
        raise PreconditionError(
            f"version {now.version} of {name!r} is pinned on {device_class!r}.",
            field="device_class",
            hint="Unpin it first.",
        )
    if now is None:
        row = {"detector": name, "device_class": device_class, "version": version, "pinned": False}
        connection.execute(schema.serving.insert().values(row))
    else:
        connection.execute(
            update(schema.serving)
            .where(schema.serving.c.detector == name, schema.serving.c.device_class == device_class)
            .values(version=version, previous_version=now.version)
        )
    return require_serving(connection, name, device_class)
