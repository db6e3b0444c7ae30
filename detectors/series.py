"""What is remembered of each series, whatever version scores it: its name, last stamp, points seen and last K points.

Everything lies in arrays, so that a batch of points is gathered and scattered without per-point Python. A series has a
*slot* from its first point on. What is large of it (the ring of its last K raw points, and the state that a scorer
carries for it) lies at its *seat*. Where there is room for fewer seats than there are series, those that have been
silent for longest leave theirs to others (`detectors.shelf`). As long as nobody had to, every seat is that of its slot.

The ring is what a new version is started from (`detectors.successor`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from detectors.errors import ExhaustedError
from detectors.stamps import NO_STAMP

Slots = NDArray[np.int64]
Rows = Slots | slice
"""Slots or seats; a slice where they are consecutive, which saves the copies of fancy indexing."""
NO_SEAT = -1
T = TypeVar("T", bound=np.generic)


class SeriesTable:
    """Names, stamps, counts and rings of up to `max_series` series.

    Args:
        n_features: Width of a point.
        ring_points: K, how many raw points of each series are kept.
        max_series: Refuse more.
        clock: Seconds since the epoch: when series are heard of.
    """

    def __init__(
        self,
        n_features: int,
        *,
        ring_points: int = 256,
        max_series: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.n_features = n_features
        self.ring_points = ring_points
        self.max_series = max_series
        self.room = max_series
        """Seats there may be."""
        self.is_whole = True
        """Every series has a seat, that of its slot."""
        self.epoch = 0
        """Raised when series were let go: slots that somebody remembers may be those of others."""
        self._clock = clock
        self._slot_of: dict[str, int] = {}
        self._name_of: list[str] = []
        self._free_slots: list[int] = []
        self._free_seats: list[int] = []
        self._seats_made = 0
        self.last_stamp = np.empty(0, np.int64)
        self.seen = np.empty(0, np.int64)
        """Accepted points of each series since it began, or began anew."""
        self.beginnings = np.empty(0, np.int64)
        """How often each series has begun anew or taken a seat: whoever follows it starts over then."""
        self.heard = np.empty(0, np.float64)
        """When each series last took a point, or was first named."""
        self.seat = np.empty(0, np.int64)
        """Where each series lies; `NO_SEAT`: it left its seat, or never needed one."""
        self._ring = np.empty((ring_points, 0, n_features), np.float32)
        """Points by their place in the ring, then by seat: those of series that move together lie side by side."""

    def __len__(self) -> int:
        return len(self._slot_of)

    @property
    def names(self) -> list[str]:
        """Names of all series."""
        return list(self._slot_of)

    @property
    def seats_made(self) -> int:
        """Rows that arrays by seat must have."""
        return self._ring.shape[1]

    @property
    def seated(self) -> int:
        """Series that have a seat."""
        return self._seats_made - len(self._free_seats)

    @property
    def bytes(self) -> int:
        """Memory held by rings, stamps and counts."""
        by_slot = (self.last_stamp, self.seen, self.beginnings, self.heard, self.seat)
        return self._ring.nbytes + sum(it.nbytes for it in by_slot)

    def name(self, slot: int) -> str:
        """The name of the series of a slot."""
        return self._name_of[slot]

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
                    hint="Raise max_series, let series go that are not used any more, or use fewer names.",
                )
            self._add(list(unseen))
        return np.fromiter((slot_of[name] for name in names), np.int64, len(names))

    def known(self, names: Sequence[str]) -> Slots:
        """The slots of those names that are known."""
        return np.array([self._slot_of[it] for it in dict.fromkeys(names) if it in self._slot_of], np.int64)

    def _add(self, names: Sequence[str]) -> None:
        reused = [self._free_slots.pop() for _ in range(min(len(names), len(self._free_slots)))]
        fresh = range(len(self._name_of), len(self._name_of) + len(names) - len(reused))
        self._name_of.extend([""] * len(fresh))
        self._grow(len(self._name_of))
        added = [*reused, *fresh]
        for name, slot in zip(names, added, strict=True):
            self._slot_of[name] = slot
            self._name_of[slot] = name
        self.heard[added] = self._clock()
        self.is_whole = self.is_whole and len(self._name_of) <= self.room
        if self.is_whole:
            self._make_seats(len(self._name_of))
            self._free_seats = list(self._free_slots)
            self.seat[added] = added

    def take_seats(self, slots: Slots) -> None:
        """Gives a seat to each of `slots`, which have none; what lies there is that of others."""
        if not len(slots):
            return
        n = min(len(slots), len(self._free_seats))
        freed = [self._free_seats.pop() for _ in range(n)]
        fresh = np.arange(self._seats_made, self._seats_made + len(slots) - n)
        self._make_seats(self._seats_made + len(fresh))
        self.seat[slots] = np.r_[np.array(freed, np.int64), fresh]
        self.beginnings[slots] += 1
        self.is_whole = False

    @property
    def vacancies(self) -> int:
        """Seats that can be taken; less than none where there are more in use than there is room for."""
        return self.room - self.seated

    def leave_seats(self, slots: Slots) -> None:
        """Takes the seats of `slots` away."""
        if not len(slots):
            return
        self._free_seats.extend(self.seat[slots].tolist())
        self.seat[slots] = NO_SEAT
        self.is_whole = False

    def longest_silent(self, count: int, but: Rows) -> Slots:
        """Up to `count` series with a seat that have been silent for longest, none of `but`."""
        may = self.seat >= 0
        may[but] = False
        slots = np.flatnonzero(may)
        if len(slots) > count:
            slots = slots[np.argpartition(self.heard[slots], count - 1)[:count]] if count else slots[:0]
        return slots

    def silent_since(self, before: float) -> Slots:
        """Series that have taken no point since a moment, in seconds since the epoch."""
        slots = np.fromiter(self._slot_of.values(), np.int64, len(self._slot_of))
        return slots[self.heard[slots] < before]

    def let_go(self, slots: Slots) -> None:
        """Forgets series; their slots and seats become those of others."""
        seated = slots[self.seat[slots] >= 0]
        self._free_seats.extend(self.seat[seated].tolist())
        for slot in slots.tolist():
            del self._slot_of[self._name_of[slot]]
            self._name_of[slot] = ""
        self._free_slots.extend(slots.tolist())
        self.seat[slots] = NO_SEAT
        self.seen[slots] = 0
        self.last_stamp[slots] = NO_STAMP
        self.beginnings[slots] += 1
        self.epoch += 1

    def append(self, slots: Rows, seats: Rows, stamps: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Records one accepted point for each of `slots` (each slot at most once), which lie at `seats`."""
        seen = self.seen[slots]
        first = int(seen[0]) if len(seen) else 0
        if isinstance(seats, slice) and np.count_nonzero(seen == first) == len(seen):
            self._ring[first % self.ring_points, seats] = values
        else:
            self._ring[seen % self.ring_points, listed(seats)] = values
        self.seen[slots] = seen + 1
        self.last_stamp[slots] = stamps
        self.heard[slots] = self._clock()

    def put(self, slot: int, seen: int, values: NDArray[np.float32]) -> None:
        """Fills the ring of a series that has seen so many points with the newest of them [T, F], oldest first."""
        kept = values[-self.ring_points :]
        self._ring[np.arange(seen - len(kept), seen) % self.ring_points, self.seat[slot]] = kept
        self.seen[slot] = seen

    def begin_anew(self, slots: Slots) -> None:
        """Forgets the points of series after a gap; their last stamps stay."""
        self.seen[slots] = 0
        self.beginnings[slots] += 1

    def newest(self, slots: Slots, seats: Slots, points: int) -> NDArray[np.float32]:
        """The last `points` raw points of series that have that many: [N, points, F], oldest first."""
        at = (self.seen[slots][:, None] - np.arange(points, 0, -1)) % self.ring_points
        newest: NDArray[np.float32] = self._ring[at, seats[:, None]]
        return newest

    def recent(self, slot: int, points: int | None = None) -> NDArray[np.float32]:
        """The last `points` (default K) raw points of a series with a seat: [min(points, seen, K), F], oldest first."""
        seen = int(self.seen[slot])
        count = min(points if points is not None else seen, seen, self.ring_points)
        recent: NDArray[np.float32] = self._ring[np.arange(seen - count, seen) % self.ring_points, self.seat[slot]]
        return recent

    def _grow(self, total: int) -> None:
        capacity = len(self.seen)
        if total <= capacity:
            return
        capacity = min(max(total, 2 * capacity, 64), max(self.max_series, total))
        self.last_stamp = extended(self.last_stamp, capacity, NO_STAMP)
        self.seen = extended(self.seen, capacity)
        self.beginnings = extended(self.beginnings, capacity)
        self.heard = extended(self.heard, capacity)
        self.seat = extended(self.seat, capacity, NO_SEAT)

    def _make_seats(self, total: int) -> None:
        self._seats_made = max(self._seats_made, total)
        capacity = self.seats_made
        if total > capacity:
            capacity = min(max(total, 2 * capacity, 64), max(min(self.room, self.max_series), total))
            grown = np.zeros((self.ring_points, capacity, self.n_features), np.float32)
            grown[:, : self.seats_made] = self._ring
            self._ring = grown


def listed(slots: Rows) -> Slots:
    """Slots one by one, also where they came as a slice."""
    return np.arange(slots.start, slots.stop) if isinstance(slots, slice) else slots


def extended(array: NDArray[T], length: int, fill: int = 0) -> NDArray[T]:
    """A copy of `array` with `length` rows; the new ones hold `fill`."""
    shape = (length, *array.shape[1:])
    grown = np.full(shape, fill, array.dtype) if fill else np.zeros(shape, array.dtype)
    grown[: len(array)] = array
    return grown
