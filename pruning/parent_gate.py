"""Whether a parent that was trained on still is what the first one was: the guard against learning an attack.

Points that stream in are learned from, so whoever feeds a detector can move it a little with every cycle. Each step
passes a gate that only looks at recent points. So some points of the first fit are kept for good, with the first parent
itself, and every later parent is asked about those (cf. the stealing of baselines in Rubinstein et al. 2009, ANTIDOTE).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.training.fit import Runner, chunks_over
from detectors.training.fitted import Fitted, mean_square
from detectors.training.networks import Network
from detectors.training.stretches import Stretches
from pruning.gate import Ranking, injected
from pruning.injection import LENGTHS, Events
from pruning.outcome import Check, Gate

POINTS = 2000
"""Kept of the first fit, the last ones it was calibrated on."""
ROOM = LENGTHS[0] + 2
"""Points of a stretch beside the warm-up that an anomaly takes at least."""
FLAGGED = 10
"""Golden anomalies that the first parent flags: from fewer nothing can be said."""
CHUNKS = 8
"""Pieces of them that outputs are compared on."""


@dataclass(frozen=True)
class Golden:
    """What is kept of a first fit.

    Attributes:
        first: Its detector.
        points: Some normal points that it was calibrated on.
        seed: Of the anomalies that are injected into them.
        follows: Whether later parents were trained on from this one; else one was fitted anew since.
    """

    first: Fitted
    points: Stretches
    seed: int
    follows: bool = True

    @classmethod
    def of(cls, first: Fitted, held_out: Stretches, seed: int) -> Golden:
        """Takes the last points of a fit's held-out part, of stretches that an anomaly has room in."""
        parts, room, shortest = [], POINTS, first.warm_up_points + ROOM
        for part in reversed(held_out.filled().longer_than(shortest).parts):
            if room > shortest:
                parts.append(part[-room:])
                room -= len(parts[-1])
        return cls(first, Stretches(tuple(reversed(parts))), seed)


@dataclass(frozen=True)
class ParentLimits:
    """Thresholds of a parent's gate.

    Attributes:
        golden_quality: Average precision on golden points with injected anomalies over the first parent's, at least.
        golden_recall: Of the injected anomalies that the first parent flags, at least this part is flagged.
        movement: Mean squared distance of outputs from the first parent's on golden points, over the first parent's
            own error there, at most.
        threshold: Score from which a point is flagged.
    """

    golden_quality: float = 0.95
    golden_recall: float = 0.8
    movement: float = 1.0
    threshold: float = 3.0


def judge_parent(golden: Golden, newer: Fitted, limits: ParentLimits) -> Gate:
    """All checks; a parent that was fitted anew may be as far from the first one as it likes.

    One that has to warm up for longer than golden stretches last is not asked what it finds in them.

    Args:
        golden: Of the first fit.
        newer: The parent in question, calibrated as it would serve.
        limits: Thresholds.
    """
    checks = []
    warm_up = max(detector.warm_up_points for detector in (golden.first, newer))
    if golden.points.longer_than(warm_up + ROOM).parts:
        checks += _quality(golden, newer, limits)
    if golden.follows:
        checks.append(_movement(golden, newer, limits.movement))
    return Gate(tuple(checks))


def _quality(golden: Golden, newer: Fitted, limits: ParentLimits) -> list[Check]:
    """What it finds: in the order of its scores, and with its own scale at the threshold.

    Points that slowly get stranger widen the scale long before they change the order.
    """
    events = injected([golden.first, newer], golden.points, np.random.default_rng(golden.seed))
    before, now = (detector.trace(events.points).score for detector in (golden.first, newer))
    ratio = _average_precision(now, events) / max(_average_precision(before, events), 1e-12)
    quality = Check(
        "golden quality",
        ratio,
        limits.golden_quality,
        ratio >= limits.golden_quality,
        f"average precision on the golden set is {ratio:.2f} times the first parent's "
        f"(limit {limits.golden_quality:g})",
    )
    known, still = ((_flagged(score, limits.threshold) & events.labels).any(axis=1) for score in (before, now))
    if known.sum() < FLAGGED:
        return [quality]
    recall = float((known & still).sum() / known.sum())
    return [
        quality,
        Check(
            "golden recall",
            recall,
            limits.golden_recall,
            recall >= limits.golden_recall,
            f"{recall:.2f} of {known.sum()} golden anomalies that the first parent flags are flagged "
            f"(limit {limits.golden_recall:g})",
        ),
    ]


def _average_precision(score: NDArray[np.float32], events: Events) -> float:
    """Of the injected anomalies among all points that have a score."""
    there = np.isfinite(score)
    return Ranking(score[there], events.labels[there]).average_precision()


def _flagged(score: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    return np.nan_to_num(score, nan=-np.inf) >= threshold


def _movement(golden: Golden, newer: Fitted, most: float) -> Check:
    moved = movement(golden, newer)
    return Check(
        "movement",
        moved,
        most,
        moved <= most,
        f"on the golden set it is {moved:.2f} times its error away from the first parent (limit {most:g})",
    )


def movement(golden: Golden, newer: Fitted) -> float:
    """Mean squared distance of outputs on golden points, in units of the first parent's error; the furthest member's.

    Both see points scaled as the first parent does, so the difference of their residuals is that of their outputs.
    """
    furthest = 0.0
    for name, first in golden.first.network.members.items():
        if first.learned_by_gradient:
            away, own = _distance(golden, first, newer.network.members[name])
            furthest = max(furthest, away / max(own, 1e-12))
    return furthest


def _distance(golden: Golden, first: Network, newer: Network) -> tuple[float, float]:
    """Mean squared distance of a member's residuals from the first one's, and the first one's mean squared residual."""
    chunks = chunks_over(golden.points, golden.first.scaler, first, golden.seed)
    ours, theirs = Runner(newer.eval()), Runner(first.eval())
    away: list[NDArray[np.float32]] = []
    own: list[NDArray[np.float32]] = []
    with torch.no_grad():
        for chunk in chunks.chunks(CHUNKS):
            now, before = ours(chunk).residual, theirs(chunk).residual
            away.append(mean_square(now - before)[chunk.counted].numpy())
            own.append(mean_square(before)[chunk.counted].numpy())
    return float(np.concatenate(away).mean()), float(np.concatenate(own).mean())
