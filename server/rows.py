"""Finding rows of the catalog and moving what serves, inside a transaction that somebody else has opened."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, func, select, update

from detectors.errors import ConflictError, NotFoundError, PreconditionError
from server import schema
from server.records import BundleRow, DetectorFacts, DetectorRow, Serving, VersionRow

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


def list_versions(connection: Connection, name: str) -> list[VersionRow]:
    """All versions of a detector, oldest first."""
    bundles: dict[int, dict[str, str]] = {}
    table = schema.version_bundles
    for row in connection.execute(select(table).where(table.c.detector == name).order_by(table.c.device_class)):
        bundles.setdefault(row.version, {})[row.device_class] = row.bundle_hash
    query = select(schema.versions).where(schema.versions.c.detector == name)
    found = connection.execute(query.order_by(schema.versions.c.version)).mappings()
    return [VersionRow(**row, bundles=bundles.get(row["version"], {})) for row in found]


def facts(connection: Connection, name: str) -> DetectorFacts:
    """A detector with its versions and what serves; NotFoundError if there is none."""
    table = schema.bundles
    columns = [column for column in table.c if column.key != table.c.detector.key]
    query = select(*columns).where(table.c.detector == name).order_by(table.c.version, table.c.hash)
    return DetectorFacts(
        detector=require_detector(connection, name),
        bundles=[BundleRow(**row) for row in connection.execute(query).mappings()],
        versions=list_versions(connection, name),
        serving=list_serving(connection, name),
    )


def insert_version(connection: Connection, version: VersionRow) -> None:
    """Adds a version; its bundles must be there."""
    fields = {key: value for key, value in asdict(version).items() if key != "bundles"}
    connection.execute(schema.versions.insert().values(fields))
    key = {"detector": version.detector, "version": version.version}
    for device_class, bundle_hash in version.bundles.items():
        row = {**key, "device_class": device_class, "bundle_hash": bundle_hash}
        connection.execute(schema.version_bundles.insert().values(row))


def insert_facts(connection: Connection, known: DetectorFacts) -> None:
    """Adds a detector with its versions and what serves as they were."""
    name = known.detector.name
    connection.execute(schema.detectors.insert().values(asdict(known.detector)))
    for bundle in known.bundles:
        connection.execute(schema.bundles.insert().values(detector=name, **asdict(bundle)))
    for version in known.versions:
        insert_version(connection, version)
    for serving in known.serving:
        fields = {key: value for key, value in asdict(serving).items() if key != "bundle_hash"}
        connection.execute(schema.serving.insert().values(fields))


def find_serving(connection: Connection, name: str, device_class: str) -> Serving | None:
    """What serves on a device class, if anything does."""
    table = schema.serving
    query = SERVING.where(table.c.detector == name, table.c.device_class == device_class)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Serving(**row)


def list_serving(connection: Connection, name: str) -> list[Serving]:
    """What serves on each device class of a detector."""
    query = SERVING.where(schema.serving.c.detector == name).order_by(schema.serving.c.device_class)
    return [Serving(**row) for row in connection.execute(query).mappings()]


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
