"""Scoring points of many series with one version, and moving on to the next version without a gap.

`Scorer` is the whole scoring path but transport: stamps are judged, state is gathered, one step is run for the batch,
state is scattered. The command line, the hub and the device all score through it, so they give the same scores.
It is meant for one thread; only `Successor.run` may run elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.carried import Carried
from detectors.runtime import FloatArray
from detectors.series import Rows, SeriesTable, Slots, listed
from detectors.served import Served
from detectors.shelf import Shelf
from detectors.stamps import NO_STAMP, StampPolicy, Status, judge
from detectors.successor import Successor

OK = int(Status.OK)  # looking an enum's member up costs more than comparing a batch with it


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
        self.policy = policy or StampPolicy()
        ring_points = max(ring_points, served.ring_points)
        self.series = SeriesTable(
            served.runtime.n_features, ring_points=ring_points, max_series=max_series, clock=clock
        )
        self.carried = Carried(self.series, served, memory=memory, shelf=shelf)
        self._mark = np.empty(0, np.int64)

    @property
    def served(self) -> Served:
        """The version that scores."""
        return self.carried.served

    @property
    def state_bytes(self) -> int:
        """Memory held for all series: carried state and rings."""
        return self.carried.bytes

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
        if not math.isfinite(np.vdot(values, values)):  # one number for all of them; it may also overflow
            finite = np.isfinite(values)
            if self.served.runtime.takes_missing:
                finite |= np.isnan(values)
            status[(status == OK) & ~finite.all(axis=1)] = Status.INVALID
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
            gone_by = (last != NO_STAMP) & (stamps - last > self.policy.max_gap)
            self._begin_after_gaps(slots, (status == OK) & gone_by)
        if status.tobytes().count(OK) == len(status):
            score, contribution = self._advance(slots, stamps, values, status)
            return Scored(status, score, contribution)
        slots = listed(slots)
        score = np.full(len(slots), np.nan, np.float32)
        contribution = np.zeros(values.shape, np.float32)
        rows = np.flatnonzero(status == OK)
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
        seats = self.carried.seats(slots)
        score, contribution = self.carried.step(seats, values)
        cold = self.series.seen[slots] < self.served.warm_up_points
        self.series.append(slots, seats, stamps, values)
        if np.count_nonzero(cold):
            status[cold] = Status.WARMING_UP
            score[cold] = np.nan
            contribution[cold] = 0
        return score, contribution

    def _advance_due(
        self, slots: Rows, stamps: NDArray[np.int64], values: FloatArray, status: NDArray[np.uint8]
    ) -> tuple[FloatArray, FloatArray]:
        """`_advance` for a version that scores every n-th point: the points between wait in the ring."""
        served, series = self.served, self.series
        seats = self.carried.seats(slots)
        status[series.seen[slots] < served.warm_up_points] = Status.WARMING_UP
        series.append(slots, seats, stamps, values)
        score = np.full(len(values), np.nan, np.float32)
        contribution = np.zeros(values.shape, np.float32)
        not_due = series.seen[slots] % served.runtime.stride != 0
        status[not_due & (status == OK)] = Status.NOT_DUE
        rows = np.flatnonzero(~not_due)
        if len(rows):
            due, places = listed(slots)[rows], listed(seats)[rows]
            newest = series.newest(due, places, served.runtime.stride)
            due_score, due_contribution = self.carried.step(places, newest)
            warm = status[rows] == OK
            score[rows[warm]], contribution[rows[warm]] = due_score[warm], due_contribution[warm]
        return score, contribution

    def _begin_after_gaps(self, slots: Rows, late: NDArray[np.bool_]) -> None:
        """Series that were silent for too long begin anew: what their state remembers is no longer the past."""
        if np.count_nonzero(late):
            self.carried.begin_anew(listed(slots)[late])

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
        self.carried.take_over(successor)


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
