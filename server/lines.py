"""Lines through many rows with few points, broken where there is nothing, and no spike lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PLACES = 1200  # across a picture, about a pixel each

Rows = NDArray[np.int64]
Places = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A line.

    Attributes:
        at: [K] places, ascending.
        values: [K]; NaN where the line breaks.
        thinned: Whether rows were left out.
    """

    at: Places
    values: NDArray[np.float64]
    thinned: bool = False

    @property
    def alone(self) -> NDArray[np.bool_]:
        """[K]; values between two breaks, which a line does not show."""
        padded = np.r_[np.nan, self.values, np.nan]
        alone: NDArray[np.bool_] = np.isfinite(self.values) & np.isnan(padded[:-2]) & np.isnan(padded[2:])
        return alone


def line(at: Places, values: NDArray[np.float32], gap: NDArray[np.bool_], places: int = PLACES) -> Line:
    """A line through rows, broken where a value is missing and before each gap.

    Args:
        at: [N] ascending.
        values: [N].
        gap: [N]; true before which row there is one.
        places: Across the line, see `thinned`.

    >>> line(np.arange(4.0), np.array([1, 2, 3, 4], "f4"), np.array([False, False, True, False])).values.tolist()
    [1.0, 2.0, nan, 3.0, 4.0]
    """
    there = np.isfinite(values)
    part = np.cumsum(gap | ~there)
    kept = np.flatnonzero(there)
    few = kept[thinned(at[kept], values[kept], places)]
    breaks = np.flatnonzero(np.diff(part[few])) + 1
    return Line(
        np.insert(at[few], breaks, at[few[breaks]]),
        np.insert(values[few].astype(np.float64), breaks, np.nan),
        len(few) < len(kept),
    )


def thinned(at: Places, values: NDArray[np.float32], places: int = PLACES) -> Rows:
    """The rows to draw where many share a place: its first, last, lowest and highest one.

    Args:
        at: [N] ascending.
        values: [N] finite.
        places: Of equal width, from the first to the last row.

    Returns:
        [K] ascending; all rows where there are at most four for each place.

    >>> thinned(np.arange(12.0), np.array([0, 5, 1, 1, -5, 0, 0, 0, 0, 9, 0, 0]), places=2).tolist()
    [0, 1, 4, 5, 6, 9, 11]
    """
    n = len(at)
    width = at[-1] - at[0] if n else 0.0
    if n <= 4 * places or not width:
        return np.arange(n)
    place = np.minimum(((at - at[0]) / width * places).astype(np.int64), places - 1)
    first = np.flatnonzero(np.diff(place, prepend=-1))
    last = np.r_[first[1:], n] - 1
    by_value = np.lexsort((values, place))  # within each place from the lowest to the highest
    return np.unique(np.concatenate([first, last, by_value[first], by_value[last]]))
