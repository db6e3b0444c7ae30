"""A histogram of durations that takes the same memory however many it has seen."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

SLOTS = 128
"""Buckets of each power of two; all of an octave are equally wide."""
RELATIVE_ERROR = 1 / (2 * SLOTS)
"""Of a quantile at most, between `LOWEST_SECONDS` and `HIGHEST_SECONDS`: 0.4 %."""
_FIRST, _LAST = -19, 12  # exponents as of math.frexp: value = mantissa * 2 ** exponent, mantissa in [0.5, 1)
LOWEST_SECONDS = 2.0 ** (_FIRST - 1)
"""Shorter ones count as about a microsecond."""
HIGHEST_SECONDS = 2.0**_LAST
"""Longer ones count as 68 minutes; the largest one is kept exactly."""
_SIZE = SLOTS * (_LAST - _FIRST + 1)


class Histogram:
    """Counts of durations in log-linear buckets, as in HdrHistogram: 4,096 integers.

    The buckets of an octave [2^(e-1), 2^e) are equally wide, so that the middle of one is at most `RELATIVE_ERROR` away
    from every value in it. Count, sum, smallest and largest are exact.

    >>> histogram = Histogram()
    >>> for milliseconds in range(1, 1001):
    ...     histogram.record(milliseconds / 1000)
    >>> histogram.count, histogram.largest, round(histogram.quantile(0.99), 2)
    (1000, 1.0, 0.99)
    """

    __slots__ = ("_counts", "count", "largest", "smallest", "total")

    def __init__(self) -> None:
        self._counts = [0] * _SIZE  # a list: adding to one element is three times as fast as in an array
        self.count = 0
        self.total = 0.0
        self.smallest = math.inf
        self.largest = 0.0

    def record(self, seconds: float) -> None:
        """Counts one duration; one below zero (a clock that was set back) counts as zero."""
        if seconds < LOWEST_SECONDS:
            seconds = max(seconds, 0.0)
            index = 0
        elif seconds >= HIGHEST_SECONDS:
            index = _SIZE - 1
        else:
            mantissa, exponent = math.frexp(seconds)
            index = (exponent - _FIRST) * SLOTS + int((mantissa - 0.5) * (2 * SLOTS))
        self._counts[index] += 1
        self.count += 1
        self.total += seconds
        self.largest = max(self.largest, seconds)
        self.smallest = min(self.smallest, seconds)

    def add(self, other: Histogram) -> None:
        """Counts everything that `other` has counted too."""
        self._counts = [mine + its for mine, its in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.total += other.total
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)

    @property
    def mean(self) -> float:
        """Of all, exactly; NaN when there are none."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """The smallest duration that at least a share `q` of all do not exceed; NaN when there are none.

        It is that of numpy's `quantile(..., method="inverted_cdf")`, within `RELATIVE_ERROR`.
        """
        if not self.count:
            return math.nan
        if q >= 1.0:
            return self.largest
        rank = max(1, math.ceil(q * self.count - 1e-9))  # 0.07 * 100 is a little more than 7
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(max(_middle(index), self.smallest), self.largest)

    def buckets(self) -> Iterator[tuple[float, int]]:
        """(Upper edge in seconds, count) of each bucket that is not empty, ascending."""
        for index, count in enumerate(self._counts):
            if count:
                yield _upper(index), count


def _lower(index: int) -> float:
    octave, slot = divmod(index, SLOTS)
    return math.ldexp(0.5 + slot / (2 * SLOTS), _FIRST + octave)


def _upper(index: int) -> float:
    return _lower(index + 1)


def _middle(index: int) -> float:
    return (_lower(index) + _upper(index)) / 2
