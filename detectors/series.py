"""What is remembered of each series, whatever version scores it: its name, last stamp, points seen and last K points.

Everything lies in arrays indexed by slot, so that a batch of points is gathered and scattered without per-point Python.
The ring of the last K raw points is what a new version is started from (`detectors.scorer.Successor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from detectors.errors import ExhaustedError
from detectors.stamps import NO_STAMP

Slots = NDArray[np.int64]
Rows = Slots | slice
"""Slots; a slice where they are consecutive, which saves the copies of fancy indexing."""
T = TypeVar("T", bound=np.generic)


class SeriesTable:
    """Names, stamps, counts and rings of up to `max_series` series.

    Args:
        n_features: Width of a point.
        ring_points: K, how many raw points of each series are kept.
        max_series: Refuse more.
    """

    def __init__(self, n_features: int, *, ring_points: int = 256, max_series: int = 100_000) -> None:
        self.n_features = n_features
        self.ring_points = ring_points
        self.max_series = max_series
        self._slot_of: dict[str, int] = {}
        self.last_stamp = np.empty(0, np.int64)
        self.seen = np.empty(0, np.int64)
        """Accepted points of each series since it began, or began anew."""
        self.beginnings = np.empty(0, np.int64)
        """How often each series has begun anew."""
        self._ring = np.empty((0, ring_points, n_features), np.float32)

    def __len__(self) -> int:
        return len(self._slot_of)

    @property
    def names(self) -> list[str]:
        """Names in slot order."""
        return list(self._slot_of)

    @property
    def bytes(self) -> int:
        """Memory held by rings, stamps and counts."""
        return self._ring.nbytes + self.last_stamp.nbytes + self.seen.nbytes + self.beginnings.nbytes

    def slots(self, names: Sequence[str]) -> Slots:
        """The slot of each name; unseen names get a new one.

        Raises:
            ExhaustedError: more than `max_series` would be held; nothing has been added.
        """
        slot_of = self._slot_of
        unseen = dict.fromkeys(name for name in names if name not in slot_of)
        if unseen:
            total = len(slot_of) + len(unseen)
            if total > self.max_series:
                raise ExhaustedError(
                    f"this detector holds {len(slot_of)} series and may hold {self.max_series}.",
                    field="series",
                    hint="Raise max_series, or use fewer series names.",
                )
            slot_of.update(zip(unseen, range(len(slot_of), total), strict=True))
            self._grow(total)
        return np.fromiter((slot_of[name] for name in names), np.int64, len(names))

    def append(self, slots: Rows, stamps: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Records one accepted point for each of `slots` (each slot at most once)."""
        at = self.seen[slots] % self.ring_points
        if not isinstance(slots, slice):
            self._ring[slots, at] = values
        elif np.count_nonzero(at == at[0]) == len(at):
            self._ring[slots, at[0]] = values
        else:
            self._ring[listed(slots), at] = values
        self.seen[slots] += 1
        self.last_stamp[slots] = stamps

    def resume(self, name: str, last_stamp: int, values: NDArray[np.float32]) -> None:
        """Lets a series go on from its newest points [T, F], of which the ring takes the last.

        Raises:
            ExhaustedError: more than `max_series` would be held.
        """
        (slot,) = self.slots([name])
        kept = values[-self.ring_points :]
        self._ring[slot, : len(kept)] = kept
        self.seen[slot] = len(kept)
        self.last_stamp[slot] = last_stamp

    def begin_anew(self, slots: Slots) -> None:
        """Forgets the points of series after a gap; their last stamps stay."""
        self.seen[slots] = 0
        self.beginnings[slots] += 1

    def newest(self, slots: Rows, points: int) -> NDArray[np.float32]:
        """The last `points` raw points of series that have that many: [N, points, F], oldest first."""
        at = (self.seen[slots][:, None] - np.arange(points, 0, -1)) % self.ring_points
        newest: NDArray[np.float32] = self._ring[listed(slots)[:, None], at]
        return newest

    def recent(self, slot: int, points: int | None = None) -> NDArray[np.float32]:
        """The last `points` (default K) raw points of a series, oldest first: [min(points, seen, K), F]."""
        seen = int(self.seen[slot])
        count = min(points if points is not None else seen, seen, self.ring_points)
        recent: NDArray[np.float32] = self._ring[slot, np.arange(seen - count, seen) % self.ring_points]
        return recent

    def _grow(self, total: int) -> None:
        capacity = len(self.seen)
        if total <= capacity:
            return
        capacity = min(max(total, 2 * capacity, 64), max(self.max_series, total))
        self.last_stamp = extended(self.last_stamp, capacity, NO_STAMP)
        self.seen = extended(self.seen, capacity)
        self.beginnings = extended(self.beginnings, capacity)
        self._ring = extended(self._ring, capacity)


def listed(slots: Rows) -> Slots:
    """Slots one by one, also where they came as a slice."""
    return np.arange(slots.start, slots.stop) if isinstance(slots, slice) else slots


def extended(array: NDArray[T], length: int, fill: int = 0) -> NDArray[T]:
    """A copy of `array` with `length` rows; the new ones hold `fill`."""
    shape = (length, *array.shape[1:])
    grown = np.full(shape, fill, array.dtype) if fill else np.zeros(shape, array.dtype)
    grown[: len(array)] = array
    return grown
