"""What a version carries for each series from point to point: state at the series' seats, and who has one.

Where there is no room for all, those that were silent for longest leave their seats for the shelf; they come back when
they are heard of, bit by bit as they were. What has moved on is put there from time to time, to outlive the process.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from detectors.bound import Bindings
from detectors.runtime import FloatArray, State
from detectors.series import Rows, SeriesTable, Slots, extended, listed
from detectors.served import Served
from detectors.shelf import GONE, Label, Shelf, Shelved
from detectors.successor import Successor, replay_of

LEAVE_AT_ONCE = 256
"""Series that leave their seats together, where there are that many: one writing for all of them."""
logger = logging.getLogger("prunewatch.detectors.carried")


@dataclass(frozen=True)
class Copies:
    """What a shelf is to hold of some series, as they were at one moment.

    Attributes:
        rows: For the shelf.
        slots: [N] of the series.
        seen: [N], points they had seen.
        beginnings: [N], which beginning it was.
        served: The version that carried them.
    """

    rows: list[Shelved]
    slots: Slots
    seen: NDArray[np.int64]
    beginnings: NDArray[np.int64]
    served: Served


class Carried:
    """The state of many series under the version that serves.

    Args:
        series: Whose.
        served: The version to start with.
        memory: Bytes that state and rings may take; None: as many as there are series. Needs a `shelf`.
        shelf: Where series go that there is no room for, and when the process ends.
    """

    def __init__(self, series: SeriesTable, served: Served, *, memory: int | None, shelf: Shelf | None) -> None:
        self.series = series
        self.served = served
        self.state = served.runtime.fresh(0)
        """Of each tensor a row for every seat."""
        self.left = 0
        """Series that have left their seats for others ..."""
        self.returned = 0
        """... and that have come back from the shelf."""
        self._bindings = Bindings()
        self._memory = memory if shelf is not None else None
        self._shelf = shelf
        self._is_stuck = False
        self._turn = 0
        self._saved = np.empty(0, np.int64)
        """Points that each series had seen when it was last put on the shelf."""
        self._make_room()

    @property
    def bytes(self) -> int:
        """Memory held for all series: state and rings."""
        return self.series.bytes + sum(array.nbytes for array in self.state)

    def begin_anew(self, slots: Slots) -> None:
        """Lets series warm up again; their last stamps stay."""
        self.series.begin_anew(slots)
        self._saves()[slots] = -1  # what the shelf has of them is the past
        self._fresh(slots)

    def let_go(self, slots: Slots) -> None:
        """Forgets series; a point that comes later begins a new one.

        Raises:
            OSError: the shelf can not be written; nothing has changed.
        """
        series = self.series
        if self._shelf is not None:
            self._turn += 1
            gone = [
                Label(series.name(slot), int(series.last_stamp[slot]), GONE, float(series.heard[slot]), self._turn)
                for slot in slots.tolist()
            ]
            self._shelf.let_go(gone)
        self._fresh(slots)
        series.let_go(slots)
        self._saves()[slots] = -1

    def _fresh(self, slots: Slots) -> None:
        seats = self.series.seat[slots]
        seats = seats[seats >= 0]
        self.gather(seats)  # there is a row for each
        for carried in self.state:
            carried[seats] = 0

    def step(self, seats: Rows, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Steps the series that lie at `seats`, each once; returns scores [N] and contributions [N, F].

        Args:
            seats: [N].
            values: As of `Runtime.step`.
        """
        self._hold_all()
        runtime = self.served.runtime
        bound = self._bindings.of(runtime, len(values))
        if isinstance(seats, slice) and self.state and seats == slice(0, len(self.state[0])):
            step = (bound or runtime).step(values, self.state)
            self.state = step.state  # every series at once: nothing to copy
            return step.score, step.contribution
        if bound is None:
            step = runtime.step(values, self.gather(seats))
        else:
            if bound.holds(self.state):  # what steps write to can not be what they are written to from
                self.state = tuple(array.copy() for array in self.state)
            step = bound.step(values, self.gather(seats, bound.room))
        for carried, new in zip(self.state, step.state, strict=True):
            carried[seats] = new
        return step.score, step.contribution

    def gather(self, seats: Rows, room: State | None = None) -> State:
        """The state of the series that lie at `seats`, [N, ...] of each tensor; in `room`, where there is some."""
        self._hold_all()
        if room is not None:
            for carried, out in zip(self.state, room, strict=True):
                if isinstance(seats, slice):
                    out[:] = carried[seats]
                else:
                    carried.take(seats, axis=0, out=out, mode="clip")  # the mode that needs no copy of `out`
            return room
        if isinstance(seats, slice):
            return tuple(array[seats] for array in self.state)
        return tuple(array.take(seats, axis=0) for array in self.state)

    def _hold_all(self) -> None:
        """Makes a row for every seat."""
        capacity = self.series.seats_made
        if self.state and len(self.state[0]) < capacity:
            self.state = tuple(extended(array, capacity) for array in self.state)

    def take_over(self, successor: Successor) -> None:
        """Goes on with what a successor carries, which has seen all that the rings hold."""
        self.served, self.state = successor.served, successor.state
        self._bindings.clear()
        self._saves()[:] = -1  # the shelf holds what the version before carried
        self._make_room()

    def _make_room(self) -> None:
        """Fits the number of seats to the version that serves."""
        if self._memory is not None:
            series = self.series
            each = 4 * series.ring_points * series.n_features + self.served.runtime.state_bytes
            series.room = max(self._memory // each, 1)

    def seats(self, slots: Rows) -> Rows:
        """Where series lie; those that have no seat get one."""
        series = self.series
        if series.is_whole:
            return slots
        slots = listed(slots)
        absent = slots[series.seat[slots] < 0]
        if len(absent):
            self._seat(absent, slots)
        return series.seat[slots]

    def _seat(self, absent: Slots, wanted: Slots) -> None:
        """Gives seats to series that have none, where others have to leave theirs: not those that are wanted."""
        series = self.series
        if (lacking := len(absent) - series.vacancies) > 0 and self._shelf is not None:
            spare = min(LEAVE_AT_ONCE, series.room // 8)
            leaving = series.longest_silent(max(lacking, spare), but=wanted)
            try:
                self._put(leaving[self._is_unsaved(leaving)])
            except OSError:  # scoring goes on; memory grows until there is room on the disk again
                if not self._is_stuck:  # once, not with every message
                    logger.exception("series can not be put on disk; they stay in memory until it is possible again")
                self._is_stuck = True
            else:
                self._is_stuck = False
                series.leave_seats(leaving)
                self.left += len(leaving)
        series.take_seats(absent)
        self._fresh(absent)
        if len(begun := absent[series.seen[absent] > 0]):
            self._fill(begun)

    def _fill(self, slots: Slots) -> None:
        """Brings series from the shelf to their seats.

        Those that another version carried are replayed from their rings; those that are lost begin anew.
        """
        assert self._shelf is not None
        series, shapes = self.series, self.served.runtime.state_shapes
        rows = [row for row in self._shelf.get([series.name(slot) for slot in slots.tolist()]) if self._fits(row)]
        found = series.known([row.name for row in rows])
        self.begin_anew(np.setdiff1d(slots, found))
        slots, seats = found, series.seat[found]
        foreign = []
        self.gather(seats)
        for slot, seat, row in zip(slots.tolist(), seats.tolist(), rows, strict=True):
            series.put(slot, row.seen, np.frombuffer(row.ring, np.float32).reshape(-1, series.n_features))
            if row.bundle_hash != self.served.bundle_hash:
                foreign.append(slot)
                continue
            at = 0
            for carried, shape in zip(self.state, shapes, strict=True):
                size = 4 * int(np.prod(shape))
                carried[seat] = np.frombuffer(row.state[at : at + size], np.float32).reshape(shape)
                at += size
            self._saves()[slot] = row.seen
        if foreign:
            again = np.array(foreign)
            state = self.served.runtime.fresh(len(again))
            replay = replay_of(series, again, np.zeros(len(again), np.int64), state, self.served.runtime.stride)
            replay.run(self.served)
            for carried, new in zip(self.state, replay.state, strict=True):
                carried[series.seat[replay.slots]] = new
        self.returned += len(slots)

    def _fits(self, row: Shelved) -> bool:
        runtime, point = self.served.runtime, 4 * self.series.n_features
        has_state = row.bundle_hash != self.served.bundle_hash or len(row.state) == runtime.state_bytes
        return has_state and len(row.ring) % point == 0 and len(row.ring) // point <= row.seen

    def _put(self, slots: Slots) -> None:
        assert self._shelf is not None
        if len(slots):
            copies = self.copies(slots)
            self._shelf.put(copies.rows)
            self.saved(copies)

    def leave_excess(self) -> None:
        """Lets series leave their seats that there is no more room for, as far as the shelf has them already."""
        series = self.series
        if series.vacancies < 0 and self._shelf is not None:
            leaving = series.longest_silent(-series.vacancies, but=slice(0, 0))
            leaving = leaving[~self._is_unsaved(leaving)]
            series.leave_seats(leaving)
            self.left += len(leaving)

    def copies(self, slots: Slots) -> Copies:
        """What the shelf is to hold of series with a seat."""
        series = self.series
        self._turn += 1
        seats = series.seat[slots]
        states = self.gather(seats)
        rows = [
            Shelved(
                name=series.name(slot),
                last_stamp=int(series.last_stamp[slot]),
                seen=int(series.seen[slot]),
                heard=float(series.heard[slot]),
                bundle_hash=self.served.bundle_hash,
                state=b"".join(array[i].tobytes() for array in states),
                ring=series.recent(slot).tobytes(),
                turn=self._turn,
            )
            for i, slot in enumerate(slots.tolist())
        ]
        return Copies(rows, slots, series.seen[slots], series.beginnings[slots], self.served)

    def saved(self, copies: Copies) -> None:
        """The shelf has them: of those that have not begun anew since, only what comes later is unsaved."""
        same = copies.beginnings == self.series.beginnings[copies.slots]
        if copies.served is self.served:
            self._saves()[copies.slots[same]] = copies.seen[same]

    def unsaved(self) -> Slots:
        """Series with a seat that have moved on since they were last put on the shelf."""
        slots = np.flatnonzero(self.series.seat >= 0)
        return slots[self._is_unsaved(slots)]

    def _is_unsaved(self, slots: Slots) -> NDArray[np.bool_]:
        unsaved: NDArray[np.bool_] = self._saves()[slots] != self.series.seen[slots]
        return unsaved

    def _saves(self) -> NDArray[np.int64]:
        if len(self._saved) < len(self.series.seen):
            self._saved = extended(self._saved, len(self.series.seen), -1)
        return self._saved

    def unshelve(self) -> None:
        """Lets the series of an earlier process go on, but those that are known to have moved on since.

        As many as there is room for come back at once, those heard of last; the others when they are heard of.
        """
        if self._shelf is None:
            return
        series = self.series
        labels = islice(self._shelf.labels(), series.max_series)
        while chunk := list(islice(labels, LEAVE_AT_ONCE)):
            self._turn = max(self._turn, *(label.turn for label in chunk))
            behind = [label for label in chunk if self._is_behind(label)]
            slots = series.slots([label.name for label in behind])
            for slot, label in zip(slots.tolist(), behind, strict=True):
                series.last_stamp[slot], series.seen[slot] = label.last_stamp, label.seen
                series.heard[slot] = label.heard
            absent = slots[series.seat[slots] < 0][: max(series.vacancies, 0)]
            series.take_seats(absent)
            self._fill(slots[series.seat[slots] >= 0])
        self.returned = 0

    def _is_behind(self, label: Label) -> bool:
        known = self.series.known([label.name])
        if label.seen == GONE:
            return False
        return not len(known) or int(self.series.last_stamp[known[0]]) < label.last_stamp
