"""Which rows of a file to draw, where they stand on the axis of time, and the stretches they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError
from server.csv_input import Table, is_integer, stamp_of
from server.lines import Places, Rows

GAP_STEPS = 10.0  # a step so many times the median is a gap


@dataclass(frozen=True)
class Window:
    """Which rows to draw; times as they were written."""

    from_row: int | None = None
    to_row: int | None = None
    since: str | None = None
    until: str | None = None

    def rows(self, table: Table) -> Rows:
        """Numbers of the rows inside.

        Raises:
            InvalidInputError: a time is not one of this file, or there are no rows inside.
        """
        row, inside = np.arange(len(table)), np.ones(len(table), np.bool_)
        if self.from_row is not None:
            inside &= row >= self.from_row
        if self.to_row is not None:
            inside &= row < self.to_row
        if self.since is not None:
            inside &= table.stamps >= _stamp("--since", self.since, table)
        if self.until is not None:
            inside &= table.stamps < _stamp("--until", self.until, table)
        if not inside.any():
            first, last = int(table.stamps.argmin()), int(table.stamps.argmax())
            raise InvalidInputError(
                "there are no rows in this window.",
                field=str(table.path),
                hint=f"It has rows 0 to {len(table) - 1}, from {table.stamp_text[first]} to {table.stamp_text[last]}.",
            )
        return np.flatnonzero(inside)


@dataclass(frozen=True)
class Axis:
    """The axis of time.

    Attributes:
        kind: Dates of stamps in nanoseconds, integers as the file has them, or row numbers.
        origin: The stamp or row at place 0.
        limits: First and last place.
    """

    kind: Literal["dates", "numbers", "rows"]
    origin: int
    limits: tuple[float, float]


def on_axis(table: Table, inside: Rows) -> tuple[Rows, Axis, Places, float]:
    """Puts rows in the order of time. Where many stamps go back or repeat they are no time, so row numbers are.

    Args:
        table: The whole file.
        inside: [N] rows to draw.

    Returns:
        [N] rows, the axis, their [N] places on it, and half a step: how far a row reaches to either side.
    """
    stamps = table.stamps[inside]
    kind: Literal["dates", "numbers", "rows"] = "numbers" if is_integer(table.stamp_text[0]) else "dates"
    if np.count_nonzero(np.diff(stamps) <= 0) * 10 > len(stamps):
        rows, stamps, kind = inside, inside, "rows"
    else:
        order = np.argsort(stamps, kind="stable")
        rows, stamps = inside[order], stamps[order]
    exact = kind != "dates" and max(abs(int(stamps[0])), abs(int(stamps[-1]))) < 2**53
    origin = 0 if exact else int(stamps[0])
    at = (stamps - origin).astype(np.float64)
    half = _median_step(at, 1e9 if kind == "dates" else 1.0) / 2
    return rows, Axis(kind, origin, (float(at[0] - half), float(at[-1] + half))), at, half


def runs(
    mask: NDArray[np.bool_], counted: NDArray[np.bool_], gap: NDArray[np.bool_], join: int = 0
) -> list[tuple[int, int]]:
    """First and last rows of the stretches where `mask` is true.

    Args:
        mask: [N].
        counted: [N]; rows that are not neither end nor lengthen a stretch.
        gap: [N]; a stretch never reaches over a gap, which is before the row it is true of.
        join: Counted rows outside the mask that a stretch may go over.

    >>> marked = np.array([True, False, True, False, False, True])
    >>> runs(marked, np.ones(6, bool), np.zeros(6, bool), join=1)
    [(0, 2), (5, 5)]
    """
    order = np.cumsum(counted)
    part = np.cumsum(gap)
    marked = np.flatnonzero(mask & counted)
    if not len(marked):
        return []
    ends = (np.diff(order[marked]) > join + 1) | (np.diff(part[marked]) > 0)
    firsts, lasts = marked[np.r_[True, ends]], marked[np.r_[ends, True]]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def gaps(at: Places) -> NDArray[np.bool_]:
    """[N]; whether more than `GAP_STEPS` median steps lie between a row and the one before.

    >>> gaps(np.array([0.0, 1, 2, 3, 30, 31])).tolist()
    [False, False, False, False, True, False]
    """
    steps = np.diff(at)
    return np.r_[False, steps > GAP_STEPS * _median_step(at)] if len(at) > 1 else np.zeros(len(at), np.bool_)


def _median_step(at: Places, alone: float = 1.0) -> float:
    """Of the steps ahead; where there is none, what a row `alone` takes."""
    steps = np.diff(at)
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else alone


def _stamp(option: str, text: str, table: Table) -> int:
    example = table.stamp_text[0]
    if is_integer(text) != is_integer(example):
        raise InvalidInputError(
            f"{text!r} is not a time as this file has them.", field=option, hint=f"Write {example}."
        )
    try:
        return stamp_of(text)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field=option, hint=f"Write {example}, for example.") from error
