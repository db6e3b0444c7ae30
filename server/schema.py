"""Tables of the catalog, and how its database is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError

from detectors.errors import NewerStoreError, PreconditionError

SCHEMA_VERSION = 4
BUSY_SECONDS = 30  # threads of one process wait for each other's commits

tables = MetaData()


def _of_detector() -> ForeignKey:
    return ForeignKey("detectors.name", ondelete="CASCADE")


meta = Table(
    "meta",
    tables,
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)
detectors = Table(
    "detectors",
    tables,
    Column("name", String, primary_key=True),
    Column("config", JSON, nullable=False),
    Column("state", String, nullable=False),
    Column("features", JSON(none_as_null=True)),
    Column("created", Float, nullable=False),
    Column("problem", String, nullable=False),
    Column("frozen", Boolean, nullable=False, server_default=text("0")),
)
bundles = Table(
    "bundles",
    tables,
    Column("hash", String, primary_key=True),
    Column("detector", _of_detector(), nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("device_class", String, nullable=False),
    Column("units", JSON, nullable=False),
    Column("parameters", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("error", Float),
    Column("derived_from", String),
)
versions = Table(
    "versions",
    tables,
    Column("detector", _of_detector(), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("parent_hash", ForeignKey("bundles.hash"), nullable=False),
    Column("cause", String, nullable=False),
    Column("created", Float, nullable=False),
)
version_bundles = Table(
    "version_bundles",
    tables,
    Column("detector", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("device_class", String, primary_key=True),
    Column("bundle_hash", ForeignKey("bundles.hash"), nullable=False),
    ForeignKeyConstraint(["detector", "version"], ["versions.detector", "versions.version"], ondelete="CASCADE"),
)
serving = Table(
    "serving",
    tables,
    Column("detector", _of_detector(), primary_key=True),
    Column("device_class", String, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("previous_version", Integer),
    ForeignKeyConstraint(
        ["detector", "version", "device_class"],
        ["version_bundles.detector", "version_bundles.version", "version_bundles.device_class"],
        ondelete="CASCADE",
    ),
)
cycles = Table(
    "cycles",
    tables,
    Column("id", Integer, primary_key=True),
    Column("detector", _of_detector(), nullable=False, index=True),
    Column("device_class", String, nullable=False),
    Column("trigger", String, nullable=False),
    Column("started", Float, nullable=False),
    Column("ended", Float),
    Column("outcome", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("result", JSON, nullable=False),
    Column("cause", String, nullable=False, server_default=""),
    Column("operation", String, nullable=False, server_default=""),
)
operations = Table(
    "operations",
    tables,
    Column("name", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("detector", String, nullable=False, index=True),
    Column("state", String, nullable=False, index=True),
    Column("stage", String, nullable=False),
    Column("done", Float, nullable=False),
    Column("message", String, nullable=False),
    Column("error", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    Column("created", Float, nullable=False),
    Column("ended", Float),
)
measurements = Table(
    "measurements",
    tables,
    Column("bundle_hash", ForeignKey("bundles.hash", ondelete="CASCADE"), primary_key=True),
    Column("device_class", String, primary_key=True),
    Column("batch", Integer, primary_key=True),
    Column("p50_seconds", Float, nullable=False),
    Column("p99_seconds", Float, nullable=False),
    Column("measured", Float, nullable=False),
)
anomalies = Table(
    "anomalies",
    tables,
    Column("id", Integer, primary_key=True),
    Column("detector", _of_detector(), nullable=False),
    Column("series", String, nullable=False),
    Column("stamp", BigInteger, nullable=False),
    Column("score", Float, nullable=False),
    Column("threshold", Float, nullable=False),
    Column("version", Integer, nullable=False),
    Column("shares", JSON, nullable=False),
    Column("found", Float, nullable=False),
    Index("ix_anomalies_detector", "detector", "id"),
    sqlite_autoincrement=True,  # an id is never used again, so that a page token never means another row
)

feedback = Table(
    "feedback",
    tables,
    Column("id", Integer, primary_key=True),
    Column("detector", _of_detector(), nullable=False),
    Column("series", String, nullable=False),
    Column("first_stamp", BigInteger, nullable=False),
    Column("last_stamp", BigInteger, nullable=False),
    Column("label", String, nullable=False),
    Column("note", String, nullable=False),
    Column("created", Float, nullable=False),
    Index("ix_feedback_detector", "detector", "id"),
    sqlite_autoincrement=True,
)
maintenance_windows = Table(
    "maintenance_windows",
    tables,
    Column("id", Integer, primary_key=True),
    Column("detector", _of_detector(), nullable=False),
    Column("series", String, nullable=False),
    Column("first_stamp", BigInteger, nullable=False),
    Column("last_stamp", BigInteger, nullable=False),
    Column("note", String, nullable=False),
    Column("created", Float, nullable=False),
    Index("ix_maintenance_windows_detector", "detector", "id"),
    sqlite_autoincrement=True,
)
adoptions = Table(
    "adoptions",
    tables,
    Column("id", Integer, primary_key=True),
    Column("detector", _of_detector(), nullable=False),
    Column("device_class", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("previous_version", Integer),
    Column("cycle", Integer),
    Column("began", Float, nullable=False),
    Column("ended", Float),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Index("ix_adoptions_detector", "detector", "id"),
    sqlite_autoincrement=True,
)
paces = Table(
    "paces",
    tables,
    Column("detector", _of_detector(), primary_key=True),
    Column("what", String, primary_key=True),
    Column("seconds", Float, nullable=False),
    Column("points", BigInteger, nullable=False),
    Column("begun", Integer, nullable=False),
    Column("due", Boolean, nullable=False),
    Column("budget", String, nullable=False),
    Column("saved", Float, nullable=False),
)

# devices: `server.fleet`

device_classes = Table(
    "device_classes",
    tables,
    Column("name", String, primary_key=True),
    Column("budget", JSON, nullable=False),
    Column("created", Float, nullable=False),
)
enrolment_tokens = Table(
    "enrolment_tokens",
    tables,
    Column("hash", String, primary_key=True),
    Column("device_class", String, nullable=False),
    Column("device", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
)
devices = Table(
    "devices",
    tables,
    Column("name", String, primary_key=True),
    Column("device_class", String, nullable=False),
    Column("public_key", String, nullable=False),
    Column("trusted_key", String, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("status", JSON(none_as_null=True)),
    Column("last_seen", Float),
    Column("enrolled", Float, nullable=False),
    Column("kept_sequence", BigInteger, nullable=False),
    Index("ix_devices_device_class", "device_class", "name"),
)
releases = Table(
    "releases",
    tables,
    Column("detector", _of_detector(), primary_key=True),
    Column("device_class", String, primary_key=True),
    Column("counter", BigInteger, primary_key=True, autoincrement=False),
    Column("bundle_hash", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("rollout", Integer),
    Column("live", Boolean, nullable=False),
    Column("issued", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("key_id", String, nullable=False),
    Column("signed", String, nullable=False),
)
rollouts = Table(
    "rollouts",
    tables,
    Column("id", Integer, primary_key=True),
    Column("detector", _of_detector(), nullable=False),
    Column("device_class", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("bundle_hash", String, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("base_bundle", String, nullable=False),
    Column("first_counter", BigInteger, nullable=False),
    Column("stage", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("ended", Float),
    Index("ix_rollouts_detector", "detector", "id"),
    sqlite_autoincrement=True,
)
rollout_devices = Table(
    "rollout_devices",
    tables,
    Column("rollout", ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
    Column("device", ForeignKey("devices.name", ondelete="CASCADE"), primary_key=True),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("asked", Float, nullable=False),
    Column("proven", Float),
    Index("ix_rollout_devices_device", "device"),
)
device_measurements = Table(
    "device_measurements",
    tables,
    Column("device", ForeignKey("devices.name", ondelete="CASCADE"), primary_key=True),
    Column("sha256", String, primary_key=True),
    Column("batch", Integer, primary_key=True),
    Column("p50_seconds", Float, nullable=False),
    Column("p99_seconds", Float, nullable=False),
    Column("measured", Float, nullable=False),
)
field_inbox = Table(
    "field_inbox",
    tables,
    Column("id", Integer, primary_key=True),
    Column("detector", _of_detector(), nullable=False, index=True),
    Column("series", String, nullable=False),
    Column("stamps", LargeBinary, nullable=False),
    Column("packed_values", LargeBinary, nullable=False),
    Column("scores", LargeBinary, nullable=False),
    Column("flagged", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
field_spans = Table(
    "field_spans",
    tables,
    Column("detector", _of_detector(), primary_key=True),
    Column("series", String, primary_key=True),
    Column("first_stamp", BigInteger, primary_key=True, autoincrement=False),
    Column("last_stamp", BigInteger, nullable=False),
)

UPGRADES = {
    1: (
        """
        CREATE TABLE anomalies (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            detector VARCHAR NOT NULL REFERENCES detectors (name) ON DELETE CASCADE,
            series VARCHAR NOT NULL,
            stamp BIGINT NOT NULL,
            score FLOAT NOT NULL,
            threshold FLOAT NOT NULL,
            version INTEGER NOT NULL,
            shares JSON NOT NULL,
            found FLOAT NOT NULL
        )
        """,
        "CREATE INDEX ix_anomalies_detector ON anomalies (detector, id)",
    ),
    2: (
        "ALTER TABLE detectors ADD COLUMN frozen BOOLEAN NOT NULL DEFAULT 0",
        "ALTER TABLE cycles ADD COLUMN cause VARCHAR NOT NULL DEFAULT ''",
        "ALTER TABLE cycles ADD COLUMN operation VARCHAR NOT NULL DEFAULT ''",
        """
        CREATE TABLE feedback (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            detector VARCHAR NOT NULL REFERENCES detectors (name) ON DELETE CASCADE,
            series VARCHAR NOT NULL,
            first_stamp BIGINT NOT NULL,
            last_stamp BIGINT NOT NULL,
            label VARCHAR NOT NULL,
            note VARCHAR NOT NULL,
            created FLOAT NOT NULL
        )
        """,
        "CREATE INDEX ix_feedback_detector ON feedback (detector, id)",
        """
        CREATE TABLE maintenance_windows (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            detector VARCHAR NOT NULL REFERENCES detectors (name) ON DELETE CASCADE,
            series VARCHAR NOT NULL,
            first_stamp BIGINT NOT NULL,
            last_stamp BIGINT NOT NULL,
            note VARCHAR NOT NULL,
            created FLOAT NOT NULL
        )
        """,
        "CREATE INDEX ix_maintenance_windows_detector ON maintenance_windows (detector, id)",
        """
        CREATE TABLE adoptions (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            detector VARCHAR NOT NULL REFERENCES detectors (name) ON DELETE CASCADE,
            device_class VARCHAR NOT NULL,
            version INTEGER NOT NULL,
            previous_version INTEGER,
            cycle INTEGER,
            began FLOAT NOT NULL,
            ended FLOAT,
            state VARCHAR NOT NULL,
            reason VARCHAR NOT NULL
        )
        """,
        "CREATE INDEX ix_adoptions_detector ON adoptions (detector, id)",
        """
        CREATE TABLE paces (
            detector VARCHAR NOT NULL REFERENCES detectors (name) ON DELETE CASCADE,
            what VARCHAR NOT NULL,
            seconds FLOAT NOT NULL,
            points BIGINT NOT NULL,
            begun INTEGER NOT NULL,
            due BOOLEAN NOT NULL,
            budget VARCHAR NOT NULL,
            saved FLOAT NOT NULL,
            PRIMARY KEY (detector, what)
        )
        """,
    ),
    3: (
        """
        CREATE TABLE device_classes (
            name VARCHAR NOT NULL PRIMARY KEY,
            budget JSON NOT NULL,
            created FLOAT NOT NULL
        )
        """,
        """
        CREATE TABLE enrolment_tokens (
            hash VARCHAR NOT NULL PRIMARY KEY,
            device_class VARCHAR NOT NULL,
            device VARCHAR NOT NULL,
            created FLOAT NOT NULL,
            expires FLOAT NOT NULL,
            used FLOAT
        )
        """,
        """
        CREATE TABLE devices (
            name VARCHAR NOT NULL PRIMARY KEY,
            device_class VARCHAR NOT NULL,
            public_key VARCHAR NOT NULL,
            trusted_key VARCHAR NOT NULL,
            facts JSON NOT NULL,
            status JSON,
            last_seen FLOAT,
            enrolled FLOAT NOT NULL,
            kept_sequence BIGINT NOT NULL
        )
        """,
        "CREATE INDEX ix_devices_device_class ON devices (device_class, name)",
        """
        CREATE TABLE releases (
            detector VARCHAR NOT NULL REFERENCES detectors (name) ON DELETE CASCADE,
            device_class VARCHAR NOT NULL,
            counter BIGINT NOT NULL,
            bundle_hash VARCHAR NOT NULL,
            version INTEGER NOT NULL,
            settings JSON NOT NULL,
            rollout INTEGER,
            live BOOLEAN NOT NULL,
            issued FLOAT NOT NULL,
            expires FLOAT NOT NULL,
            key_id VARCHAR NOT NULL,
            signed VARCHAR NOT NULL,
            PRIMARY KEY (detector, device_class, counter)
        )
        """,
        """
        CREATE TABLE rollouts (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            detector VARCHAR NOT NULL REFERENCES detectors (name) ON DELETE CASCADE,
            device_class VARCHAR NOT NULL,
            version INTEGER NOT NULL,
            bundle_hash VARCHAR NOT NULL,
            base_version INTEGER NOT NULL,
            base_bundle VARCHAR NOT NULL,
            first_counter BIGINT NOT NULL,
            stage VARCHAR NOT NULL,
            reason VARCHAR NOT NULL,
            created FLOAT NOT NULL,
            ended FLOAT
        )
        """,
        "CREATE INDEX ix_rollouts_detector ON rollouts (detector, id)",
        """
        CREATE TABLE rollout_devices (
            rollout INTEGER NOT NULL REFERENCES rollouts (id) ON DELETE CASCADE,
            device VARCHAR NOT NULL REFERENCES devices (name) ON DELETE CASCADE,
            state VARCHAR NOT NULL,
            reason VARCHAR NOT NULL,
            asked FLOAT NOT NULL,
            proven FLOAT,
            PRIMARY KEY (rollout, device)
        )
        """,
        "CREATE INDEX ix_rollout_devices_device ON rollout_devices (device)",
        """
        CREATE TABLE device_measurements (
            device VARCHAR NOT NULL REFERENCES devices (name) ON DELETE CASCADE,
            sha256 VARCHAR NOT NULL,
            batch INTEGER NOT NULL,
            p50_seconds FLOAT NOT NULL,
            p99_seconds FLOAT NOT NULL,
            measured FLOAT NOT NULL,
            PRIMARY KEY (device, sha256, batch)
        )
        """,
        """
        CREATE TABLE field_inbox (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            detector VARCHAR NOT NULL REFERENCES detectors (name) ON DELETE CASCADE,
            series VARCHAR NOT NULL,
            stamps BLOB NOT NULL,
            packed_values BLOB NOT NULL,
            scores BLOB NOT NULL,
            flagged BLOB NOT NULL
        )
        """,
        "CREATE INDEX ix_field_inbox_detector ON field_inbox (detector)",
        """
        CREATE TABLE field_spans (
            detector VARCHAR NOT NULL REFERENCES detectors (name) ON DELETE CASCADE,
            series VARCHAR NOT NULL,
            first_stamp BIGINT NOT NULL,
            last_stamp BIGINT NOT NULL,
            PRIMARY KEY (detector, series, first_stamp)
        )
        """,
    ),
}
"""What makes a catalog of the next version out of one of this. Never changed: `tables` may go on, these may not."""


def open_database(path: Path) -> Engine:
    """Opens the catalog's database; a new one gets its tables, an older one those it lacks.

    Commits are durable when they return (`synchronous=FULL`).

    Raises:
        NewerStoreError: it was written by a newer prunewatch; nothing has been changed.
        PreconditionError: it is no catalog, or damaged.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_SECONDS},
        hide_parameters=True,  # errors are logged, and what callers sent is in the parameters
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late for consistent reads
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(str(connection.get_execution_options().get("begin", "BEGIN")))

    try:
        with engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
            _prepare(connection, path)
    except DatabaseError as error:
        engine.dispose()
        raise PreconditionError(
            "is not a readable catalog.", field=str(path), hint="Restore the store from a copy, or start a new one."
        ) from error
    except NewerStoreError:
        engine.dispose()
        raise
    return engine


def _prepare(connection: Connection, path: Path) -> None:
    if connection.dialect.has_table(connection, meta.name):
        found = int(connection.execute(select(meta.c.value).where(meta.c.key == "schema_version")).scalar_one())
        if found > SCHEMA_VERSION:
            raise NewerStoreError(
                f"was written by a newer prunewatch (schema {found}; this reads up to {SCHEMA_VERSION}).",
                field=str(path),
                hint="Upgrade prunewatch.",
            )
        for version in range(found, SCHEMA_VERSION):
            for statement in UPGRADES[version]:
                connection.exec_driver_sql(statement)
        if found < SCHEMA_VERSION:
            connection.execute(update(meta).where(meta.c.key == "schema_version").values(value=str(SCHEMA_VERSION)))
        return
    tables.create_all(connection)
    connection.execute(meta.insert().values(key="schema_version", value=str(SCHEMA_VERSION)))
