"""What to do with a point by its time stamp: one function for the command line, the hub and the device.

Stamps are int64: nanoseconds since the epoch or, for `time: index`, row numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

NO_STAMP = np.iinfo(np.int64).min
"""The last stamp of a series that has none."""


class Status(IntEnum):
    """What happened to one point. The numbers are those of `prunewatch.v1.PointStatus`."""

    UNSPECIFIED = 0
    OK = 1
    WARMING_UP = 2
    LEARNING = 3
    NOT_DUE = 4
    INVALID = 5
    LATE = 6
    DUPLICATE = 7
    TOO_FAR = 8


_OK = int(Status.OK)


@dataclass(frozen=True)
class StampPolicy:
    """How stamps are judged.

    Attributes:
        duplicate: `reject` a stamp equal to the last one, or `score` it (for sources that repeat stamps).
        max_ahead: Nanoseconds a stamp may lie beyond the clock; None switches the check off (row numbers, back-fills).
        max_gap: A series that was silent for longer, in the units of its stamps, begins anew; None: it goes on where it
            was, as if nothing had been missed.
    """

    duplicate: Literal["reject", "score"] = "reject"
    max_ahead: int | None = None
    max_gap: int | None = None


def judge(
    stamps: NDArray[np.int64], last: NDArray[np.int64], policy: StampPolicy, now: int | None = None
) -> NDArray[np.uint8]:
    """Says for each point whether its stamp lets it in.

    Args:
        stamps: [N] of the points.
        last: [N] last accepted stamp of each point's series, `NO_STAMP` for a new series.
        policy: How to judge.
        now: The clock in nanoseconds; needed when `policy.max_ahead` is set.

    Returns:
        [N] of `Status`: `OK` (let it in), `LATE`, `DUPLICATE` or `TOO_FAR` (not scored, changes nothing).

    >>> judge(np.array([5, 4, 6]), np.array([5, 5, 5]), StampPolicy()).tolist()
    [7, 6, 1]
    """
    status = np.empty(len(stamps), np.uint8)
    status.fill(_OK)  # np.full takes longer than all that follows
    if np.count_nonzero(stamps > last) < len(stamps):
        status[(stamps < last) | (stamps == NO_STAMP)] = Status.LATE
        if policy.duplicate == "reject":
            status[(stamps == last) & (last != NO_STAMP)] = Status.DUPLICATE
    if policy.max_ahead is not None and now is not None:
        status[stamps > now + policy.max_ahead] = Status.TOO_FAR
    return status
