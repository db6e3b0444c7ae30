"""What fits, cycles and frontiers leave in the metrics: how they ended, why they were rejected, where time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.metrics import Metrics
from server.records import OperationRow
from server.rejections import rejected_for

STAGES = (
    *("prepare", "fit", "update", "frontier", "search", "prune", "fine-tune", "calibrate", "measure", "gate", "report"),
    *("export", "shadow", "publish", "other"),
)
"""Of operations, as labels; what a trainer of another version says beyond them counts as `other`."""
OUTCOMES = ("adopted", "rejected", "failed")
STATES = {"failed": "failed", "cancelled": "cancelled"}
"""Of operations by outcome of their work; whatever is not here has succeeded, with whatever result."""


class WorkMetrics:
    """Of one operation, from its turn on.

    Args:
        metrics: Where it counts.
        operation: That has its turn.
        trigger: What began it.
        device_classes: That cycles are for; none: it is none.
        monotonic: Seconds that only ever pass.
    """

    def __init__(
        self,
        metrics: Metrics,
        operation: OperationRow,
        trigger: str,
        device_classes: Sequence[str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._operation = operation
        self._trigger = trigger
        self._classes = device_classes
        self._monotonic = monotonic
        self._began = self._since = monotonic()
        self._stage = "prepare"
        for device_class in device_classes:  # what is only ever seen at 1 has not increased, to Prometheus
            for outcome in OUTCOMES:
                metrics.cycles.labels(operation.detector, device_class, trigger, outcome)

    def stage(self, name: str) -> None:
        """A stage begins; the one before has ended."""
        known = name if name in STAGES else "other"
        if known != self._stage:
            self._count_stage()
            self._stage = known

    def _count_stage(self) -> None:
        now = self._monotonic()
        self._metrics.stage_seconds.labels(self._operation.detector, self._stage).inc(now - self._since)
        self._since = now

    def ended(self, outcome: str, result: Mapping[str, Any]) -> None:
        """It has ended.

        Args:
            outcome: Of its work: `adopted`, `rejected`, `planned`, `failed` or `cancelled`.
            result: Of the trainer; empty where there is none.
        """
        self._count_stage()
        metrics, kind, name = self._metrics, self._operation.kind, self._operation.detector
        metrics.operation_seconds.labels(kind).observe(self._monotonic() - self._began)
        metrics.operations_ended.labels(kind, STATES.get(outcome, "succeeded")).inc()
        own = {it["device_class"]: it for it in result.get("children", ())}
        for device_class in self._classes:
            what = own.get(device_class, {**result, "outcome": outcome})
            metrics.cycles.labels(name, device_class, self._trigger, what["outcome"]).inc()
            for reason in rejected_for(what):
                metrics.rejections.labels(name, device_class, reason).inc()
