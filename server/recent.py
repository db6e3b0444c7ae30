"""The newest scores of a detector, thinned as they come: enough to draw a line of them, whatever the rate of points."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from detectors.runtime import FloatArray

TICKS = 240
TICK_SECONDS = 1.0
"""Points that arrive within so long share a tick: four minutes of a busy detector, four hours of one point a minute."""
SPANS = (10.0, 300.0, 3600.0)
"""Rates are counted over the shortest of these in which anything has arrived, in seconds."""


@dataclass(slots=True)
class Tick:
    """Points that arrived at about the same time.

    Attributes:
        began: When the first of them arrived, in seconds since the epoch.
        score: The highest of their scores; `-inf` where none has one.
        points: How many there were.
        flagged: How many of them are anomalies.
    """

    began: float
    score: float
    points: int
    flagged: int


class Recent:
    """A ring of `TICKS` ticks, and totals since the process began. Taking points costs one pass over their scores."""

    def __init__(self) -> None:
        self.points = 0
        self.flagged = 0
        self._ticks: deque[Tick] = deque(maxlen=TICKS)

    def take(self, nanoseconds: int, scores: FloatArray, flagged: int) -> None:
        """Takes the points of one request.

        Args:
            nanoseconds: Now, since the epoch.
            scores: [N]; NaN where there is none.
            flagged: How many of them are anomalies.
        """
        now, points = nanoseconds / 1e9, len(scores)
        score = float(np.fmax.reduce(scores, initial=-np.inf))
        self.points += points
        self.flagged += flagged
        last = self._ticks[-1] if self._ticks else None
        if last is None or not 0 <= now - last.began < TICK_SECONDS:  # a clock that was set back begins a new one
            self._ticks.append(Tick(now, score, points, flagged))
            return
        last.score = max(last.score, score)
        last.points += points
        last.flagged += flagged

    def newest(self, limit: int = TICKS) -> list[Tick]:
        """The last `limit` ticks, oldest first; none of them will change any more."""
        ticks = list(islice(self._ticks, max(len(self._ticks) - limit, 0), None))
        if ticks:
            ticks[-1] = replace(ticks[-1])  # the only one that still takes points
        return ticks


def rate(ticks: list[Tick], now: float) -> float:
    """Points a second of late; 0 where nothing has arrived for an hour.

    >>> rate([Tick(0.0, 1.0, 30, 0), Tick(95.0, 1.0, 20, 0)], now=100.0)
    2.0
    >>> rate([Tick(0.0, 1.0, 30, 0)], now=100.0)
    0.1
    """
    for span in SPANS:
        if points := sum(it.points for it in ticks if now - span <= it.began <= now):
            return points / span
    return 0.0
