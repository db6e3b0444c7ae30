"""What exists: detectors, their versions, and which version serves where.

SQLite through SQLAlchemy. What is published never changes; adopting, rolling back and pinning move a pointer in one
transaction, so whoever reads sees one whole published version.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, select, update

from detectors.errors import AlreadyExistsError, ConflictError, NotFoundError, PreconditionError
from detectors.failpoints import failpoint
from server import adoptions, etags, overview_rows, retention, rows, schema, waiting_rows
from server.config import check_detector_name
from server.gauge_rows import GaugeRows, read_gauge_rows
from server.journal import Journal
from server.overview_rows import Overview
from server.records import (
    AdoptionRow,
    BundleRow,
    CycleRow,
    DetectorFacts,
    DetectorRow,
    DetectorState,
    Ended,
    Measurement,
    Serving,
    VersionRow,
)


def _nobody(_name: str) -> None:
    """Is told nothing."""


class Catalog(Journal):
    """The one place that says what exists; `Journal` (what happened) lies in the same database."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(path, clock=clock)
        self.changed: Callable[[str], None] = _nobody
        """Told of a detector whenever it, its versions or what serves has changed, once that is durable."""

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
            row = self._add_detector(connection, name, config, features)
        self.changed(name)
        return row

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

    def delete_detector(self, name: str, *, etag: str = "") -> list[str]:
        """Forgets a detector with all that is known of it; returns the hashes of its bundles, now unnamed.

        Raises:
            NotFoundError: there is no such detector.
            ConflictError: it is not the one of `etag` any more.
        """
        with self._changing(name, etag) as connection:
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

    def set_frozen(self, name: str, *, frozen: bool, etag: str = "") -> None:
        """Stops fits and cycles from beginning by themselves, or lets them again.

        Raises:
            NotFoundError: there is no such detector.
            ConflictError: it is not the one of `etag` any more.
        """
        self._change_detector(name, etag, frozen=frozen)

    def _change_detector(self, name: str, etag: str = "", **values: Any) -> None:
        with self._changing(name, etag) as connection:
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
        ended: Iterable[Ended] = (),
        probation: Collection[str] = (),
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
            ended: Cycles that made the version, or tried to.
            probation: Device classes on which it has to prove itself first.

        Raises:
            NotFoundError: there is no such detector, and no `config`.
            ConflictError: the number has been taken meanwhile.
            PreconditionError: a class in `adopt` is pinned.
        """
        name = version.detector
        failpoint("publish.begun")
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
            rows.insert_version(connection, version)
            before = {it.device_class: it.version for it in rows.list_serving(connection, name)}
            for device_class in adopt:
                rows.adopt(connection, name, device_class, version.version)
            ready: dict[str, Any] = {"state": "ready", "problem": ""}
            if features is not None:
                ready["features"] = features
            if config is not None:
                ready["config"] = dict(config)
            for it in ended:
                self._end(connection, it.cycle, it.outcome, it.reason, it.result)
                if it.device_class in adopt:
                    previous = before.get(it.device_class)
                    on_probation = previous is not None and it.device_class in probation
                    adoptions.add(
                        connection,
                        name,
                        it.device_class,
                        version.version,
                        previous,
                        cycle=it.cycle,
                        state="probation" if on_probation else "kept",
                        now=self.clock(),
                    )
            connection.execute(update(schema.detectors).where(schema.detectors.c.name == name).values(**ready))
            failpoint("publish.before_commit")
        failpoint("publish.committed")
        self.changed(name)

    def versions(self, name: str) -> list[VersionRow]:
        """All versions of a detector, oldest first."""
        with self._reading() as connection:
            rows.require_detector(connection, name)
            return rows.list_versions(connection, name)

    def facts(self, name: str) -> DetectorFacts:
        """A detector with its versions and what serves, all of the same moment; NotFoundError if there is none."""
        with self._reading() as connection:
            return rows.facts(connection, name)

    def overview(self, *, detectors: int, newest: int) -> Overview:
        """All detectors at a glance, with the newest of what happened; see `server.overview_rows`."""
        with self._reading() as connection:
            return overview_rows.overview(connection, detectors=detectors, newest=newest)

    def measurements_of(self, name: str) -> list[Measurement]:
        """What has been measured of all bundles of a detector."""
        table, bundles = schema.measurements, schema.bundles
        query = select(table).where(table.c.bundle_hash.in_(select(bundles.c.hash).where(bundles.c.detector == name)))
        with self._reading() as connection:
            return [Measurement(**row) for row in connection.execute(query).mappings()]

    def insert(self, facts: DetectorFacts) -> None:
        """Adds a detector with its versions and what serves as they were; for catalogs that are rebuilt."""
        with self._writing() as connection:
            rows.insert_facts(connection, facts)
        self.changed(facts.detector.name)

    def named_bundles(self) -> set[str]:
        """Hashes of all bundles that there are."""
        with self._reading() as connection:
            return set(connection.execute(select(schema.bundles.c.hash)).scalars())

    def let_versions_go(self, name: str, keep: int) -> list[str]:
        """Forgets versions that nothing needs but for the newest `keep`; see `server.retention`.

        Returns:
            Hashes of bundles that no version names any more.
        """
        with self._changing(name) as connection:
            return retention.let_versions_go(connection, name, keep)

    def bound_book(self) -> None:
        """Lets old cycles, adoptions and operations go."""
        with self._writing() as connection:
            retention.bound_book(connection, self.clock())

    def bundle(self, bundle_hash: str) -> BundleRow:
        """What is known of a bundle; NotFoundError if the catalog names no such one."""
        table = schema.bundles
        columns = [column for column in table.c if column.key != table.c.detector.key]
        with self._reading() as connection:
            row = connection.execute(select(*columns).where(table.c.hash == bundle_hash)).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"there is no bundle {bundle_hash[:12]!r}.", field="hash")
        return BundleRow(**row)

    def gauge_rows(self) -> GaugeRows:
        """All detectors at a glance."""
        with self._reading() as connection:
            return read_gauge_rows(connection)

    # what serves

    def serving(self, name: str, device_class: str) -> Serving | None:
        """What serves on a device class; None while nothing does."""
        with self._reading() as connection:
            return rows.find_serving(connection, name, device_class)

    def all_serving(self, name: str) -> list[Serving]:
        """What serves on each device class of a detector."""
        with self._reading() as connection:
            rows.require_detector(connection, name)
            return rows.list_serving(connection, name)

    def adopt(self, name: str, device_class: str, version: int, *, expected_version: int | None = None) -> Serving:
        """Makes a published version serve on a device class.

        Raises:
            NotFoundError: no such version, or it has no bundle for this class.
            PreconditionError: what serves is pinned.
            ConflictError: not `expected_version` serves any more.
        """
        with self._changing(name) as connection:
            return rows.adopt(connection, name, device_class, version, expected_version)

    def rollback(self, name: str, device_class: str, to: int | None = None, *, etag: str = "") -> Serving:
        """Makes an earlier version serve again: `to`, or the one that served before.

        Rolling back twice without `to` comes back to where it started. What was on probation is not any more.

        Raises:
            NotFoundError: no such version, or it has no bundle for this class.
            PreconditionError: nothing served before, or what serves is pinned.
            ConflictError: the detector is not the one of `etag` any more.
        """
        with self._changing(name, etag) as connection:
            now = rows.require_serving(connection, name, device_class)
            target = now.previous_version if to is None else to
            if target is None:
                raise PreconditionError(
                    f"version {now.version} is the first that serves on {device_class!r}; nothing served before it.",
                    field="to",
                )
            serving = rows.adopt(connection, name, device_class, target)
            if target < now.version:
                adoptions.end_by_hand(connection, name, device_class, target, self.clock())
            return serving

    # what became of what was adopted

    def adoptions(self, name: str) -> list[AdoptionRow]:
        """The last versions of a detector that cycles made serve, newest first."""
        with self._reading() as connection:
            return adoptions.newest(connection, name)

    def keep_adopted(self, adoption: AdoptionRow, reason: str = "") -> int:
        """Ends a probation well, and those of the versions it took over from.

        Returns:
            How many have ended; 0 where somebody has rolled it back before.
        """
        with self._writing() as connection:
            return adoptions.keep(connection, adoption, reason, self.clock())

    def take_back(self, adoption: AdoptionRow, reason: str) -> int:
        """Ends a probation badly: in the same transaction the last version that has proven itself serves again.

        Versions in between, on probation too, are rolled back with it.

        Returns:
            How many probations have ended.

        Raises:
            ConflictError: another version serves already.
            PreconditionError: what serves is pinned, or nothing served before.
        """
        name, device_class = adoption.detector, adoption.device_class
        with self._changing(name) as connection:
            now = rows.require_serving(connection, name, device_class)
            if now.version != adoption.version:
                raise ConflictError(f"version {now.version} serves already.", field="version")
            target, ended = adoptions.give_up(connection, adoption, reason, self.clock())
            if target is None:
                raise PreconditionError("nothing served before.", field="version")
            rows.adopt(connection, name, device_class, target)
            return ended

    def end_waiting(
        self,
        row: CycleRow,
        outcome: str,
        reason: str,
        result: Mapping[str, Any],
        *,
        serving: int | None = None,
        measurements: Iterable[Measurement] = (),
    ) -> None:
        """Ends a cycle whose child waited for devices; `adopted`: in the same transaction its version serves.

        Args:
            row: As it waits.
            outcome: `adopted`, `rejected` or `corrected`.
            reason: Why.
            result: As the book keeps it from now on.
            serving: The version that served on the class when it began to wait.
            measurements: What devices measured.

        Raises:
            ConflictError: it does not wait any more, or another version serves than did.
            PreconditionError: what serves is pinned.
        """
        with self._changing(row.detector) as connection:
            waiting_rows.change(
                connection, row.id, outcome=outcome, reason=reason, result=dict(result), ended=self.clock()
            )
            for measurement in measurements:
                self._record(connection, measurement)
            if outcome == "adopted":
                waiting_rows.adopt(connection, row, serving, self.clock())

    def proven_before(self, adoption: AdoptionRow) -> int | None:
        """The last version before one on probation that has proven itself: what serves again if it goes back."""
        with self._reading() as connection:
            return [adoption, *adoptions.unproven_before(connection, adoption)][-1].previous_version

    def pin(self, name: str, device_class: str, version: int | None = None, *, etag: str = "") -> Serving:
        """Keeps a version (default: what serves) serving until `unpin`; adopts it first if need be.

        Raises:
            NotFoundError: no such version, or it has no bundle for this class.
            PreconditionError: nothing serves yet, or another version is pinned.
            ConflictError: the detector is not the one of `etag` any more.
        """
        return self._set_pinned(name, device_class, etag, pinned=True, version=version)

    def unpin(self, name: str, device_class: str, *, etag: str = "") -> Serving:
        """Lets new versions be adopted again; ConflictError if the detector is not the one of `etag` any more."""
        return self._set_pinned(name, device_class, etag, pinned=False)

    def _set_pinned(
        self, name: str, device_class: str, etag: str, *, pinned: bool, version: int | None = None
    ) -> Serving:
        with self._changing(name, etag) as connection:
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

    @contextmanager
    def _changing(self, name: str, etag: str = "") -> Iterator[Connection]:
        """A transaction that changes a detector, which must exist and be as `etag` says."""
        with self._writing() as connection:
            etags.require(connection, name, etag)
            yield connection
            failpoint("change.before_commit")
        failpoint("change.committed")
        self.changed(name)

    def _end_interrupted(self, connection: Connection) -> None:
        super()._end_interrupted(connection)
        table = schema.detectors
        has_version = table.c.name.in_(select(schema.versions.c.detector))
        fitting = update(table).where(table.c.state == "fitting")
        connection.execute(fitting.where(has_version).values(state="ready"))
        connection.execute(fitting.where(~has_version).values(state="learning"))
