"""Scoring points of many series with one version, and moving on to the next version without a gap.

`Scorer` is the whole scoring path but transport: stamps are judged, state is gathered, one step is run for the batch,
state is scattered. The command line, the hub and the device all score through it, so they give the same scores.
It is meant for one thread; only `Successor.run` may run elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray, State
from detectors.series import Rows, SeriesTable, Slots, extended, listed
from detectors.served import Served
from detectors.shelf import GONE, Label, Shelf, Shelved
from detectors.stamps import NO_STAMP, StampPolicy, Status, judge
from detectors.successor import Successor, replay_of

OK = int(Status.OK)  # looking an enum's member up costs more than comparing a batch with it
LEAVE_AT_ONCE = 256
"""Series that leave their seats together, where there are that many: one writing for all of them."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What became of N points.

    Attributes:
        status: [N] of `Status`.
        score: [N]; NaN where there is none (every status but `OK`).
        contribution: [N, F]; zeros where there is no score. They sum to the error.
    """

    status: NDArray[np.uint8]
    score: FloatArray
    contribution: FloatArray


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


class Scorer:
    """Scores points of many series with the version it holds.

    Args:
        served: The version to start with.
        policy: How stamps are judged.
        ring_points: K, raw points kept of each series; at least the version's warm-up.
        max_series: Refuse more series than this.
        memory: Bytes that state and rings of all series may take; None: as many as there are series. Needs a `shelf`.
        shelf: Where series go that have been silent for longest when there is no room, and when the process ends.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        served: Served,
        *,
        policy: StampPolicy | None = None,
        ring_points: int = 256,
        max_series: int = 100_000,
        memory: int | None = None,
        shelf: Shelf | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.served = served
        self.policy = policy or StampPolicy()
        ring_points = max(ring_points, served.ring_points)
        self.series = SeriesTable(
            served.runtime.n_features, ring_points=ring_points, max_series=max_series, clock=clock
        )
        self.left = 0
        """Series that have left their seats for others ..."""
        self.returned = 0
        """... and that have come back from the shelf."""
        self._memory = memory if shelf is not None else None
        self._shelf = shelf
        self._is_stuck = False
        self._turn = 0
        self._saved = np.empty(0, np.int64)
        """Points that each series had seen when it was last put on the shelf."""
        self._state = served.runtime.fresh(0)
        self._mark = np.empty(0, np.int64)
        self._make_room()

    @property
    def state_bytes(self) -> int:
        """Memory held for all series: carried state and rings."""
        return self.series.bytes + sum(array.nbytes for array in self._state)

    def rounds(self, slots: Slots) -> Sequence[NDArray[np.int64] | slice]:
        """Splits points into rounds in which every series occurs at most once, in order of arrival."""
        n = len(slots)
        if len(self._mark) < len(self.series.seen):
            self._mark = np.empty(len(self.series.seen), np.int64)
        index = np.arange(n)
        self._mark[slots] = index
        if bool((self._mark[slots] == index).all()):
            return [slice(None)]
        order = np.argsort(slots, kind="stable")
        ordered = slots[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        rank = np.empty(n, np.int64)
        rank[order] = index - np.repeat(starts, np.diff(np.r_[starts, n]))
        by_rank = np.argsort(rank, kind="stable")
        return np.split(by_rank, np.cumsum(np.bincount(rank))[:-1])

    def score(self, slots: Slots, stamps: NDArray[np.int64], values: FloatArray, now: int | None = None) -> Scored:
        """Scores N points at once; several points of one series are taken in the order given.

        Args:
            slots: [N] of `series.slots`.
            stamps: [N] int64.
            values: [N, F] float32; a row with NaN or infinity becomes `INVALID` and changes nothing.
            now: The clock, for `StampPolicy.max_ahead`.
        """
        return merged([(rows, self.step(slots[rows], stamps[rows], values[rows], now)) for rows in self.rounds(slots)])

    def step(self, slots: Rows, stamps: NDArray[np.int64], values: FloatArray, now: int | None = None) -> Scored:
        """Scores one round: as `score`, but each series at most once; consecutive `slots` may come as a slice."""
        series = self.series
        last = series.last_stamp[slots]
        status = judge(stamps, last, self.policy, now)
        finite = np.isfinite(values)
        if np.count_nonzero(finite) < finite.size:
            if self.served.runtime.takes_missing:
                finite |= np.isnan(values)
            status[(status == OK) & ~finite.all(axis=1)] = Status.INVALID
        accepted = status == OK
        if not series.is_whole:
            slots = listed(slots)
            if len(slots) > series.room:  # there are not enough seats for all of them at once
                half = len(slots) // 2
                return merged(
                    [
                        (rows, self.step(slots[rows], stamps[rows], values[rows], now))
                        for rows in (np.arange(half), np.arange(half, len(slots)))
                    ]
                )
        if self.policy.max_gap is not None:
            self._begin_after_gaps(slots, accepted & (last != NO_STAMP) & (stamps - last > self.policy.max_gap))
        if np.count_nonzero(accepted) == len(accepted):
            score, contribution = self._advance(slots, stamps, values, status)
            return Scored(status, score, contribution)
        slots = listed(slots)
        score = np.full(len(slots), np.nan, np.float32)
        contribution = np.zeros(values.shape, np.float32)
        rows = np.flatnonzero(accepted)
        if len(rows):
            warm = status[rows]
            score[rows], contribution[rows] = self._advance(slots[rows], stamps[rows], values[rows], warm)
            status[rows] = warm
        return Scored(status, score, contribution)

    def _advance(
        self, slots: Rows, stamps: NDArray[np.int64], values: FloatArray, status: NDArray[np.uint8]
    ) -> tuple[FloatArray, FloatArray]:
        """Steps accepted points; writes `WARMING_UP` and `NOT_DUE` into `status` where they apply."""
        if self.served.runtime.stride > 1:
            return self._advance_due(slots, stamps, values, status)
        seats = self._seats(slots)
        state = self._gather(seats)
        step = self.served.runtime.step(values, state)
        if isinstance(seats, slice) and self._state and seats == slice(0, len(self._state[0])):
            self._state = step.state  # every series at once: nothing to copy
        else:
            for carried, new in zip(self._state, step.state, strict=True):
                carried[seats] = new
        cold = self.series.seen[slots] < self.served.warm_up_points
        self.series.append(slots, seats, stamps, values)
        score = step.score
        if np.count_nonzero(cold):
            status[cold] = Status.WARMING_UP
            score[cold] = np.nan
            step.contribution[cold] = 0
        return score, step.contribution

    def _advance_due(
        self, slots: Rows, stamps: NDArray[np.int64], values: FloatArray, status: NDArray[np.uint8]
    ) -> tuple[FloatArray, FloatArray]:
        """`_advance` for a version that scores every n-th point: the points between wait in the ring."""
        served, series = self.served, self.series
        seats = self._seats(slots)
        status[series.seen[slots] < served.warm_up_points] = Status.WARMING_UP
        series.append(slots, seats, stamps, values)
        score = np.full(len(values), np.nan, np.float32)
        contribution = np.zeros(values.shape, np.float32)
        not_due = series.seen[slots] % served.runtime.stride != 0
        status[not_due & (status == OK)] = Status.NOT_DUE
        rows = np.flatnonzero(~not_due)
        if len(rows):
            due, places = listed(slots)[rows], listed(seats)[rows]
            step = served.runtime.step(series.newest(due, places, served.runtime.stride), self._gather(places))
            for carried, new in zip(self._state, step.state, strict=True):
                carried[places] = new
            warm = status[rows] == OK
            score[rows[warm]], contribution[rows[warm]] = step.score[warm], step.contribution[warm]
        return score, contribution

    def _begin_after_gaps(self, slots: Rows, late: NDArray[np.bool_]) -> None:
        """Series that were silent for too long begin anew: what their state remembers is no longer the past."""
        if np.count_nonzero(late):
            self.begin_anew(listed(slots)[late])

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
        self._gather(seats)  # there is a row for each
        for carried in self._state:
            carried[seats] = 0

    def _gather(self, seats: Rows) -> State:
        capacity = self.series.seats_made
        if self._state and len(self._state[0]) < capacity:
            self._state = tuple(extended(array, capacity) for array in self._state)
        if isinstance(seats, slice):
            return tuple(array[seats] for array in self._state)
        return tuple(array.take(seats, axis=0) for array in self._state)

    # room

    def _make_room(self) -> None:
        """Fits the number of seats to the version that serves."""
        if self._memory is not None:
            series = self.series
            each = 4 * series.ring_points * series.n_features + self.served.runtime.state_bytes
            series.room = max(self._memory // each, 1)

    def _seats(self, slots: Rows) -> Rows:
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
        self._gather(seats)
        for slot, seat, row in zip(slots.tolist(), seats.tolist(), rows, strict=True):
            series.put(slot, row.seen, np.frombuffer(row.ring, np.float32).reshape(-1, series.n_features))
            if row.bundle_hash != self.served.bundle_hash:
                foreign.append(slot)
                continue
            at = 0
            for carried, shape in zip(self._state, shapes, strict=True):
                size = 4 * int(np.prod(shape))
                carried[seat] = np.frombuffer(row.state[at : at + size], np.float32).reshape(shape)
                at += size
            self._saves()[slot] = row.seen
        if foreign:
            again = np.array(foreign)
            state = self.served.runtime.fresh(len(again))
            replay = replay_of(series, again, np.zeros(len(again), np.int64), state, self.served.runtime.stride)
            replay.run(self.served)
            for carried, new in zip(self._state, replay.state, strict=True):
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
        states = self._gather(seats)
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

    # moving on

    def successor(self, served: Served) -> Successor:
        """Begins to bring a new version up to the present of every live series."""
        return Successor(self.series, served)

    def flip(self, successor: Successor) -> None:
        """Makes the successor the version that scores, between two points of every series.

        Points that arrived since its last `commit` are caught up here, so call it when `successor.lag` is small.
        """
        while (replay := successor.snapshot()) is not None:
            successor.run(replay)
            successor.commit(replay)
        self.served, self._state = successor.served, successor.state
        self._saves()[:] = -1  # the shelf holds what the version before carried
        self._make_room()


def score_alone(
    scorer: Scorer, name: str, stamps: NDArray[np.int64], values: FloatArray, chunk: int = 512
) -> Iterator[Scored]:
    """Scores one series point after point, in chunks so that a caller can show progress."""
    for start in range(0, len(values), chunk):
        rows = slice(start, start + chunk)
        slots = np.repeat(scorer.series.slots([name]), len(values[rows]))
        yield scorer.score(slots, stamps[rows], values[rows])


def merged(parts: Sequence[tuple[NDArray[np.int64] | slice, Scored]]) -> Scored:
    """Puts the rounds of `Scorer.rounds` back into the order of arrival."""
    if len(parts) == 1 and isinstance(parts[0][0], slice):
        return parts[0][1]
    n = sum(len(scored.status) for _, scored in parts)
    status = np.empty(n, np.uint8)
    score = np.empty(n, np.float32)
    contribution = np.empty((n, parts[0][1].contribution.shape[1]), np.float32)
    for rows, scored in parts:
        status[rows], score[rows], contribution[rows] = scored.status, scored.score, scored.contribution
    return Scored(status, score, contribution)
