"""Points at or above the threshold: as arrays on the scoring path, and one by one for whoever listens or asks later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray

TOP_FEATURES = 3
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One point at or above the threshold.

    Attributes:
        detector: Name of the detector.
        series: Name of the series.
        stamp: Of the point.
        score: Of the point.
        threshold: It has reached this.
        version: That scored it.
        shares: The features that contributed most, largest first, with their share of the error.
        found: When it was scored, in seconds since the epoch.
        id: Its number in the catalog, where later ones are larger; 0 while it is not kept.
    """

    detector: str
    series: str
    stamp: int
    score: float
    threshold: float
    version: int
    shares: tuple[tuple[str, float], ...]
    found: float = 0.0
    id: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The anomalies of one request; within a request those with the latest stamps are last.

    Attributes:
        detector: Name of the detector.
        features: [F] names.
        series: [N] names.
        stamps: [N].
        scores: [N].
        versions: [N].
        top: [N, K] the features that contributed most, largest first.
        shares: [N, K] their shares of the error.
        threshold: All scores have reached this.
        found: When they were scored, in seconds since the epoch.
    """

    detector: str
    features: tuple[str, ...]
    series: Sequence[str]
    stamps: NDArray[np.int64]
    scores: FloatArray
    versions: NDArray[np.int64]
    top: NDArray[np.int64]
    shares: FloatArray
    threshold: float
    found: float

    def __len__(self) -> int:
        return len(self.stamps)

    def __iter__(self) -> Iterator[Anomaly]:
        columns = (self.stamps, self.scores, self.versions, self.top, self.shares)
        for series, stamp, score, version, top, shares in zip(
            self.series, *(column.tolist() for column in columns), strict=True
        ):
            named = tuple((self.features[feature], share) for feature, share in zip(top, shares, strict=True))
            yield Anomaly(self.detector, series, stamp, score, self.threshold, version, named, self.found)

    def newest(self, n: int) -> Found:
        """The last `n` of them, or all."""
        if len(self) <= n:
            return self
        rows = slice(len(self) - n, None)
        return Found(
            self.detector,
            self.features,
            self.series[rows],
            self.stamps[rows],
            self.scores[rows],
            self.versions[rows],
            self.top[rows],
            self.shares[rows],
            self.threshold,
            self.found,
        )


def shares_of(contribution: FloatArray) -> FloatArray:
    """Each feature's share of the error: 0 or more, and 1 in sum; all 0 where nothing contributed.

    Args:
        contribution: [N, F] in the unit of the error. Not a number counts as nothing, infinite as the largest float32.

    Returns:
        [N, F].

    >>> shares_of(np.array([[1, 3], [0, 0], [0, np.inf]], np.float32)).tolist()
    [[0.25, 0.75], [0.0, 0.0], [0.0, 1.0]]
    """
    parts = np.nan_to_num(contribution.astype(np.float64), nan=0.0, posinf=LARGEST, neginf=0.0).clip(min=0.0)
    total = parts.sum(axis=1, keepdims=True)
    shares: FloatArray = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0).astype(np.float32)
    return shares


def top_shares(contribution: FloatArray, k: int = TOP_FEATURES) -> tuple[NDArray[np.int64], FloatArray]:
    """The features that contributed most to each anomaly, largest first; of equal ones the first.

    Args:
        contribution: [N, F] in the unit of the error.
        k: How many, or F if there are fewer.

    Returns:
        [N, K] columns and [N, K] shares.
    """
    left = shares_of(contribution)
    rows = np.arange(len(left))
    columns = np.empty((len(left), min(k, left.shape[1])), np.int64)
    shares = np.empty(columns.shape, np.float32)
    for rank in range(columns.shape[1]):  # k passes are quicker than sorting thousands of features
        columns[:, rank] = best = left.argmax(axis=1)
        shares[:, rank] = left[rows, best]
        left[rows, best] = -1.0
    return columns, shares
