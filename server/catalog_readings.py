"""Gauges of what exists and of what happened, read from the catalog when somebody scrapes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import numpy as np

from detectors.bundle import GRAPH
from detectors.errors import NotFoundError
from server.anomaly_keeping import AnomalyQuery
from server.bundle_readings import BundleFacts, Shown, Values, show_bundles
from server.config import HUB, Budget
from server.gauge_rows import FRUITLESS, GaugeRows
from server.host_readings import times_of
from server.metrics import Metrics
from server.records import DetectorState, Label, Measurement
from server.roster import Roster
from server.spans import Said
from server.tracks import Index

JUDGED_SECONDS = 60.0
"""Anomalies are compared with labels so often, or where there are more or fewer labels: both may be thousands."""
STATES = get_args(DetectorState)
LABELS = get_args(Label)


class CatalogReadings:
    """Of a hub.

    Args:
        metrics: Where it is shown.
        roster: The detectors.
        monotonic: Seconds that only ever pass.
    """

    def __init__(self, metrics: Metrics, roster: Roster, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._roster = roster
        self._monotonic = monotonic
        self._facts: dict[str, BundleFacts] = {}
        """By hash, of what serves: a bundle never changes, so it is read once."""
        self._judged_at = float("-inf")
        self._labels: dict[tuple[str, str], int] = {}
        """As many as there were then."""

    def __call__(self) -> None:
        """Reads everything."""
        rows = self._roster.catalog.gauge_rows()
        shown = self._shown(rows)
        show_bundles(self._metrics, shown.values())
        self._show_detectors(rows)
        self._show_served(rows)
        self._show_speed(rows, shown)
        self._show_cycles(rows)
        self._show_judged(rows)
        usage = shutil.disk_usage(self._roster.store.root)
        self._metrics.store_free.replace({(): usage.free})
        self._metrics.store_size.replace({(): usage.total})

    def _shown(self, rows: GaugeRows) -> dict[tuple[str, str], Shown]:
        facts: dict[str, BundleFacts] = {}
        shown = {}
        for it in rows.served:
            known = self._facts.get(it.bundle_hash)
            if known is None:
                try:
                    known = BundleFacts.read(self._roster.store.bundle_folder(it.bundle_hash))
                except (OSError, ValueError):  # damaged, which shows in `prunewatch_detector_unable`
                    continue
            facts[it.bundle_hash] = known
            where = it.detector, it.device_class
            shown[where] = Shown(*where, it.version, it.bundle_hash, known)
        self._facts = facts
        return shown

    def _show_detectors(self, rows: GaugeRows) -> None:
        m = self._metrics
        m.state.replace({(name, it): it == state for name, state, _ in rows.detectors for it in STATES})
        m.frozen.replace({(name,): frozen for name, _, frozen in rows.detectors})
        m.versions.replace({(name,): count for name, count in rows.versions.items()})
        kept = {(name, label): 0.0 for name, _, _ in rows.detectors for label in LABELS}
        m.labels_kept.replace({**kept, **rows.labels})

    def _show_served(self, rows: GaugeRows) -> None:
        m = self._metrics
        by_place = {(it.detector, it.device_class): it for it in rows.served}
        m.version_created.replace({place: it.created for place, it in by_place.items()})
        m.pinned.replace({place: it.pinned for place, it in by_place.items()})
        m.error.replace({place: it.error for place, it in by_place.items() if it.error is not None})
        m.parent_parameters.replace({place: it.parent_parameters for place, it in by_place.items()})
        m.parent_bytes.replace({place: it.parent_bytes for place, it in by_place.items()})

    def _show_speed(self, rows: GaugeRows, shown: Mapping[tuple[str, str], Shown]) -> None:
        m, budgets, graph_budgets = self._metrics, Values(), Values()
        for name, _, _ in rows.detectors:
            for device_class in self._classes_of(name):
                budget = self._roster.budget_of(device_class)
                budgets |= {(name, device_class, quantile): it for quantile, it in times_of(budget).items()}
                if budget.size is not None:
                    graph_budgets[name, device_class] = budget.size
        m.budget.replace(budgets)
        m.budget_bytes.replace(graph_budgets)
        own, parents, headroom = Values(), Values(), Values()
        for it in rows.served:
            place, budget = (it.detector, it.device_class), self._roster.budget_of(it.device_class)
            measured = newest(rows.measurements.get(it.bundle_hash, ()), it.device_class, budget.batch)
            dense = newest(rows.measurements.get(it.parent_hash, ()), it.device_class, budget.batch)
            for values, found in ((own, measured), (parents, dense)):
                if found is not None:
                    values[*place, "0.5"], values[*place, "0.99"] = found.p50_seconds, found.p99_seconds
            size = shown[place].facts.manifest.files[GRAPH].bytes if place in shown else None
            left = left_of(budget, measured, dense, size)
            headroom |= {(*place, limit): share for limit, share in left.items()}
        m.measured.replace(own)
        m.parent_measured.replace(parents)
        m.headroom.replace(headroom)

    def _classes_of(self, name: str) -> list[str]:
        try:
            return self._roster.config_of(name).device_classes
        except NotFoundError:  # it is just being made or deleted
            return []

    def _show_cycles(self, rows: GaugeRows) -> None:
        m = self._metrics
        m.cycle_ended.replace({(it.detector, it.device_class, it.outcome): it.last for it in rows.ended})
        since = {(it.detector, it.device_class, outcome): 0.0 for it in rows.served for outcome in FRUITLESS}
        since |= {
            (it.detector, it.device_class, it.outcome): it.since_adoption
            for it in rows.ended
            if it.outcome in FRUITLESS
        }
        m.fruitless.replace(since)
        m.rolled_back.replace(dict(rows.rolled_back))

    def _show_judged(self, rows: GaugeRows) -> None:
        if rows.labels == self._labels and self._monotonic() < self._judged_at + JUDGED_SECONDS:
            return
        self._judged_at, self._labels = self._monotonic(), rows.labels
        catalog, judged = self._roster.catalog, Values()
        for name in sorted({detector for detector, _ in rows.labels}):
            anomalies = catalog.anomalies(AnomalyQuery(name))
            index: Index = np.arange(len(anomalies))
            stamps = np.array([it.stamp for it in anomalies], np.int64)
            said = Said.of(reversed(catalog.labels(name)), ())
            anomaly, normal = said.labelled([it.series for it in anomalies], index, stamps)
            judged[name, "anomaly"], judged[name, "normal"] = float(anomaly.sum()), float(normal.sum())
        self._metrics.judged.replace(judged)


def newest(measurements: Sequence[Measurement], device_class: str, batch: int) -> Measurement | None:
    """The newest of a batch on a device class; on the hub, where there is none: a fit is measured there alone."""
    of_batch = [it for it in measurements if it.batch == batch and it.device_class in {device_class, HUB}]
    own = [it for it in of_batch if it.device_class == device_class]
    return max(own or of_batch, key=lambda it: it.measured, default=None)


def left_of(
    budget: Budget, measured: Measurement | None, dense: Measurement | None, size: int | None
) -> dict[str, float]:
    """Shares of a budget that are left, by limit; only of limits that are set and were measured.

    Args:
        budget: What is asked.
        measured: Of what serves.
        dense: Of its parent, for a speed-up.
        size: Bytes of the step graph that serves.

    >>> measured = Measurement("", "hub", 1, p50_seconds=75e-6, p99_seconds=3e-4, measured=0.0)
    >>> left_of(Budget(p50=1e-4, p99=2e-4, size=100), measured, None, 100)
    {'p50': 0.25, 'p99': -0.5, 'size': 0.0}
    """
    pairs: dict[str, tuple[float | None, float | None]] = {"size": (budget.size, size)}
    if measured is not None:
        pairs["p50"] = budget.p50, measured.p50_seconds
        pairs["p99"] = budget.p99, measured.p99_seconds
        if dense is not None and budget.speedup is not None:
            pairs["speedup"] = dense.p50_seconds / budget.speedup, measured.p50_seconds
    return {
        limit: round(1 - value / allowed, 9)
        for limit, (allowed, value) in sorted(pairs.items())
        if allowed is not None and value is not None
    }
