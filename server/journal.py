"""What happened: cycles, long-running operations, measurements and anomalies."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError

from detectors.errors import NotFoundError, PrunewatchError, disk_full
from detectors.failpoints import failpoint
from server import anomaly_rows, feedback_rows, pace_rows, schema, waiting_rows
from server.anomalies import Anomaly
from server.anomaly_keeping import AnomalyQuery, Batch
from server.records import AWAITING, CycleRow, FeedbackRow, Label, Measurement, OperationRow, PaceRow, WindowRow

INTERRUPTED = "interrupted by a restart"


class Journal:
    """Reads and writes the tables of what happened. The catalog builds on it; open a `server.catalog.Catalog`.

    Every write is one durable transaction. Safe to call from several threads of the process that holds the store.

    Args:
        path: The database; a new one is made.
        clock: Seconds since the epoch.

    Raises:
        NewerStoreError: it was written by a newer prunewatch.
        PreconditionError: it is damaged.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._engine = schema.open_database(path)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        with self._writing() as connection:
            self._end_interrupted(connection)

    def close(self) -> None:
        """Closes the database."""
        self._engine.dispose()

    # cycles

    def begin_cycle(
        self, detector: str, device_class: str, trigger: str, *, cause: str = "", operation: str = ""
    ) -> int:
        """Records that a cycle has begun; returns its id.

        Args:
            detector: Whose.
            device_class: The class it is for.
            trigger: What began it (`server.records.Trigger`).
            cause: The same in words.
            operation: That it runs in.
        """
        row = CycleRow(0, detector, device_class, trigger, self.clock(), cause=cause, operation=operation)
        with self._writing() as connection:
            fields = {key: value for key, value in asdict(row).items() if key != "id"}
            key = connection.execute(schema.cycles.insert().values(fields)).inserted_primary_key
            return int(key[0]) if key else 0

    def end_cycle(self, cycle: int, outcome: str, reason: str = "", result: Mapping[str, Any] | None = None) -> None:
        """Records how a cycle that runs ended (`adopted`, `rejected`, `planned`, `failed`); what has ended stays so."""
        with self._writing() as connection:
            self._end(connection, cycle, outcome, reason, result)

    def _end(
        self, connection: Connection, cycle: int, outcome: str, reason: str, result: Mapping[str, Any] | None
    ) -> None:
        table = schema.cycles
        connection.execute(
            update(table)
            .where(table.c.id == cycle, table.c.outcome == "running")
            .values(
                ended=None if outcome == AWAITING else self.clock(),
                outcome=outcome,
                reason=reason,
                result=dict(result or {}),
            )
        )

    def cycles(self, detector: str, limit: int = 100) -> list[CycleRow]:
        """The last cycles of a detector, newest first."""
        table = schema.cycles
        query = select(table).where(table.c.detector == detector).order_by(table.c.id.desc()).limit(limit)
        with self._reading() as connection:
            return [CycleRow(**row) for row in connection.execute(query).mappings()]

    def awaiting(self) -> list[CycleRow]:
        """Cycles of all detectors whose child waits for devices, oldest first."""
        with self._reading() as connection:
            return waiting_rows.find(connection)

    def keep_waiting(self, cycle: int, result: Mapping[str, Any]) -> None:
        """Replaces the result of one; ConflictError if it does not wait any more."""
        with self._writing() as connection:
            waiting_rows.change(connection, cycle, result=dict(result))

    def paces(self, detector: str) -> list[PaceRow]:
        """What has passed since fits and cycles of a detector last began, as it was saved."""
        with self._reading() as connection:
            return pace_rows.find(connection, detector)

    def keep_paces(self, changed: Iterable[PaceRow]) -> None:
        """Saves that, all or nothing."""
        with self._writing() as connection:
            pace_rows.keep(connection, changed)

    # operations

    def create_operation(self, kind: str, detector: str) -> OperationRow:
        """Begins an operation; kinds are `fit`, `prune` and `frontier`."""
        row = OperationRow(
            name=f"operations/{uuid.uuid4().hex}",
            kind=kind,
            detector=detector,
            state="running",
            stage="queued",
            done=0.0,
            message="",
            error=None,
            result=None,
            created=self.clock(),
            ended=None,
        )
        with self._writing() as connection:
            connection.execute(schema.operations.insert().values(asdict(row)))
        return row

    def get_operation(self, name: str) -> OperationRow:
        """One operation; NotFoundError if there is none."""
        query = select(schema.operations).where(schema.operations.c.name == name)
        with self._reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"there is no operation {name!r}.", field="name")
        return OperationRow(**row)

    def list_operations(self, detector: str | None = None, limit: int = 100) -> list[OperationRow]:
        """The last operations, newest first."""
        query = select(schema.operations).order_by(schema.operations.c.created.desc()).limit(limit)
        if detector is not None:
            query = query.where(schema.operations.c.detector == detector)
        with self._reading() as connection:
            return [OperationRow(**row) for row in connection.execute(query).mappings()]

    def update_operation(self, name: str, *, stage: str, done: float, message: str = "") -> None:
        """Records progress of a running operation. Each call is an fsync: a few a second are plenty."""
        self._change_running(name, stage=stage, done=done, message=message)

    def succeed_operation(self, name: str, result: Mapping[str, Any]) -> None:
        """Ends a running operation with its result."""
        self._change_running(name, state="succeeded", done=1.0, result=dict(result), ended=self.clock())

    def fail_operation(self, name: str, error: PrunewatchError) -> None:
        """Ends a running operation with an error."""
        self._change_running(name, state="failed", error=error_fields(error), ended=self.clock())

    def cancel_operation(self, name: str) -> None:
        """Ends a running operation because somebody asked for it."""
        self._change_running(name, state="cancelled", ended=self.clock())

    def _change_running(self, name: str, **values: Any) -> None:
        table = schema.operations
        with self._writing() as connection:
            connection.execute(update(table).where(table.c.name == name, table.c.state == "running").values(**values))

    # measurements

    def record_measurement(self, measurement: Measurement) -> None:
        """Keeps the newest measurement of a bundle on a device class for a batch."""
        with self._writing() as connection:
            self._record(connection, measurement)

    def measurements(self, bundle_hash: str) -> list[Measurement]:
        """What has been measured of a bundle."""
        table = schema.measurements
        query = select(table).where(table.c.bundle_hash == bundle_hash).order_by(table.c.device_class, table.c.batch)
        with self._reading() as connection:
            return [Measurement(**row) for row in connection.execute(query).mappings()]

    @staticmethod
    def _record(connection: Connection, measurement: Measurement) -> None:
        statement = insert(schema.measurements).values(asdict(measurement))
        quantiles = {key: statement.excluded[key] for key in ("p50_seconds", "p99_seconds", "measured")}
        connection.execute(
            statement.on_conflict_do_update(index_elements=list(schema.measurements.primary_key), set_=quantiles)
        )

    # anomalies

    def keep_anomalies(self, batches: Iterable[Batch]) -> None:
        """Keeps anomalies of any detectors, all or none of them; those of a detector that is gone are let go."""
        with self._writing() as connection:
            for batch in batches:
                anomaly_rows.keep(connection, batch)

    def anomalies(self, query: AnomalyQuery) -> list[Anomaly]:
        """Anomalies of a detector, newest first."""
        with self._reading() as connection:
            return anomaly_rows.find(connection, query)

    # what people say

    def add_label(
        self, detector: str, label: Label, first: int, last: int, *, series: str = "", note: str = ""
    ) -> FeedbackRow:
        """Keeps what somebody says of the points from stamp `first` to `last`; of all series without one.

        Raises:
            NotFoundError: there is no such detector.
            ExhaustedError: it has too many labels.
        """
        row = FeedbackRow(0, detector, series, first, last, label, note, self.clock())
        with self._writing() as connection:
            return feedback_rows.add_label(connection, row)

    def labels(self, detector: str, *, before: int | None = None, limit: int | None = None) -> list[FeedbackRow]:
        """Labels of a detector, newest first: those older than the one of the number `before`."""
        with self._reading() as connection:
            return feedback_rows.labels(connection, detector, before, limit)

    def delete_label(self, detector: str, number: int) -> None:
        """Takes a label back; NotFoundError if there is none of this number."""
        with self._writing() as connection:
            feedback_rows.delete_label(connection, detector, number)

    def add_window(self, detector: str, first: int, last: int, *, series: str = "", note: str = "") -> WindowRow:
        """Keeps a maintenance window; see `add_label`."""
        row = WindowRow(0, detector, series, first, last, note, self.clock())
        with self._writing() as connection:
            return feedback_rows.add_window(connection, row)

    def windows(self, detector: str, *, before: int | None = None, limit: int | None = None) -> list[WindowRow]:
        """Maintenance windows of a detector, newest first; see `labels`."""
        with self._reading() as connection:
            return feedback_rows.windows(connection, detector, before, limit)

    def delete_window(self, detector: str, number: int) -> None:
        """Takes a maintenance window back; NotFoundError if there is none of this number."""
        with self._writing() as connection:
            feedback_rows.delete_window(connection, detector, number)

    # transactions

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent view, for modules that have tables of their own (`server.fleet`)."""
        with self._reading() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One durable transaction, the same."""
        with self._writing() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A consistent view."""
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """One transaction, durable when the block ends; nobody else writes meanwhile."""
        try:
            with self._writer.begin() as connection:
                failpoint("catalog.begun")
                yield connection
                failpoint("catalog.before_commit")
            failpoint("catalog.committed")
        except OperationalError as error:
            if "full" in str(error.orig):  # SQLITE_FULL has no class of its own
                raise disk_full() from error
            raise

    def _end_interrupted(self, connection: Connection) -> None:
        """Nothing that ran in an earlier process runs any more."""
        now = self.clock()
        error = error_fields(PrunewatchError(f"{INTERRUPTED}.", hint="Ask again."))
        connection.execute(
            update(schema.operations)
            .where(schema.operations.c.state == "running")
            .values(state="failed", ended=now, error={**error, "type": "PreconditionError"})
        )
        connection.execute(
            update(schema.cycles)
            .where(schema.cycles.c.outcome == "running")
            .values(outcome="failed", reason=INTERRUPTED, ended=now)
        )


def error_fields(error: PrunewatchError) -> dict[str, str]:
    """An error as the catalog and the trainer write it down."""
    return {"type": type(error).__name__, "problem": error.problem, "field": error.field, "hint": error.hint}
