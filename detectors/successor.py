"""Bringing a new version up to the present of every live series, off the scoring path."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray, State
from detectors.series import SeriesTable, Slots, extended
from detectors.served import Served

REPLAY_SERIES = 64  # replayed together: wide enough for good matrix products, short enough for a breath between


@dataclass
class Replay:
    """Points of a few series that a successor has not seen, copied out of their rings."""

    slots: Slots
    upto: NDArray[np.int64]
    beginnings: NDArray[np.int64]
    points: list[FloatArray]
    state: State

    def run(self, served: Served) -> Run:
        """Steps a version over the points; touches nothing but the copies, so any thread may."""
        stride, run = served.runtime.stride, Run([], [], [])
        before = np.array([upto - len(points) for upto, points in zip(self.upto, self.points, strict=True)])
        lengths = np.array([len(points) // stride for points in self.points])
        for t in range(int(lengths.max(initial=0))):
            active = int((lengths > t).sum())
            if stride == 1:
                values = np.stack([points[t] for points in self.points[:active]])
            else:
                values = np.stack([points[t * stride : (t + 1) * stride] for points in self.points[:active]])
            began = perf_counter()
            step = served.runtime.step(values, tuple(array[:active] for array in self.state))
            run.seconds.append(perf_counter() - began)
            run.scores.append(step.score)
            run.warm.append(before[:active] + (t + 1) * stride > served.warm_up_points)
            for carried, new in zip(self.state, step.state, strict=True):
                carried[:active] = new
        return run


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

    def __init__(self, series: SeriesTable, served: Served) -> None:
        if served.runtime.n_features != series.n_features:
            raise ValueError("a successor must take the same features")
        if served.ring_points > series.ring_points:
            raise ValueError("the ring is shorter than the warm-up of this version")
        self.served = served
        self._series = series
        self._state = served.runtime.fresh(0)
        self._replayed = np.empty(0, np.int64)
        self._beginnings = np.empty(0, np.int64)
        """Which beginning of each series was replayed."""

    @property
    def state(self) -> State:
        """State at every seat, as far as it has been replayed."""
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
        # Longest first: the active ones are always a prefix, and busy series never keep the others waiting.
        slots = slots[np.argsort(-missing[slots], kind="stable")[:limit]]
        state = tuple(array[self._series.seat[slots]] for array in self._state)
        return replay_of(self._series, slots, self._replayed[slots], state, self.served.runtime.stride)

    def run(self, replay: Replay) -> Run:
        """Steps the new version over the copied points; any thread may."""
        return replay.run(self.served)

    def commit(self, replay: Replay) -> None:
        """Takes over the state that `run` reached, of those series that are still where they were."""
        self._grow()
        seats = self._series.seat[replay.slots]
        same = (seats >= 0) & (replay.beginnings == self._series.beginnings[replay.slots])
        for carried, new in zip(self._state, replay.state, strict=True):
            carried[seats[same]] = new[same]
        self._replayed[replay.slots[same]] = replay.upto[same]
        self._beginnings[replay.slots[same]] = replay.beginnings[same]

    def _missing(self) -> NDArray[np.int64]:
        """Points of each series that could be replayed now, at most a ring; series that began anew start over."""
        self._grow()
        series, stride = self._series, self.served.runtime.stride
        anew = (self._beginnings != series.beginnings) & (series.seat >= 0)
        if np.count_nonzero(anew):
            self._replayed[anew] = 0
            for array in self._state:
                array[series.seat[anew]] = 0
            self._beginnings[anew] = series.beginnings[anew]
        missing: NDArray[np.int64] = np.minimum(series.seen // stride * stride - self._replayed, series.ring_points)
        missing[series.seat < 0] = 0  # they are replayed when they come back
        return missing

    def _grow(self) -> None:
        capacity = len(self._series.seen)
        if len(self._replayed) < capacity:
            self._replayed = extended(self._replayed, capacity)
            self._beginnings = extended(self._beginnings, capacity)
        if self._state and len(self._state[0]) < self._series.seats_made:
            self._state = tuple(extended(array, self._series.seats_made) for array in self._state)


def replay_of(series: SeriesTable, slots: Slots, replayed: NDArray[np.int64], state: State, stride: int) -> Replay:
    """Copies what a version has not seen of series with a seat out of their rings.

    What is replayed are whole steps of a version with a stride, counted from the beginning of a series.

    Args:
        series: Where they are.
        slots: [N] of series.
        replayed: [N], points that it has seen; 0, or more than a ring ago: it starts from a fresh state.
        state: Its state of these series, [N, ...]; copies that become those of the replay.
        stride: Points of a step.
    """
    seen = series.seen[slots]
    upto = seen // stride * stride
    restart = (replayed == 0) | (seen - replayed > series.ring_points)
    points = []
    for slot, fresh, total, done, end in zip(slots.tolist(), restart, seen.tolist(), replayed, upto, strict=True):
        recent = series.recent(slot, None if fresh else int(total - done))
        skipped = -(total - len(recent)) % stride
        points.append(recent[skipped : len(recent) - (total - int(end))])
    order = np.argsort([-len(each) for each in points], kind="stable")
    slots, upto, restart, points = slots[order], upto[order], restart[order], [points[i] for i in order]
    state = tuple(array[order] for array in state)
    for array in state:
        array[restart] = 0
    return Replay(slots, upto, series.beginnings[slots], points, state)
