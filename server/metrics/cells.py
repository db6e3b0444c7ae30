"""What is counted: a number, or a histogram. Plain Python objects, since every message of points touches a few.

A cell is written by one thread (the event loop's, where nothing else is said) and read by any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Number:
    """A counter or a gauge.

    >>> points = Number()
    >>> points.inc(3)
    >>> points.value
    3.0
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        """Adds to it."""
        self.value += by

    def set(self, value: float) -> None:
        """Replaces it."""
        self.value = value


class Tally:
    """A histogram.

    Args:
        bounds: Upper bounds of its buckets, ascending; values equal to one are inside, as Prometheus has it.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self.counts = [0] * (len(bounds) + 1)
        """By bucket, not summed up; the last one is what lies above all bounds."""
        self.total = 0.0
        """Sum of the values."""

    def observe(self, value: float) -> None:
        """Takes a value.

        >>> steps = Tally((1.0, 2.0))
        >>> for value in (0.5, 1.0, 7.0):
        ...     steps.observe(value)
        >>> steps.counts, steps.total
        ([2, 0, 1], 8.5)
        """
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def observe_all(self, values: NDArray[np.float32]) -> None:
        """Takes many at once; what is not finite is left out.

        >>> scores = Tally((1.0, 2.0))
        >>> scores.observe_all(np.array([0.5, 2.0, np.nan, 7.0], np.float32))
        >>> scores.counts, scores.total
        ([1, 1, 1], 9.5)
        """
        sound = values[np.isfinite(values)]
        places = np.searchsorted(self._bounds, sound, side="left")
        for place, count in enumerate(np.bincount(places, minlength=len(self.counts)).tolist()):
            self.counts[place] += count
        self.total += float(sound.sum(dtype=np.float64))
