"""Scoring points of many series with one version, and moving on to the next version without a gap.

`Scorer` is the whole scoring path but transport: stamps are judged, state is gathered, one step is run for the batch,
state is scattered. The command line, the hub and the device all score through it, so they give the same scores.
It is meant for one thread; only `Successor.run` may run elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from detectors.bundle import Bundle
from detectors.runtime import FloatArray, Runtime, State
from detectors.series import Rows, SeriesTable, Slots, extended, listed
from detectors.stamps import NO_STAMP, StampPolicy, Status, judge

OK = int(Status.OK)  # looking an enum's member up costs more than comparing a batch with it
REPLAY_SERIES = 64  # replayed together: wide enough for good matrix products, short enough for a breath between


@dataclass(frozen=True)
class Served:
    """One published version, loaded."""

    version: int
    bundle_hash: str
    runtime: Runtime
    warm_up_points: int

    @property
    def ring_points(self) -> int:
        """Points that a series must keep so that this version can be started from them, whole steps of them."""
        stride = self.runtime.stride
        return self.warm_up_points if stride == 1 else self.warm_up_points + 2 * stride

    @classmethod
    def load(cls, bundle: Bundle, version: int | None = None) -> Served:
        """Loads a verified bundle; `version` defaults to the one in its manifest."""
        manifest = bundle.manifest
        return cls(version or manifest.version, bundle.hash, Runtime(bundle.graph), manifest.warm_up_points)


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
    """

    def __init__(
        self,
        served: Served,
        *,
        policy: StampPolicy | None = None,
        ring_points: int = 256,
        max_series: int = 100_000,
    ) -> None:
        self.served = served
        self.policy = policy or StampPolicy()
        ring_points = max(ring_points, served.ring_points)
        self.series = SeriesTable(served.runtime.n_features, ring_points=ring_points, max_series=max_series)
        self._state = served.runtime.fresh(0)
        self._mark = np.empty(0, np.int64)

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
        state = self._gather(slots)
        step = self.served.runtime.step(values, state)
        if isinstance(slots, slice) and self._state and slots == slice(0, len(self._state[0])):
            self._state = step.state  # every series at once: nothing to copy
        else:
            for carried, new in zip(self._state, step.state, strict=True):
                carried[slots] = new
        cold = self.series.seen[slots] < self.served.warm_up_points
        self.series.append(slots, stamps, values)
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
        status[series.seen[slots] < served.warm_up_points] = Status.WARMING_UP
        series.append(slots, stamps, values)
        score = np.full(len(values), np.nan, np.float32)
        contribution = np.zeros(values.shape, np.float32)
        not_due = series.seen[slots] % served.runtime.stride != 0
        status[not_due & (status == OK)] = Status.NOT_DUE
        rows = np.flatnonzero(~not_due)
        if len(rows):
            due = listed(slots)[rows]
            step = served.runtime.step(series.newest(due, served.runtime.stride), self._gather(due))
            for carried, new in zip(self._state, step.state, strict=True):
                carried[due] = new
            warm = status[rows] == OK
            score[rows[warm]], contribution[rows[warm]] = step.score[warm], step.contribution[warm]
        return score, contribution

    def _begin_after_gaps(self, slots: Rows, late: NDArray[np.bool_]) -> None:
        """Series that were silent for too long begin anew: what their state remembers is no longer the past."""
        if np.count_nonzero(late):
            gone = listed(slots)[late]
            self._gather(gone)  # there is a row for each
            self.series.begin_anew(gone)
            for carried in self._state:
                carried[gone] = 0

    def _gather(self, slots: Rows) -> State:
        capacity = len(self.series.seen)
        if self._state and len(self._state[0]) < capacity:
            self._state = tuple(extended(array, capacity) for array in self._state)
        if isinstance(slots, slice):
            return tuple(array[slots] for array in self._state)
        return tuple(array.take(slots, axis=0) for array in self._state)

    def successor(self, served: Served) -> Successor:
        """Begins to bring a new version up to the present of every live series."""
        return Successor(self, served)

    def flip(self, successor: Successor) -> None:
        """Makes the successor the version that scores, between two points of every series.

        Points that arrived since its last `commit` are caught up here, so call it when `successor.lag` is small.
        """
        while (replay := successor.snapshot()) is not None:
            successor.run(replay)
            successor.commit(replay)
        self.served, self._state = successor.served, successor.state


@dataclass
class Replay:
    """Points of a few series that a successor has not seen, copied out of their rings."""

    slots: Slots
    upto: NDArray[np.int64]
    beginnings: NDArray[np.int64]
    points: list[FloatArray]
    state: State


@dataclass(frozen=True)
class Run:
    """What a successor's steps came to, step by step, [B] of each.

    Attributes:
        scores: Of the last points of each step.
        warm: Whether the score is one: the series was warm.
        seconds: Of each step.
    """

    scores: list[FloatArray]
    warm: list[NDArray[np.bool_]]
    seconds: list[float]


class Successor:
    """The next version of a scorer, catching up with the live series off the scoring path.

    Each series starts from fresh state and the points in its ring: that is the reference for "the offline score of the
    version named". Repeat `snapshot` (scoring thread), `run` (any thread) and `commit` (scoring thread) until `lag` is
    small, then `Scorer.flip`.
    """

    def __init__(self, scorer: Scorer, served: Served) -> None:
        if served.runtime.n_features != scorer.series.n_features:
            raise ValueError("a successor must take the same features")
        if served.ring_points > scorer.series.ring_points:
            raise ValueError("the ring is shorter than the warm-up of this version")
        self.served = served
        self._series = scorer.series
        self._state = served.runtime.fresh(0)
        self._replayed = np.empty(0, np.int64)
        self._beginnings = np.empty(0, np.int64)
        """Which beginning of each series was replayed."""

    @property
    def state(self) -> State:
        """State of every slot, as far as it has been replayed."""
        self._grow()
        return self._state

    @property
    def lag(self) -> int:
        """Series that have points this version has not seen."""
        return int(np.count_nonzero(self._missing()))

    def snapshot(self, limit: int = REPLAY_SERIES) -> Replay | None:
        """Copies what up to `limit` series still lack; None when nothing is missing."""
        missing = self._missing()
        slots = np.flatnonzero(missing)
        if not len(slots):
            return None
        series, stride = self._series, self.served.runtime.stride
        # Longest first: the active ones are always a prefix, and busy series never keep the others waiting. What is
        # replayed are whole steps of a version with a stride, so lengths are those of the replay.
        slots = slots[np.argsort(-missing[slots], kind="stable")[:limit]]
        upto = series.seen[slots] // stride * stride
        restart = (self._replayed[slots] == 0) | (series.seen[slots] - self._replayed[slots] > series.ring_points)
        points = []
        for slot, fresh, end in zip(slots, restart, upto, strict=True):
            seen = int(series.seen[slot])
            recent = series.recent(int(slot), None if fresh else int(seen - self._replayed[slot]))
            skipped = -(seen - len(recent)) % stride  # whole steps only, counted from the beginning of the series
            points.append(recent[skipped : len(recent) - (seen - int(end))])
        order = np.argsort([-len(each) for each in points], kind="stable")
        slots, upto, restart, points = slots[order], upto[order], restart[order], [points[i] for i in order]
        state = tuple(array[slots] for array in self._state)
        for array in state:
            array[restart] = 0
        return Replay(slots, upto, series.beginnings[slots], points, state)

    def run(self, replay: Replay) -> Run:
        """Steps the new version over the copied points; touches nothing shared but the copies."""
        stride, run = self.served.runtime.stride, Run([], [], [])
        before = np.array([upto - len(points) for upto, points in zip(replay.upto, replay.points, strict=True)])
        lengths = np.array([len(points) // stride for points in replay.points])
        for t in range(int(lengths.max())):
            active = int((lengths > t).sum())
            if stride == 1:
                values = np.stack([points[t] for points in replay.points[:active]])
            else:
                values = np.stack([points[t * stride : (t + 1) * stride] for points in replay.points[:active]])
            began = perf_counter()
            step = self.served.runtime.step(values, tuple(array[:active] for array in replay.state))
            run.seconds.append(perf_counter() - began)
            run.scores.append(step.score)
            run.warm.append(before[:active] + (t + 1) * stride > self.served.warm_up_points)
            for carried, new in zip(replay.state, step.state, strict=True):
                carried[:active] = new
        return run

    def commit(self, replay: Replay) -> None:
        """Takes over the state that `run` reached."""
        self._grow()
        for carried, new in zip(self._state, replay.state, strict=True):
            carried[replay.slots] = new
        self._replayed[replay.slots] = replay.upto
        self._beginnings[replay.slots] = replay.beginnings

    def _missing(self) -> NDArray[np.int64]:
        """Points of each series that could be replayed now, at most a ring; series that began anew start over."""
        self._grow()
        series, stride = self._series, self.served.runtime.stride
        anew = self._beginnings != series.beginnings
        if np.count_nonzero(anew):
            self._replayed[anew] = 0
            for array in self._state:
                array[anew] = 0
            self._beginnings[anew] = series.beginnings[anew]
        missing: NDArray[np.int64] = np.minimum(series.seen // stride * stride - self._replayed, series.ring_points)
        return missing

    def _grow(self) -> None:
        capacity = len(self._series.seen)
        if len(self._replayed) < capacity:
            self._replayed = extended(self._replayed, capacity)
            self._beginnings = extended(self._beginnings, capacity)
            self._state = tuple(extended(array, capacity) for array in self._state)


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
