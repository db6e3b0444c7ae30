"""Whether a pruned child may replace what serves: judged without labels, child against parent, on held-out points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.training.calibrate import Scaler
from detectors.training.fitted import Fitted, mean_residuals
from detectors.training.stretches import Stretches
from pruning.injection import Events, due_labels, inject
from pruning.limits import limits, said
from pruning.outcome import Budget, Check, Gate, Latency

FloatArray = NDArray[np.float32]

TRIM = 0.02  # held-out points are not quite clean either
EVENTS_PER_KIND = 36
TAIL = 0.1
ALARMS = 50  # segments the parent raises at the cut where alarms are compared ...
HIGHEST_CUT = 3.0  # ... which is never above this score: beyond one in a thousand the tail is extrapolated
GAP = 5  # alarms closer than this are one segment; so many points that have a score
RATE_RANGE = (0.5, 2.0)  # gross change only: on normal points calibration has made the rates equal
RESAMPLES = 400
CONFIDENCE = 0.05  # one-sided
LABELLED = 3  # anomalies that the parent finds: from fewer nothing can be said


@dataclass(frozen=True)
class GateLimits:
    """Thresholds of the gate.

    Attributes:
        error_ratio: Trimmed error of the child over the parent's, both in the parent's scaled units, at most this.
        alarm_jaccard: Alarm segments raised by both over those raised by either, at least this.
        tail_agreement: Rank correlation of the scores (Spearman) over the tenth of the points that the parent scores
            highest, at least this.
        injected_drop: Average precision on injected anomalies may fall by this much at the lower confidence bound.
        labelled_recall: Labelled anomalies that both find over those that the parent finds, at least this.
    """

    error_ratio: float = 1.5
    alarm_jaccard: float = 0.6
    tail_agreement: float = 0.3
    injected_drop: float = 0.02
    labelled_recall: float = 0.9


@dataclass(frozen=True)
class Labelled:
    """Anomalies that people have labelled, and the score from which a point raises an alarm."""

    events: Events
    threshold: float


def judge(
    parent: Fitted,
    child: Fitted,
    held_out: Stretches,
    latency: Latency,
    dense_latency: Latency,
    size: int,
    budget: Budget,
    limits_: GateLimits,
    rng: np.random.Generator,
    labelled: Labelled | None = None,
) -> Gate:
    """All checks of a candidate: its budget, and its quality beside the parent's.

    Args:
        parent: Calibrated on the same points as the child.
        child: The candidate.
        held_out: Normal points that neither was trained on in this cycle.
        latency: Of the child's built graph.
        dense_latency: Of the parent's, in the same run.
        size: Bytes of the child's graph.
        budget: To be met, all of it.
        limits_: Thresholds.
        rng: For injections and resampling.
        labelled: Anomalies that people have labelled; None: there are none.
    """
    costs = [
        Check(
            f"latency {name}" if timed else name,
            measured,
            limit,
            measured <= limit,
            f"{name} is {said(measured, timed)}, the budget allows {said(limit, timed)}",
        )
        for name, measured, limit, timed in limits(latency, size, dense_latency, budget)
    ]
    return Gate((*costs, *quality(parent, child, held_out, limits_, rng, labelled).checks))


class Quality(NamedTuple):
    """A child beside its parent, whatever it costs.

    Attributes:
        checks: Of the gate.
        injected_change: Of average precision on injected anomalies, from the parent's.
    """

    checks: tuple[Check, ...]
    injected_change: float


def quality(
    parent: Fitted,
    child: Fitted,
    held_out: Stretches,
    limits_: GateLimits,
    rng: np.random.Generator,
    labelled: Labelled | None = None,
) -> Quality:
    """The checks of error, alarms, ranks, injected and labelled anomalies; arguments as of `judge`."""
    checks = []
    ratio = trimmed_error(child, held_out) / max(trimmed_error(parent, held_out), 1e-12)
    checks.append(
        Check(
            "error",
            ratio,
            limits_.error_ratio,
            ratio <= limits_.error_ratio,
            f"the error on held-out points is {ratio:.2f} times the parent's (limit {limits_.error_ratio:g})",
        )
    )
    events = injected([parent, child], held_out, rng)
    ours, theirs = child.trace(events.points).score, parent.trace(events.points).score
    checks += _alarm_checks(theirs, ours, limits_, GAP * stride_of([parent, child]))
    agreement = tail_agreement(theirs, ours)
    checks.append(
        Check(
            "tail",
            agreement,
            limits_.tail_agreement,
            agreement >= limits_.tail_agreement,
            f"over the parent's highest tenth of scores ranks agree to {agreement:.2f} "
            f"(limit {limits_.tail_agreement:g})",
        )
    )
    drop, bound = injected_drop(theirs, ours, events.labels, rng)
    checks.append(
        Check(
            "injected",
            bound,
            -limits_.injected_drop,
            bound >= -limits_.injected_drop,
            f"average precision on injected anomalies changes by {drop:+.3f}, lower bound {bound:+.3f} "
            f"(limit {-limits_.injected_drop:+g})",
        )
    )
    if labelled is not None:
        checks += labelled_checks(parent, child, labelled, limits_)
    return Quality(tuple(checks), drop)


def injected(detectors: Sequence[Fitted], held_out: Stretches, rng: np.random.Generator) -> Events:
    """Anomalies that all of some detectors can be asked about, in normal points that they were not trained on."""
    normal = held_out.filled()
    return inject(
        normal,
        Scaler.fit(normal.rows).scale,
        per_kind=EVENTS_PER_KIND,
        warm_up=max(detector.warm_up_points for detector in detectors),
        rng=rng,
        stride=stride_of(detectors),
    )


def stride_of(detectors: Sequence[Fitted]) -> int:
    """From one point that all of some detectors score to the next."""
    return math.lcm(*(detector.network.stride for detector in detectors))


def trimmed_error(fitted: Fitted, points: Stretches) -> float:
    """Mean squared residual in scaled units, before normalisation, without the worst `TRIM` of the points."""
    errors = np.sort(np.concatenate(list(mean_residuals(fitted.network, fitted.scaler, points))))
    return float(errors[: max(1, len(errors) - int(len(errors) * TRIM))].mean())


def injected_drop(
    parent: FloatArray, child: FloatArray, labels: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[float, float]:
    """Change of average precision from parent to child, and its lower bound by a paired bootstrap over events."""
    both = np.isfinite(parent) & np.isfinite(child)
    event = np.broadcast_to(np.arange(len(labels))[:, None], labels.shape)[both]
    ours = Ranking(child[both], labels[both])
    theirs = Ranking(parent[both], labels[both])
    drop = ours.average_precision() - theirs.average_precision()
    drops = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, len(labels), len(labels)), minlength=len(labels))[event]
        drops.append(ours.average_precision(times) - theirs.average_precision(times))
    return drop, float(np.quantile(drops, CONFIDENCE))


def tail_agreement(parent: FloatArray, child: FloatArray) -> float:
    """Spearman's rank correlation over the points with the highest `TAIL` of the parent's scores.

    1 where there is no order to agree on: scores that are all alike, or fewer than three points in the tail.
    """
    both = np.isfinite(parent) & np.isfinite(child)
    theirs, ours = parent[both], child[both]
    if not len(theirs) or theirs.min() == theirs.max():
        return 1.0
    top = theirs >= np.quantile(theirs, 1 - TAIL)
    if top.sum() < 3:
        return 1.0
    return float(np.corrcoef(_ranks(theirs[top]), _ranks(ours[top]))[0, 1])


def _ranks(values: FloatArray) -> NDArray[np.int64]:
    return np.asarray(np.argsort(np.argsort(values, kind="stable")), np.int64)


class Ranking:
    """Points by falling score, sorted once; average precision for any weights of the points."""

    def __init__(self, score: FloatArray, label: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-score, kind="stable")
        self._hits = label[self._order].astype(np.float64)

    def average_precision(self, weights: NDArray[np.int64] | None = None) -> float:
        """Mean precision at each true point (as scikit-learn's, ties aside); 0 where nothing is true."""
        weight = np.ones(len(self._order)) if weights is None else weights[self._order].astype(np.float64)
        hits = weight * self._hits
        seen = np.cumsum(weight)
        precision = np.cumsum(hits) / np.maximum(seen, 1.0)
        return float((hits * precision).sum() / max(hits.sum(), 1.0))


def _alarm_checks(parent: FloatArray, child: FloatArray, limits_: GateLimits, gap: int = GAP) -> list[Check]:
    """Whether they raise the same alarms, both at as many points; and whether the child's scale means the same.

    Two questions, two cuts: with few held-out points the tail of a scale is extrapolated, and a child that ranks points
    as its parent does would be called different for where its scale puts them.
    """
    cut = cut_for(parent, ALARMS, gap)
    theirs = segments(parent >= cut, gap)
    ours = segments(child >= cut_at(child, int((parent >= cut).sum())), gap)
    found = sum(_meets(segment, ours, gap) for segment in theirs)
    shared = min(found, sum(_meets(segment, theirs, gap) for segment in ours))
    jaccard = shared / max(len(theirs) + len(ours) - shared, 1)
    rate = float((child >= cut).sum() / max((parent >= cut).sum(), 1))
    where = f"at score {cut:.2f}, where the parent raises {len(theirs)} alarms"
    return [
        Check(
            "alarms",
            jaccard,
            limits_.alarm_jaccard,
            jaccard >= limits_.alarm_jaccard,
            f"{jaccard:.3f} of the alarms are shared where both flag as many points as the parent {where} "
            f"(limit {limits_.alarm_jaccard:g})",
        ),
        Check(
            "alarm rate",
            rate,
            RATE_RANGE[1] if rate > 1 else RATE_RANGE[0],
            RATE_RANGE[0] <= rate <= RATE_RANGE[1],
            f"{rate:.2f} times as many points are flagged {where} (limits {RATE_RANGE[0]:g} to {RATE_RANGE[1]:g})",
        ),
    ]


def labelled_checks(parent: Fitted, child: Fitted, labelled: Labelled, limits_: GateLimits) -> list[Check]:
    """Whether a child, or a newer parent, finds the labelled anomalies that its parent finds; no check of too few.

    Found is what raises an alarm, so it is asked at the detector's threshold.
    """
    labels = due_labels(labelled.events.labels, stride_of([parent, child]))
    theirs, ours = (
        ((detector.trace(labelled.events.points).score >= labelled.threshold) & labels).any(axis=1)
        for detector in (parent, child)
    )
    if theirs.sum() < LABELLED:
        return []
    recall = float((theirs & ours).sum() / theirs.sum())
    return [
        Check(
            "labelled",
            recall,
            limits_.labelled_recall,
            recall >= limits_.labelled_recall,
            f"{recall:.3f} of {theirs.sum()} labelled anomalies that the parent finds are found "
            f"(limit {limits_.labelled_recall:g})",
        )
    ]


Segment = tuple[int, int, int]
"""event, first point, last point"""


def segments(alarms: NDArray[np.bool_], gap: int = GAP) -> list[Segment]:
    """Runs of alarms in each row, runs less than `gap` points apart joined."""
    found: list[Segment] = []
    for row, flags in enumerate(alarms):
        for at in np.flatnonzero(flags):
            if found and found[-1][0] == row and at - found[-1][2] < gap:
                found[-1] = (row, found[-1][1], int(at))
            else:
                found.append((row, int(at), int(at)))
    return found


def cut_for(scores: FloatArray, wanted: int, gap: int = GAP) -> float:
    """The highest cut, up to `HIGHEST_CUT`, with at least `wanted` alarm segments, or the median score."""
    for cut in np.minimum(np.quantile(scores[np.isfinite(scores)], np.linspace(0.999, 0.5, 100)), HIGHEST_CUT):
        if len(segments(scores >= cut, gap)) >= wanted:
            return float(cut)
    return float(np.nanquantile(scores, 0.5))


def cut_at(scores: FloatArray, points: int) -> float:
    """The cut that so many points reach."""
    falling = np.sort(scores[np.isfinite(scores)])[::-1]
    return float(falling[min(points, len(falling)) - 1]) if points and len(falling) else float("inf")


def _meets(segment: Segment, others: list[Segment], gap: int) -> bool:
    row, first, last = segment
    return any(other == row and start <= last + gap and stop >= first - gap for other, start, stop in others)
