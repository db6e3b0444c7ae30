"""The steps of one detector: points that wait at the same time, from whatever callers, go into one.

A caller that is alone is stepped at once. Where there are several, a request waits until the event loop has read what
has arrived beside it: nothing waits for a clock. Requests with many points of one series, or of many series, are
stepped by themselves, with others in between.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray
from detectors.scorer import Scored, Scorer, merged
from detectors.series import Rows, Slots, listed
from detectors.stamps import NO_STAMP

BREATH_SECONDS = 5e-3
"""A request of many rounds lets others in after so long."""
JOINED_POINTS = 256
"""Longer requests are stepped by themselves ..."""
BATCH_POINTS = 4096
"""... and so many points at most in one batch: neither keeps others waiting for long."""
JOINED_ROUNDS = 4
"""Points of one series in a request that still joins: each is a step of the whole batch."""
Step = Callable[[Scorer, Rows, NDArray[np.int64], FloatArray, int | None], tuple[int, Scored]]
"""Steps points of different series; returns the version that scored them."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """What became of the points of one request.

    Attributes:
        scored: Status, score and contribution of each point.
        stamps: [N], also of points that came without.
        version: The last version that scored.
        point_versions: [N], only when a new version took over in between.
    """

    scored: Scored
    stamps: NDArray[np.int64]
    version: int
    point_versions: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    scorer: Scorer
    slots: NDArray[np.int64]
    stamps: NDArray[np.int64] | None
    values: FloatArray
    answer: asyncio.Future[Stepped]
    since: float
    """When it came."""


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """A request of many rounds that lets others in between them."""

    scorer: Scorer
    slots: NDArray[np.int64]
    left: deque[NDArray[np.int64]]


class Stepper:
    """Decides what is stepped together.

    Args:
        step: Steps points of different series.
        clock: Nanoseconds since the epoch, for `max_ahead`.
        waited: Told how many seconds points have waited for the step that they share.
    """

    def __init__(
        self, step: Step, clock: Callable[[], int], waited: Callable[[float], None] = lambda _seconds: None
    ) -> None:
        self.callers = 0
        """Streams that are open and calls that run: what may have points waiting at the same time."""
        self._step = step
        self._clock = clock
        self._waited = waited
        self._waiting: list[_Waiting] = []
        self._running: list[_Running] = []

    @contextmanager
    def calling(self) -> Iterator[None]:
        """While a call runs or a stream is open."""
        self.callers += 1
        try:
            yield
        finally:
            self.callers -= 1

    async def score(
        self, scorer: Scorer, slots: Rows, stamps: NDArray[np.int64] | None, values: FloatArray, *, joins: bool
    ) -> Stepped:
        """Scores N points.

        Args:
            scorer: Of the request's track.
            slots: [N]; a slice where they are consecutive.
            stamps: [N], or None to go on with row numbers.
            values: [N, F].
            joins: Whether others score with the same scorer.
        """
        rounds = [slice(None)] if isinstance(slots, slice) else scorer.rounds(slots)
        short = 0 < len(values) <= JOINED_POINTS and len(rounds) <= JOINED_ROUNDS
        if not (joins and short and self.callers > 1):
            return await self._alone(scorer, slots, stamps, values, rounds)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self.drain)
        answer: asyncio.Future[Stepped] = loop.create_future()
        self._waiting.append(_Waiting(scorer, listed(slots), stamps, values, answer, time.perf_counter()))
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.cancelled() or not answer.done():
                raise
            _cancel_later()  # its points were taken
            return answer.result()

    def drain(self) -> None:
        """Steps what waits now."""
        waiting = [it for it in self._waiting if not it.answer.done()]  # whoever was cancelled waits no more
        self._waiting = []
        while waiting:
            batch, points = [waiting[0]], len(waiting[0].slots)
            for it in waiting[1:]:
                if it.scorer is not batch[0].scorer or points + len(it.slots) > BATCH_POINTS:
                    break
                batch.append(it)
                points += len(it.slots)
            waiting = waiting[len(batch) :]
            try:
                answers = self._together(batch)
            except Exception as error:  # noqa: BLE001  (each of them is told, and the interceptor makes a status of it)
                for it in batch:
                    it.answer.set_exception(error)
            else:
                for it, answer in zip(batch, answers, strict=True):
                    it.answer.set_result(answer)

    def let_go(self, scorer: Scorer, slots: Slots) -> None:
        """Forgets series between two points: what waits is taken before, the rest of long requests begins new ones.

        Raises:
            OSError: as of `Carried.let_go`; the series are what they were.
        """
        if not len(slots):
            return
        self.drain()  # whoever waits knows the series by their slots, and so does whoever runs
        names = {slot: scorer.series.name(slot) for slot in slots.tolist()}
        scorer.carried.let_go(slots)
        for running in self._running:
            if running.scorer is scorer and running.left:
                left = np.concatenate(running.left)
                rows = left[np.isin(running.slots[left], slots)]
                gone, place = np.unique(running.slots[rows], return_inverse=True)
                running.slots[rows] = scorer.series.slots([names[slot] for slot in gone.tolist()])[place]

    def _together(self, batch: Sequence[_Waiting]) -> list[Stepped]:
        scorer, began = batch[0].scorer, time.perf_counter()
        for it in batch:
            self._waited(began - it.since)
        slots = np.concatenate([it.slots for it in batch])
        values = np.concatenate([it.values for it in batch])
        stamps = np.concatenate([np.zeros(len(it.slots), np.int64) if it.stamps is None else it.stamps for it in batch])
        counted = None
        if any(it.stamps is None for it in batch):
            counted = np.concatenate([np.full(len(it.slots), it.stamps is None) for it in batch])
        now, version = self._now(scorer), 0
        parts: list[tuple[Rows, Scored]] = []
        for rows in scorer.rounds(slots):
            if counted is not None:
                stamps[rows] = np.where(counted[rows], continued(scorer, slots[rows]), stamps[rows])
            version, scored = self._step(scorer, slots[rows], stamps[rows], values[rows], now)
            parts.append((rows, scored))
        scored, end, answers = merged(parts), 0, []
        for it in batch:
            own = slice(end, end := end + len(it.slots))
            mine = Scored(scored.status[own], scored.score[own], scored.contribution[own])
            answers.append(Stepped(mine, stamps[own], version))
        return answers

    async def _alone(
        self,
        scorer: Scorer,
        slots: Rows,
        stamps: NDArray[np.int64] | None,
        values: FloatArray,
        rounds: Sequence[Rows],
    ) -> Stepped:
        now = self._now(scorer)
        if len(rounds) == 1:
            stamps = continued(scorer, slots) if stamps is None else stamps
            version, scored = self._step(scorer, slots, stamps, values, now)
            return Stepped(scored, stamps, version)
        running = _Running(scorer, listed(slots).copy(), deque(map(listed, rounds)))
        used = np.empty(len(values), np.int64) if stamps is None else stamps
        parts: list[tuple[Rows, Scored]] = []
        versions = []
        breath, cancelled = time.perf_counter() + BREATH_SECONDS, False
        self._running.append(running)
        try:
            while running.left:
                rows = running.left.popleft()
                here = running.slots[rows]
                if stamps is None:
                    used[rows] = continued(scorer, here)
                version, scored = self._step(scorer, here, used[rows], values[rows], now)
                versions.append(version)
                parts.append((rows, scored))
                if time.perf_counter() > breath:
                    cancelled |= await _breathe()
                    breath = time.perf_counter() + BREATH_SECONDS
        finally:
            self._running.remove(running)
        point_versions = None
        if len(set(versions)) > 1:
            point_versions = np.empty(len(values), np.int64)
            for (at, _), version in zip(parts, versions, strict=True):
                point_versions[at] = version
        if cancelled:
            _cancel_later()
        return Stepped(merged(parts), used, versions[-1], point_versions)

    def _now(self, scorer: Scorer) -> int | None:
        return self._clock() if scorer.policy.max_ahead is not None else None


async def _breathe() -> bool:
    """Lets others in; returns whether the call was cancelled meanwhile.

    A message that was begun is finished all the same, so that its points are recorded: they are in the series already.
    """
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        return True
    return False


def _cancel_later() -> None:
    """Cancels the call at its next await, when its points are recorded."""
    if (task := asyncio.current_task()) is not None:
        task.cancel()


def continued(scorer: Scorer, slots: Rows) -> NDArray[np.int64]:
    """The next row number of each of `slots`."""
    last = scorer.series.last_stamp[slots]
    return np.where(last == NO_STAMP, 0, last + 1)
