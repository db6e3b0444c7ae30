"""Labelled anomalies out of a history, each with the points before it, to ask a detector whether it finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.spans import Said, Spans
from server.stretches import Points, read_points

LONGEST = 160  # points of an anomaly that are looked at, from its beginning
MOST_EVENTS = 200  # the newest


@dataclass(frozen=True)
class Labelled:
    """E anomalies at the ends of stretches of T points.

    Attributes:
        points: [E, T, F].
        labels: [E, T]; which points are labelled.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.bool_]


def read_labelled(
    paths: Sequence[Path],
    features: Sequence[str],
    said: Said,
    *,
    before: int,
    max_gap: int | None = None,
    keep_missing: bool = False,
) -> Labelled | None:
    """The newest labelled anomalies with at least `before` consecutive points ahead of them; None where there are none.

    Args:
        paths: Segments and reservoir, oldest first.
        features: Columns to read, in order.
        said: Labels; what lies in a maintenance window does not count.
        before: Points ahead of an anomaly that a detector warms up on.
        max_gap: In the units of stamps; None: no silence is too long.
        keep_missing: Points with missing values count.

    Raises:
        PreconditionError: a file can not be read or has other features.
    """
    if not any(label == "anomaly" for _, label in said.labels):
        return None
    points = read_points(paths, features, max_gap=max_gap)
    starts, stops = _events(points, said)
    kept = np.minimum(stops, starts + LONGEST)
    length = before + int((kept - starts).max(initial=0))
    begins = kept - length
    whole = np.isfinite(points.values) | (np.isnan(points.values) if keep_missing else False)
    run = np.cumsum(points.begins | ~whole.all(axis=1))
    enough = begins >= 0
    enough[enough] &= run[begins[enough]] == run[kept[enough] - 1]
    if not enough.any():
        return None
    rows = begins[enough][-MOST_EVENTS:, None] + np.arange(length)
    return Labelled(points.values[rows], rows >= starts[enough][-MOST_EVENTS:, None])


def _events(points: Points, said: Said) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First points of labelled anomalies and the points after their last, in the order of time of arrival."""
    where = (points.names, points.series, points.stamps)
    anomaly, _ = said.labelled(*where)
    anomaly &= ~Spans(said.windows).cover(*where)
    before = np.r_[False, anomaly[:-1]] if len(anomaly) else anomaly
    starts = np.flatnonzero(anomaly & (points.begins | ~before))
    edges = np.r_[np.flatnonzero(points.begins | ~anomaly), len(points)]
    stops = edges[np.searchsorted(edges, starts, side="right")]
    order = np.argsort(points.stamps[starts], kind="stable")
    return starts[order], stops[order]
