"""What a version did with live points, in sums: what it flagged, how high it scored, how long its steps took."""

from __future__ import annotations

from collections import deque

import numpy as np

from detectors.runtime import FloatArray

STEPS = 256
"""Steps whose times are remembered, the newest."""
HIGHEST = 3.0
"""Scores count up to here in the mean: an incident is no trend."""
ALIKE = 1.5
"""Steps are compared where their median numbers of points differ by no more than this factor."""
FEW_STEPS = 20
"""Medians of fewer steps say nothing."""


class Usage:
    """Counts of one version."""

    def __init__(self) -> None:
        self.points = 0
        """Points that should have a score."""
        self.flagged = 0
        self.broken = 0
        """Points whose score is not a number."""
        self.failed = 0
        """Steps that the runtime did not finish."""
        self.steps = 0
        """That it did."""
        self._scores = 0.0
        self._seconds: deque[float] = deque(maxlen=STEPS)
        self._sizes: deque[int] = deque(maxlen=STEPS)

    def count(self, scores: FloatArray, threshold: float) -> None:
        """Takes the scores [N] of points that are warm and due."""
        sound = np.isfinite(scores)
        self.points += len(scores)
        self.broken += len(scores) - int(np.count_nonzero(sound))
        self.flagged += int(np.count_nonzero(scores >= threshold))
        self._scores += float(np.minimum(scores[sound], HIGHEST).sum())

    def time(self, seconds: float, points: int) -> None:
        """Takes how long a step of so many points took."""
        self.steps += 1
        self._seconds.append(seconds)
        self._sizes.append(points)

    def newest(self, steps: int) -> FloatArray:
        """Seconds of the last so many steps, as far as they are remembered."""
        return np.array(list(self._seconds)[-steps:] if steps > 0 else [], np.float32)

    @property
    def share(self) -> float:
        """Of the points that were flagged; 0 where there were none."""
        return self.flagged / self.points if self.points else 0.0

    @property
    def mean_score(self) -> float:
        """Of the points that have one; 0 where none has."""
        sound = self.points - self.broken
        return self._scores / sound if sound else 0.0

    @property
    def step_points(self) -> int:
        """Median of the points in a step; 1 where there was none."""
        return max(int(np.median(self._sizes)), 1) if self._sizes else 1

    def slower_than(self, other: Usage) -> float | None:
        """Median time of a step over the other's; None where the two did not do the same work, or too little."""
        if min(len(self._seconds), len(other._seconds)) < FEW_STEPS:
            return None
        sizes = sorted((float(np.median(self._sizes)), float(np.median(other._sizes))))
        if sizes[1] > ALIKE * sizes[0]:
            return None
        return float(np.median(self._seconds) / max(float(np.median(other._seconds)), 1e-9))
