"""What exists: detectors, their versions, and which version serves where.

SQLite through SQLAlchemy. What is published never changes; adopting, rolling back and pinning move a pointer in one
transaction, so whoever reads sees one whole published version.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, select, update

from detectors.errors import AlreadyExistsError, ConflictError, NotFoundError, PreconditionError
from server import rows, schema
from server.config import check_detector_name
from server.journal import Journal
from server.records import BundleRow, DetectorRow, DetectorState, Measurement, Serving, VersionRow


class Catalog(Journal):
    """The one place that says what exists; `Journal` (what happened) lies in the same database."""

    # detectors

    def create_detector(self, name: str, config: Mapping[str, Any], features: list[str] | None = None) -> DetectorRow:
        """Adds a detector that learns; `config` is a `DetectorConfig` as JSON.

        Raises:
            InvalidInputError: `name` is not a name.
            AlreadyExistsError: there is a detector of this name.
        """
        with self._writing() as connection:
            if rows.find_detector(connection, name) is not None:
                raise AlreadyExistsError(f"there is a detector {name!r} already.", field="name")
            return self._add_detector(connection, name, config, features)

    def _add_detector(
        self, connection: Connection, name: str, config: Mapping[str, Any], features: list[str] | None
    ) -> DetectorRow:
        check_detector_name(name)
        row = DetectorRow(name, dict(config), "learning", features, self.clock())
        connection.execute(schema.detectors.insert().values(asdict(row)))
        return row

    def get_detector(self, name: str) -> DetectorRow:
        """One detector; NotFoundError if there is none."""
        with self._reading() as connection:
            return rows.require_detector(connection, name)

    def list_detectors(self, after: str = "", limit: int | None = None) -> list[DetectorRow]:
        """Detectors by name; `after` and `limit` page through them."""
        table = schema.detectors
        query = select(table).where(table.c.name > after).order_by(table.c.name).limit(limit)
        with self._reading() as connection:
            return [DetectorRow(**row) for row in connection.execute(query).mappings()]

    def delete_detector(self, name: str) -> list[str]:
        """Forgets a detector with all that is known of it; returns the hashes of its bundles, now unnamed."""
        with self._writing() as connection:
            rows.require_detector(connection, name)
            query = select(schema.bundles.c.hash).where(schema.bundles.c.detector == name)
            hashes = list(connection.execute(query).scalars())
            for table in (schema.serving, schema.version_bundles, schema.versions):
                connection.execute(delete(table).where(table.c.detector == name))
            connection.execute(delete(schema.detectors).where(schema.detectors.c.name == name))
        return hashes

    def set_state(self, name: str, state: DetectorState, problem: str = "") -> None:
        """Says where a detector stands; `problem` is why it failed."""
        self._change_detector(name, state=state, problem=problem)

    def set_features(self, name: str, features: list[str]) -> None:
        """Fixes the columns of a detector."""
        self._change_detector(name, features=features)

    def set_config(self, name: str, config: Mapping[str, Any]) -> None:
        """Replaces a detector's configuration; it takes effect when it is next read."""
        self._change_detector(name, config=dict(config))

    def _change_detector(self, name: str, **values: Any) -> None:
        with self._writing() as connection:
            rows.require_detector(connection, name)
            connection.execute(update(schema.detectors).where(schema.detectors.c.name == name).values(**values))

    # versions

    def next_version(self, name: str) -> int:
        """The number that the next published version gets."""
        with self._reading() as connection:
            rows.require_detector(connection, name)
            return rows.last_version(connection, name) + 1

    def publish(
        self,
        version: VersionRow,
        facts: Iterable[BundleRow],
        *,
        measurements: Iterable[Measurement] = (),
        adopt: Collection[str] = (),
        features: list[str] | None = None,
        config: Mapping[str, Any] | None = None,
        cycle: int | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes a version exist and, in the same transaction, serve on the device classes in `adopt`.

        The detector becomes `ready`. The files of every bundle must already be durable.

        Args:
            version: The next version of its detector.
            facts: One row for each bundle it names (parent included).
            measurements: What was measured of them.
            adopt: Device classes of `version.bundles`.
            features: Columns of the detector, if this fixes them.
            config: The detector's from now on; with it a detector that does not exist is added.
            cycle: That made the version: it ends as `adopted`.
            result: Of the cycle, as the book keeps it.

        Raises:
            NotFoundError: there is no such detector, and no `config`.
            ConflictError: the number has been taken meanwhile.
            PreconditionError: a class in `adopt` is pinned.
        """
        name = version.detector
        with self._writing() as connection:
            if config is not None and rows.find_detector(connection, name) is None:
                self._add_detector(connection, name, config, features)
            rows.require_detector(connection, name)
            expected = rows.last_version(connection, name) + 1
            if version.version != expected:
                raise ConflictError(
                    f"version {version.version} can not be published: {expected} is next.", field="version"
                )
            for fact in facts:
                row = schema.bundles.insert().prefix_with("OR IGNORE")  # the same hash is the same content
                connection.execute(row.values(detector=name, **asdict(fact)))
            for measurement in measurements:
                self._record(connection, measurement)
            fields = {key: value for key, value in asdict(version).items() if key != "bundles"}
            connection.execute(schema.versions.insert().values(fields))
            for device_class, bundle_hash in version.bundles.items():
                row = schema.version_bundles.insert()
                connection.execute(
                    row.values(
                        detector=name,
                        version=version.version,
                        device_class=device_class,
                        bundle_hash=bundle_hash,
                    )
                )
            for device_class in adopt:
                rows.adopt(connection, name, device_class, version.version)
            ready: dict[str, Any] = {"state": "ready", "problem": ""}
            if features is not None:
                ready["features"] = features
            if config is not None:
                ready["config"] = dict(config)
            if cycle is not None:
                self._end(connection, cycle, "adopted", str((result or {}).get("reason", "")), result)
            connection.execute(update(schema.detectors).where(schema.detectors.c.name == name).values(**ready))

    def versions(self, name: str) -> list[VersionRow]:
        """All versions of a detector, oldest first."""
        with self._reading() as connection:
            rows.require_detector(connection, name)
            bundles: dict[int, dict[str, str]] = {}
            table = schema.version_bundles
            for row in connection.execute(select(table).where(table.c.detector == name).order_by(table.c.device_class)):
                bundles.setdefault(row.version, {})[row.device_class] = row.bundle_hash
            query = select(schema.versions).where(schema.versions.c.detector == name)
            found = connection.execute(query.order_by(schema.versions.c.version)).mappings()
            return [VersionRow(**row, bundles=bundles.get(row["version"], {})) for row in found]

    def bundle(self, bundle_hash: str) -> BundleRow:
        """What is known of a bundle; NotFoundError if the catalog names no such one."""
        table = schema.bundles
        columns = [column for column in table.c if column.key != table.c.detector.key]
        with self._reading() as connection:
            row = connection.execute(select(*columns).where(table.c.hash == bundle_hash)).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"there is no bundle {bundle_hash[:12]!r}.", field="hash")
        return BundleRow(**row)

    # what serves

    def serving(self, name: str, device_class: str) -> Serving | None:
        """What serves on a device class; None while nothing does."""
        with self._reading() as connection:
            return rows.find_serving(connection, name, device_class)

    def all_serving(self, name: str) -> list[Serving]:
        """What serves on each device class of a detector."""
        with self._reading() as connection:
            rows.require_detector(connection, name)
            query = rows.SERVING.where(schema.serving.c.detector == name).order_by(schema.serving.c.device_class)
            return [Serving(**row) for row in connection.execute(query).mappings()]

    def adopt(self, name: str, device_class: str, version: int, *, expected_version: int | None = None) -> Serving:
        """Makes a published version serve on a device class.

        Raises:
            NotFoundError: no such version, or it has no bundle for this class.
            PreconditionError: what serves is pinned.
            ConflictError: not `expected_version` serves any more.
        """
        with self._writing() as connection:
            rows.require_detector(connection, name)
            return rows.adopt(connection, name, device_class, version, expected_version)

    def rollback(self, name: str, device_class: str, to: int | None = None) -> Serving:
        """Makes an earlier version serve again: `to`, or the one that served before.

        Rolling back twice without `to` comes back to where it started.

        Raises:
            NotFoundError: no such version, or it has no bundle for this class.
            PreconditionError: nothing served before, or what serves is pinned.
        """
        with self._writing() as connection:
            now = rows.require_serving(connection, name, device_class)
            target = now.previous_version if to is None else to
            if target is None:
                raise PreconditionError(
                    f"version {now.version} is the first that serves on {device_class!r}; nothing served before it.",
                    field="to",
                )
            return rows.adopt(connection, name, device_class, target)

    def pin(self, name: str, device_class: str, version: int | None = None) -> Serving:
        """Keeps a version (default: what serves) serving until `unpin`; adopts it first if need be.

        Raises:
            NotFoundError: no such version, or it has no bundle for this class.
            PreconditionError: nothing serves yet, or another version is pinned.
        """
        return self._set_pinned(name, device_class, pinned=True, version=version)

    def unpin(self, name: str, device_class: str) -> Serving:
        """Lets new versions be adopted again."""
        return self._set_pinned(name, device_class, pinned=False)

    def _set_pinned(self, name: str, device_class: str, *, pinned: bool, version: int | None = None) -> Serving:
        with self._writing() as connection:
            now = rows.require_serving(connection, name, device_class)
            if version is not None and version != now.version:
                rows.adopt(connection, name, device_class, version)
            table = schema.serving
            connection.execute(
                update(table)
                .where(table.c.detector == name, table.c.device_class == device_class)
                .values(pinned=pinned)
            )
            return rows.require_serving(connection, name, device_class)

    def _end_interrupted(self, connection: Connection) -> None:
        super()._end_interrupted(connection)
        table = schema.detectors
        has_version = table.c.name.in_(select(schema.versions.c.detector))
        fitting = update(table).where(table.c.state == "fitting")
        connection.execute(fitting.where(has_version).values(state="ready"))
        connection.execute(fitting.where(~has_version).values(state="learning"))
