"""One hosted detector: the version that scores, the state of its series, and what is kept of its points."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detectors.errors import NotFoundError, PreconditionError
from detectors.failpoints import failpoint
from detectors.runtime import FloatArray
from detectors.scorer import Scored, Scorer
from detectors.series import Rows
from detectors.served import Served
from detectors.stamps import StampPolicy, Status
from server.anomalies import Found, top_shares
from server.anomaly_keeping import AnomalyBuffer
from server.background import in_background
from server.config import Budget, DetectorConfig
from server.drift import Drift
from server.keeping import HistoryBuffer, HistorySink, Kept, write
from server.lasting import Lasting
from server.learning import LEARNING_VERSION, learning
from server.metrics import DetectorMetrics
from server.recent import Recent
from server.shadow import IDLE_SECONDS, Shadow, Verdict, compared
from server.spans import Spans
from server.step_times import StepTimes
from server.stepping import Stepper
from server.tracks import Index, Track
from server.usage import Usage
from server.watchers import Watchers

if TYPE_CHECKING:
    from server.resume import Resumed
    from server.series_file import SeriesFile

LAST_TAKEN = int(Status.NOT_DUE)
"""Points with a status up to this were taken."""
SHELVED_AT_ONCE = 256
logger = logging.getLogger("prunewatch.hosted")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the points of one request.

    Attributes:
        scored: Status, score and contribution of each point.
        stamps: [N], also of points that came without.
        flagged: [N]; whether the score has reached the threshold, outside maintenance windows.
        version: The last version that scored.
        point_versions: [N], only when a new version took over in between.
        threshold: What scores were compared with.
        muted: Points whose score has reached it inside a maintenance window; None where there are none.
    """

    scored: Scored
    stamps: NDArray[np.int64]
    flagged: NDArray[np.bool_]
    version: int
    point_versions: NDArray[np.int64] | None
    threshold: float
    muted: NDArray[np.int64] | None = None


class HostedDetector:
    """A detector that takes points.

    Args:
        name: Its name.
        config: How it alarms and judges stamps.
        ring_points: Raw points kept of each series.
        metrics: Its families.
        watchers: Told of anomalies.
        found: Keeps anomalies; None: nobody asks for them later.
        features: Column names; None until the first points bring them.
        clock: Nanoseconds since the epoch, for `max_ahead`.
        budget: Of the hub: which steps its times are of.
        shelf: Where series go that have been silent for longest, and when the process ends; None: all stay in memory.
    """

    def __init__(
        self,
        name: str,
        config: DetectorConfig,
        *,
        ring_points: int,
        metrics: DetectorMetrics,
        watchers: Watchers,
        found: AnomalyBuffer | None = None,
        features: Sequence[str] | None = None,
        clock: Callable[[], int] = time.time_ns,
        budget: Budget | None = None,
        shelf: SeriesFile | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.threshold = config.threshold
        self.metrics = metrics
        self.history: HistorySink | None = None
        """Where points go; None: they are not kept."""
        self.windows = Spans()
        """Maintenance windows, as they are now."""
        self.problem = ""
        """Why it can not score."""
        self.deleted = False
        """Streams outlive their detector; they must learn that it is gone."""
        self.accepted = 0
        """Points taken since this process began."""
        self.features: tuple[str, ...] | None = tuple(features) if features is not None else None
        self.recent = Recent()
        """The newest scores, for people to look at."""
        self.usage = Usage()
        """What the version that scores did with live points since it took over, until a probation would end ..."""
        self.before = Usage()
        """... and what the one before it did."""
        self.lasting = Lasting()
        """What stays flagged, where `triggers.shift` asks for it."""
        self.drift: Drift | None = None
        """Looks for drift; None: nobody asked for it."""
        self.steps = StepTimes((budget or Budget()).batch)
        self.last_step = -math.inf
        """When the newest step began, by `time.perf_counter`."""
        self._arrived = -math.inf
        self._ring_points = ring_points
        self._watchers = watchers
        self._found = found
        self._clock = clock
        self._shelf = shelf
        self._shelving = asyncio.Lock()
        self._policy = _policy(config)
        self.stepper = Stepper(self._step, clock, metrics.queue_seconds.observe)
        self._scorer = self._fresh(self._learning(len(self.features))) if self.features else None
        self._buffer = HistoryBuffer(config.history.max_rows, metrics.history_dropped.inc)
        self._writing = asyncio.Lock()
        self._swapping = asyncio.Lock()

    @property
    def shift_points(self) -> int:
        """Points of all series that are looked at for a lasting shift; 0: nobody asked for it."""
        asked = self.config.triggers.shift
        return asked * max(len(self._scorer.series), 1) if asked and self._scorer is not None else 0

    # taking points

    @property
    def served(self) -> Served | None:
        """The version that scores; None while it learns."""
        served = self._scorer.served if self._scorer else None
        return served if served and served.version != LEARNING_VERSION else None

    @property
    def n_features(self) -> int | None:
        """Width of a point; None until the first points bring it."""
        return len(self.features) if self.features else None

    def take_width(self, n_features: int) -> None:
        """Fixes the features of a detector that had none: it has seen points of that many."""
        self.features = tuple(f"f{i + 1}" for i in range(n_features))
        self._scorer = self._fresh(self._learning(n_features))

    def configure(self, config: DetectorConfig) -> None:
        """Alarms and judges stamps otherwise from now on; what the series have seen stays."""
        self.config = config
        self.threshold = config.threshold
        self._policy = _policy(config)
        if self._scorer is not None:
            self._scorer.policy = self._policy

    def _learning(self, n_features: int) -> Served:
        return learning(n_features, takes_missing=self.config.missing == "carry")

    def track(self, *, ephemeral: bool) -> Track:
        """A place for the series of a new request or stream.

        Args:
            ephemeral: Start from a fresh state that nobody else sees.

        Raises:
            PreconditionError: the detector can not score, or its features are not known yet.
        """
        if not ephemeral:
            return Track(self.live)
        alone = self._fresh(self.live().served, alone=True)

        def scorer() -> Scorer:
            self._require_present()
            return alone

        return Track(scorer)

    def _require_present(self) -> None:
        if self.deleted:
            raise NotFoundError(f"detector {self.name!r} was deleted.", field="detector")

    def live(self) -> Scorer:
        """What scores LIVE points.

        Raises:
            NotFoundError: the detector was deleted.
            PreconditionError: it can not score, or its features are not known yet.
        """
        self._require_present()
        if self.problem:
            raise PreconditionError(
                f"detector {self.name!r} can not score: {self.problem}",
                field="detector",
                hint="Roll back to another version or fit it again.",
            )
        if self._scorer is None:
            raise PreconditionError(
                f"the features of {self.name!r} are not known yet.",
                field="detector",
                hint="Name them when you create it, or send points with stamps in LIVE mode first.",
            )
        return self._scorer

    async def score(
        self,
        scorer: Scorer,
        slots: Rows,
        stamps: NDArray[np.int64] | None,
        values: FloatArray,
    ) -> Outcome:
        """Scores N points, together with those of other callers that wait at this moment.

        Args:
            scorer: Of the request's track.
            slots: [N]; a slice where they are consecutive.
            stamps: [N], or None to go on with row numbers.
            values: [N, F].
        """
        it = await self.stepper.score(scorer, slots, stamps, values, joins=scorer is self._scorer)
        flagged = it.scored.score >= self.threshold
        return Outcome(it.scored, it.stamps, flagged, it.version, it.point_versions, self.threshold)

    def _step(
        self, scorer: Scorer, slots: Rows, stamps: NDArray[np.int64], values: FloatArray, now: int | None
    ) -> tuple[int, Scored]:
        self.last_step = began = time.perf_counter()
        try:
            scored = scorer.step(slots, stamps, values, now)
        except Exception:
            if scorer is self._scorer:
                self.usage.failed += 1
            raise
        seconds = time.perf_counter() - began
        self.metrics.step_seconds.observe(seconds)
        version = scorer.served.version
        if scorer is self._scorer:
            self.usage.time(seconds, len(stamps))
            self.steps.add(seconds, len(stamps))
        if version == LEARNING_VERSION:
            scored.status[scored.status == Status.OK] = Status.LEARNING
        return version, scored

    # afterwards

    def record(self, outcome: Outcome, names: list[str], index: Index, values: FloatArray) -> Outcome:
        """Counts, keeps and announces the points of a LIVE request; returns it without what a window mutes."""
        maintained = self.windows.cover(names, index, outcome.stamps) if self.windows else None
        if maintained is not None:
            outcome = _muted(outcome, maintained)
        scored, flagged = outcome.scored, outcome.flagged
        anomalies = int(np.count_nonzero(flagged))
        self.metrics.count(scored.status, anomalies)
        self.recent.take(self._clock(), scored.score, anomalies)
        if anomalies and not self.deleted:
            self._announce(outcome, names, index)
        if self.usage.points < self.config.probation.points:  # afterwards nobody asks
            due = scored.status == Status.OK
            if maintained is not None:
                due &= ~maintained  # neither an alarm flood nor drift
            self.usage.count(scored.score[due], self.threshold)
        self._arrived = time.monotonic()
        at = slice(None) if maintained is None else ~maintained
        if self.shift_points and outcome.version != LEARNING_VERSION:
            due = scored.status[at] == Status.OK
            self.lasting.take(int(np.count_nonzero(due)), int(np.count_nonzero(flagged[at])), self.shift_points)
        if self.drift is not None and outcome.version != LEARNING_VERSION:
            self.drift.take(outcome.version, scored.score[at], flagged[at], values[at])
        taken = scored.status <= LAST_TAKEN
        self.accepted += (n := int(np.count_nonzero(taken)))
        if not n or (self.history is None and self.served is not None):
            return outcome
        kept = Kept(names, index, outcome.stamps, values, scored.score, flagged)
        self._buffer.append(kept if n == len(taken) else kept.only(taken))
        return outcome

    def _announce(self, outcome: Outcome, names: list[str], index: Index) -> None:
        """Tells listeners of the anomalies of a request, and has them kept."""
        listeners = self._watchers.of(self.name)
        if self._found is None and not listeners:
            return
        rows = np.flatnonzero(outcome.flagged)
        rows = rows[np.argsort(outcome.stamps[rows], kind="stable")]
        versions = outcome.point_versions
        top, shares = top_shares(outcome.scored.contribution[rows])
        found = Found(
            detector=self.name,
            features=self.features or (),
            series=[names[i] for i in index[rows].tolist()],
            stamps=outcome.stamps[rows],
            scores=outcome.scored.score[rows],
            versions=np.full(len(rows), outcome.version, np.int64) if versions is None else versions[rows],
            top=top,
            shares=shares,
            threshold=outcome.threshold,
            found=self._clock() / 1e9,
        )
        if self._found is not None:
            self._found.add(found)
        if listeners:
            for anomaly in found:
                self._watchers.publish(anomaly, listeners)

    @property
    def points_kept(self) -> int:
        """Points kept for training, written or not."""
        return (self.history.rows if self.history else 0) + self._buffer.rows

    async def flush(self) -> None:
        """Makes the points so far durable; on a full disk they stay in memory, the newest ones at least."""
        async with self._writing:
            sink = None if self.deleted else self.history
            if sink is None or not (self._buffer.rows or self._buffer.stalled):
                return
            try:
                if self._buffer.stalled:
                    await in_background(sink.flush)
                self._buffer.stalled = False
                await in_background(write, self._buffer.take(), sink, self.metrics.score.observe_all)
            except OSError:
                self._buffer.stalled = True
                self.metrics.history_failed.inc()
                logger.exception("history of %s could not be written; it will be tried again", self.name)

    async def settle(self) -> None:
        """Waits for writes that are running; nothing more is written of the series."""
        async with self._writing, self._shelving:
            if self._shelf is not None:
                await asyncio.to_thread(self._shelf.close)

    async def history_paths(self) -> list[Path]:
        """Makes the points so far durable; returns the files that hold them, oldest first."""
        await self.flush()
        async with self._writing:
            return self.history.paths() if self.history else []

    async def keep_import(self, stamps: NDArray[np.int64], values: FloatArray) -> None:
        """Keeps points that came from a file."""
        async with self._writing:
            if self.history is not None:
                await in_background(self.history.add_points, stamps, values)

    async def keep_field(self, parts: Sequence[Kept], *, again: bool = False) -> bool:
        """Keeps points that devices have seen beside those that were streamed here.

        Args:
            parts: Them.
            again: They have been given before, and were not durable then.

        Returns:
            Whether they are durable; where not (a full disk, features not known yet) they are to be given again.
        """
        async with self._writing:
            sink = None if self.deleted else self.history
            if sink is None:
                return False
            try:
                await (in_background(sink.flush) if again else in_background(write, parts, sink, _untold))
            except OSError:
                self._buffer.stalled = True
                logger.exception("points of devices for %s could not be written; it will be tried again", self.name)
                return False
        self.accepted += sum(len(part.stamps) for part in parts)
        return True

    def observe(self) -> None:
        """Refreshes the gauges."""
        if (scorer := self._scorer) is not None:
            self.metrics.series.set(len(scorer.series))
            self.metrics.seated.set(scorer.series.seated)
            self.metrics.evicted.inc(scorer.carried.left)
            self.metrics.restored.inc(scorer.carried.returned)
            scorer.carried.left = scorer.carried.returned = 0
            self.metrics.state_bytes.set(scorer.state_bytes)

    # series

    def resume(self, read: Callable[[int], Iterable[Resumed]]) -> None:
        """Lets the series of the last process go on; before anything serves.

        Args:
            read: Gives the newest points of each series, as many of them as it is asked for.
        """
        if self._scorer is None:
            return
        series, shelf = self._scorer.series, self._shelf
        shelved = {it.name: it for it in shelf.labels()} if shelf is not None else {}
        for it in islice(read(series.ring_points), min(series.max_series, series.room)):
            label = shelved.get(it.name)
            if label is not None and it.last_stamp <= label.last_stamp:
                continue  # it goes on from the shelf, bit by bit, or was let go
            values = it.values if label is None else it.since(label.last_stamp, max(label.seen, 0))
            (slot,) = series.slots([it.name])
            series.put(slot, len(values), values)
            series.last_stamp[slot] = it.last_stamp

    def unshelve(self) -> None:
        """Lets the series on the shelf go on where nothing serves yet; where a version does, `serve` has done it."""
        if self._scorer is not None and self.served is None:
            self._scorer.carried.unshelve()

    async def shelve(self) -> None:
        """Puts the series that have moved on on the shelf, where they outlive the process."""
        async with self._shelving:
            shelf, scorer = self._shelf, self._scorer
            if shelf is None or scorer is None or self.deleted:
                return
            slots = scorer.carried.unsaved()
            try:
                for first in range(0, len(slots), SHELVED_AT_ONCE):
                    some = slots[first : first + SHELVED_AT_ONCE]
                    copies = scorer.carried.copies(some[scorer.series.seat[some] >= 0])
                    await in_background(shelf.put, copies.rows)
                    scorer.carried.saved(copies)
                scorer.carried.leave_excess()
                await in_background(shelf.settle)
            except OSError:
                self.metrics.series_failed.inc()
                logger.exception("series of %s could not be put on the shelf; it will be tried again", self.name)

    async def forget_silent(self) -> int:
        """Lets series go that have been silent for longer than the settings say; returns how many."""
        scorer, after = self._scorer, self.config.series_expire_after
        if scorer is None or after is None:
            return 0
        silent = scorer.series.silent_since(self._clock() / 1e9 - after)
        try:
            self.stepper.let_go(scorer, silent)
        except OSError:  # the series of others must not suffer
            logger.exception("silent series of %s could not be forgotten; it will be tried again", self.name)
            return 0
        return len(silent)

    async def forget(self, names: Sequence[str]) -> int:
        """Forgets series: their stamps, state and points in memory; returns how many there were.

        Raises:
            OSError: that can not be written; the series are what they were.
        """
        scorer = self.live()
        slots = scorer.series.known(names)  # nobody else comes between this and the end: slots change hands
        self.stepper.let_go(scorer, slots)
        return len(slots)

    async def restart(self, names: Sequence[str]) -> int:
        """Lets series warm up again, their stamps go on; returns how many there are."""
        scorer = self.live()
        slots = scorer.series.known(names)
        self.stepper.drain()  # points that came before are of the past
        scorer.carried.begin_anew(slots)
        return len(slots)

    # changing versions

    async def serve(self, served: Served, features: Sequence[str]) -> None:
        """Makes a version score: every live series goes on in it as if it had always been there.

        Args:
            served: The loaded version.
            features: Its columns.

        Raises:
            PreconditionError: it takes other features, or more warm-up points than the rings hold.
        """
        async with self._swapping:
            self.require_able(served)
            scorer = self._scorer
            if scorer is None or not self._can_follow(scorer, served):
                if self._shelf is not None:
                    self._shelf.clear()
                self._scorer = self._fresh(served)
            else:
                is_first = scorer.served.version == LEARNING_VERSION  # it takes over from none
                await self._follow(scorer, served)
                if is_first:
                    scorer.carried.unshelve()
                else:
                    self.metrics.swaps.inc()
                    self.before = self.usage
                self.usage = Usage()
                self.steps.clear()
                self.lasting.clear()
            self.features = tuple(features)
            self.problem = ""

    def shadow(self, served: Served) -> Shadow | None:
        """A version that is to follow the live points without serving; None where it can not."""
        scorer = self._scorer
        able = scorer is not None and self.served is not None and self._can_follow(scorer, served)
        return Shadow(scorer, served, self.threshold) if scorer is not None and able else None

    async def prove(self, served: Served) -> Verdict:
        """Has a candidate score live points beside what serves, where there are any."""
        scorer, settings = self._scorer, self.config.probation
        idle = time.monotonic() - self._arrived > IDLE_SECONDS
        if scorer is None or idle or not settings.shadow_points or self.shadow(served) is None:
            return Verdict(0)
        rate = self.config.false_alarm_rate
        return await compared(scorer, served, self.threshold, settings, rate, time.monotonic)

    def require_able(self, served: Served) -> None:
        """Refuses a version that the live series can not go on in.

        Raises:
            PreconditionError: it takes other features, or more warm-up points than the rings hold.
        """
        scorer = self._scorer
        if scorer is None or self.served is None or self._can_follow(scorer, served):
            return  # what learns only begins anew when it can not follow
        raise PreconditionError(
            f"version {served.version} takes {served.runtime.n_features} features and {served.ring_points} points "
            f"to warm up; the live series hold {scorer.series.n_features} features and {scorer.series.ring_points} "
            "points.",
            field="version",
            hint="Raise ring_points and restart, or delete the detector and fit it anew.",
        )

    @staticmethod
    def _can_follow(scorer: Scorer, served: Served) -> bool:
        return served.runtime.n_features == scorer.series.n_features and served.ring_points <= scorer.series.ring_points

    @staticmethod
    async def _follow(scorer: Scorer, served: Served) -> None:
        """Replays the live series in a thread, then flips between two points of every series."""
        successor = scorer.successor(served)
        # Busy series lag a few points again as soon as they were replayed: twice over all is as near as it gets.
        passes = 4 + 2 * len(scorer.series) // 64
        while passes and successor.lag:
            replay = successor.snapshot()
            if replay is None:
                break
            await asyncio.to_thread(successor.run, replay)
            successor.commit(replay)
            passes -= 1
        failpoint("swap.replayed")
        scorer.flip(successor)
        failpoint("swap.flipped")

    def _fresh(self, served: Served, *, alone: bool = False) -> Scorer:
        policy = replace(self._policy, max_ahead=None) if alone else self._policy
        return Scorer(
            served,
            policy=policy,
            ring_points=1 if alone else self._ring_points,  # nothing will ever be replayed from it
            max_series=self.config.max_series,
            memory=None if alone else self.config.series_memory,
            shelf=None if alone else self._shelf,
            clock=lambda: self._clock() / 1e9,
        )


def _policy(config: DetectorConfig) -> StampPolicy:
    ahead = None if config.time == "index" or config.max_ahead is None else int(config.max_ahead * 1e9)
    return StampPolicy(duplicate=config.duplicate, max_ahead=ahead, max_gap=config.gap_nanoseconds)


def _muted(outcome: Outcome, maintained: NDArray[np.bool_]) -> Outcome:
    """No anomalies inside a maintenance window."""
    muted = np.flatnonzero(outcome.flagged & maintained)
    if not len(muted):
        return outcome
    return replace(outcome, flagged=outcome.flagged & ~maintained, muted=muted)


def _untold(_scores: FloatArray) -> None:
    """Scores of devices are not counted among those of here: devices choose what they send."""
