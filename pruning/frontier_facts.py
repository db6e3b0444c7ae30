"""What a frontier says. Free of torch: the service and the command line speak these words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pruning.limits import within
from pruning.outcome import MARGIN, Budget, Latency, Sized

POINTS = 8  # children, where nobody says how many
MOST_POINTS = 32
SAME_ERROR = 1.01  # times the least error: less than that is another draw of points


@dataclass(frozen=True)
class FrontierPoint:
    """One child on a frontier; times are of the run in which all of them were measured.

    Attributes:
        units: Hidden units by group.
        structure: Layers bypassed and levers pulled, in words; empty: none.
        parameters: Trainable numbers.
        bytes: Of the step graph.
        p50_seconds: See `Latency`.
        p99_seconds: See `Latency`.
        speedup: The parent's p50 over this one's.
        error_ratio: Trimmed error on held-out points over the parent's.
        agreement: Alarms that it shares with the parent, as a part of all alarms of either.
        tail_agreement: Rank correlation over the tenth of the points that the parent scores highest.
        injected_change: Change of average precision on injected anomalies, from the parent's.
        injected_bound: Its lower confidence bound.
        gate: The gate's checks, as `Gate.to_dict`, without those of a budget.
        kept: The parent's units that are still there, by group.
        plan: As outcomes carry it.
        on_front: Whether no other one is at least as good in time, bytes, error and agreement, and better in one.
    """

    units: dict[str, int]
    structure: str
    parameters: int
    bytes: int
    p50_seconds: float
    p99_seconds: float
    speedup: float
    error_ratio: float
    agreement: float
    tail_agreement: float
    injected_change: float
    injected_bound: float
    gate: dict[str, Any]
    kept: dict[str, list[int]]
    plan: dict[str, Any]
    on_front: bool = False

    @property
    def costs(self) -> tuple[float, float, float, float]:
        """What a point is compared by; less is better in each."""
        return self.p50_seconds, float(self.bytes), self.error_ratio, -self.agreement


@dataclass(frozen=True)
class FrontierFacts:
    """Children of one parent from wide to narrow.

    Attributes:
        batch: Points a step.
        parent: The dense parent, measured in the same run; who built it for a detector says version and hash.
        points: Widest first.
        criterion: Importance by which units were chosen.
        seed: Of every random draw.
    """

    batch: int
    parent: Sized
    points: tuple[FrontierPoint, ...]
    criterion: str
    seed: int

    def meeting(self, budget: Budget, dense: Latency) -> list[int]:
        """Which points should meet a budget now, in the order in which they are to be tried.

        The one with the least error first; errors within `SAME_ERROR` of it are equal, and among those the one counts
        that agrees most with the parent, then the widest. After it come narrower ones: machines drift, and it may miss
        the budget when it is measured again. Times are scaled by what became of the parent's, and must leave the margin
        that a search leaves.

        Args:
            budget: What is asked.
            dense: The parent's time now.
        """
        p50, p99 = dense.p50_seconds / self.parent.p50_seconds, dense.p99_seconds / self.parent.p99_seconds
        fitting = [
            index
            for index, it in enumerate(self.points)
            if within(Latency(it.p50_seconds * p50, it.p99_seconds * p99, self.batch), it.bytes, dense, budget, MARGIN)
        ]
        if not fitting:
            return []
        least = min(self.points[index].error_ratio for index in fitting)
        equal = [index for index in fitting if self.points[index].error_ratio <= least * SAME_ERROR]
        best = max(equal, key=lambda index: (round(self.points[index].agreement, 2), -index))
        faster = [index for index in fitting if self.points[index].p50_seconds < self.points[best].p50_seconds]
        return [best, *sorted(faster, key=lambda index: -self.points[index].p50_seconds)]


def marked(points: Sequence[FrontierPoint]) -> tuple[FrontierPoint, ...]:
    """The same points, each with whether it is on the front."""
    return tuple(
        replace(point, on_front=not any(_beats(other, point) for other in points if other is not point))
        for point in points
    )


def _beats(other: FrontierPoint, point: FrontierPoint) -> bool:
    """Whether another point is at least as good in everything and better in something."""
    pairs = list(zip(other.costs, point.costs, strict=True))
    return all(theirs <= ours for theirs, ours in pairs) and any(theirs < ours for theirs, ours in pairs)
