"""Keeps what devices report: the effects of a report and its number in one transaction, so that it counts once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from detectors.errors import InvalidInputError
from detectors.failpoints import failpoint
from server import anomaly_rows
from server.anomalies import Anomaly
from server.anomaly_keeping import Batch
from server.catalog import Catalog
from server.config import DetectorConfig
from server.fleet import release_rows, rows
from server.fleet.field_points import take_run
from server.fleet.limits import FieldLimit
from server.fleet.records import Device
from server.fleet.reports import FieldRun, ProbeReport, ReleaseNote, Report

LONGEST_SERIES = 200
"""Characters of the name of a series."""
OLDEST = -(2**62)
"""Stamp; what is before it is none."""


@dataclass(frozen=True)
class Known:
    """A detector, as far as its points are judged by it."""

    config: DetectorConfig
    features: tuple[str, ...]


@dataclass
class Taken:
    """What became of reports.

    Attributes:
        sequence: All up to this one are kept.
        anomalies: That are new.
        probes: Results that are new.
        notes: The same of releases.
        points: How many points by detector and outcome: `kept`, `repeated`, `refused`.
    """

    sequence: int
    anomalies: list[Anomaly] = field(default_factory=list)
    probes: list[ProbeReport] = field(default_factory=list)
    notes: list[ReleaseNote] = field(default_factory=list)
    points: dict[tuple[str, str], int] = field(default_factory=dict)

    def count(self, detector: str, outcome: str, points: int) -> None:
        """Counts points."""
        if points:
            self.points[detector, outcome] = self.points.get((detector, outcome), 0) + points


class Intake:
    """Keeps reports.

    Args:
        catalog: Where.
        known: A detector that is hosted; None: there is none, or its features are not known.
        clock: Seconds since the epoch.
    """

    def __init__(self, catalog: Catalog, known: Callable[[str], Known | None], clock: Callable[[], float]) -> None:
        self._catalog = catalog
        self._known = known
        self._clock = clock

    def keep(self, name: str, reports: Sequence[Report], limit: FieldLimit | None) -> Taken:
        """Keeps those that are new, durably.

        Args:
            name: The device.
            reports: In ascending order.
            limit: What it may send of its points; None: nothing.

        Raises:
            NotFoundError: the device was removed.
            InvalidInputError: their numbers do not ascend.
        """
        numbers = [report.sequence for report in reports]
        if any(later <= earlier for earlier, later in pairwise([0, *numbers])):
            raise InvalidInputError(
                "numbers of reports do not ascend.", field="reports.sequence", hint="Begin at 1, count up."
            )
        with self._catalog.writing() as connection:
            device = rows.require_device(connection, name)
            taken = Taken(max(device.kept_sequence, numbers[-1] if numbers else 0))
            for report in reports:
                if report.sequence > device.kept_sequence:
                    self._take(connection, device, report, limit, taken)
            rows.change_device(connection, name, kept_sequence=taken.sequence)
        failpoint("reports.kept")
        return taken

    def _take(
        self, connection: Connection, device: Device, report: Report, limit: FieldLimit | None, taken: Taken
    ) -> None:
        said = report.said
        if isinstance(said, FieldRun):
            self._take_run(connection, device, said, limit, taken)
        elif isinstance(said, ProbeReport):
            rows.keep_costs(connection, device.name, said.batch, said.costs, self._clock())
            taken.probes.append(said)
        elif isinstance(said, ReleaseNote):
            taken.notes.append(said)

    def _take_run(
        self, connection: Connection, device: Device, run: FieldRun, limit: FieldLimit | None, taken: Taken
    ) -> None:
        known = self._known(run.detector)
        if known is None:
            return  # it was deleted meanwhile
        admitted = (
            limit is not None and self._may_be(device, run, known) and limit.admits(run.size, flagged=run.flagged)
        )
        if not admitted:
            taken.count(run.detector, "refused", len(run.stamps))
            return
        run = replace(run, threshold=run.threshold if np.isfinite(run.threshold) else known.config.threshold)
        series, flagged = f"{device.name}/{run.series}", run.scores >= run.threshold
        new = take_run(connection, run, series, flagged)
        taken.count(run.detector, "kept", int(np.count_nonzero(new)))
        taken.count(run.detector, "repeated", int(np.count_nonzero(~new)))
        version = release_rows.version_of(connection, run.detector, device.device_class, run.counter)
        found = self._anomalies(run, series, np.flatnonzero(flagged & new), version)
        if found and (most := known.config.history.max_anomalies):
            anomaly_rows.keep(connection, Batch(run.detector, found, most))
        taken.anomalies += found

    def _may_be(self, device: Device, run: FieldRun, known: Known) -> bool:
        """Whether points are such as the hub itself would have taken."""
        config, stamps = known.config, run.stamps
        if device.device_class not in config.device_classes or run.features != known.features:
            return False
        if not 0 < len(run.series) <= LONGEST_SERIES or not run.series.isprintable():
            return False
        ahead = None if config.time == "index" else config.max_ahead
        if not len(stamps) or (np.diff(stamps) <= 0).any() or stamps[0] < OLDEST:
            return False
        if ahead is not None and stamps[-1] > (self._clock() + ahead) * 1e9:
            return False
        missing = np.isnan(run.values) if config.missing == "carry" else False
        return bool((np.isfinite(run.values) | missing).all())

    def _anomalies(self, run: FieldRun, series: str, at: NDArray[np.int64], version: int) -> list[Anomaly]:
        columns = zip(run.stamps[at].tolist(), run.scores[at].tolist(), strict=True)
        return [
            Anomaly(run.detector, series, stamp, score, run.threshold, version, (), self._clock())
            for stamp, score in columns
        ]
