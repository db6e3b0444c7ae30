"""Where live series were when the last process ended: its newest points of each, out of the history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray
from server.reservoir import is_reservoir
from server.stretches import read_points


@dataclass(frozen=True)
class Resumed:
    """The end of a series.

    Attributes:
        name: Of the series.
        last_stamp: Of its newest point.
        stamps: [T] of its newest points, oldest first.
        values: [T, F] of them.
    """

    name: str
    last_stamp: int
    stamps: NDArray[np.int64]
    values: FloatArray

    def since(self, stamp: int, before: int) -> FloatArray:
        """Points after a stamp, and so many before: of a series that has begun anew older ones are another's past."""
        count = int(np.count_nonzero(self.stamps > stamp)) + before
        return self.values[max(len(self.values) - count, 0) :]


def newest_points(
    paths: Sequence[Path], features: Sequence[str], points: int, max_gap: int | None
) -> Iterator[Resumed]:
    """The newest points of every streamed series, the series that was heard of last first.

    Args:
        paths: Segments, oldest first.
        features: Columns to read, in order.
        points: Of each series at most.
        max_gap: What lies before a longer silence is left out; None: no silence is too long.

    Raises:
        PreconditionError: a segment can not be read or has other features.
    """
    segments = [path for path in paths if not is_reservoir(path)]
    found = read_points(segments, features, imported=False, max_gap=max_gap)
    if not len(found):
        return
    ends = np.r_[np.flatnonzero(np.diff(found.series)) + 1, len(found)]
    begins = np.flatnonzero(found.begins)
    starts = begins[np.searchsorted(begins, ends, side="left") - 1]
    for at in np.argsort(-found.stamps[ends - 1], kind="stable"):
        end = int(ends[at])
        start = max(int(starts[at]), end - points)
        stamps, values = found.stamps[start:end], found.values[start:end]
        yield Resumed(found.names[found.series[end - 1]], int(stamps[-1]), stamps, values)
