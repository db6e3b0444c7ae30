"""What a device lets the hub learn from: flagged windows, and stretches of normal points, within limits.

It is given the points that were taken every second or so, by a thread, after they were scored. A window has the points
before the first flagged one that a detector needs to warm up, and some after the last. A stretch is long enough to warm
up and to learn from what follows. Both are runs of points without a gap.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray
from server.edge.device import FieldLimits
from server.edge.reports import FieldPoints

AFTER_POINTS = 16
"""Points that a window has after its last flagged one ..."""
FLAGGED_POINTS = 256
"""... and between the first and the last flagged one at most."""
LEARNED_POINTS = 192
"""Points of a stretch beyond those to warm up: 64 at least are asked for."""
MEMORY_BYTES = 1 << 20
"""For the newest points of the series that are followed."""
SILENT_CALLS = 600
"""After so many calls without a point a series makes room for others."""
HOUR = 3600.0
BURST = 1 / 12
"""Of what may be sent in an hour, so much at once."""


class Allowance:
    """So much an hour, spread evenly.

    Args:
        clock: Seconds that only ever pass.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._per_hour = 0.0
        self._left = 0.0
        self._at = clock()

    def limit(self, per_hour: float) -> None:
        """Changes how much it is; what has been saved up stays."""
        self._refill()
        self._left = min(self._left, self._most(per_hour)) if self._per_hour else self._most(per_hour)
        self._per_hour = per_hour

    def has(self, amount: float) -> bool:
        """Whether so much may be sent now; more than a burst may once in so long as it takes to save it up."""
        self._refill()
        return self._per_hour > 0 and self._left >= min(amount, self._most(self._per_hour))

    def take(self, amount: float) -> None:
        """Sends it; what is lacking is saved up first."""
        self._left -= amount

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._left + (now - self._at) / HOUR * self._per_hour, self._most(self._per_hour))
        self._at = now

    @staticmethod
    def _most(per_hour: float) -> float:
        return max(per_hour * BURST, 1.0)


class Limits:
    """What one device may send, all its detectors together.

    Args:
        clock: Seconds that only ever pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.wanted = False
        self.windows = Allowance(clock)
        self.bytes = Allowance(clock)

    def set(self, limits: FieldLimits) -> None:
        """Heeds what the hub has said."""
        self.wanted = limits.wanted
        self.windows.limit(limits.windows_per_hour)
        self.bytes.limit(limits.bytes_per_hour)


@dataclass
class _Recent:
    """The newest points of a series, in order and without a gap."""

    stamps: NDArray[np.int64]
    values: FloatArray
    scores: FloatArray
    flagged: NDArray[np.bool_]
    unsent: int = 0
    """Points at the end that were in no stretch and are after the last window."""
    told: int = 0
    """Points at the front whose flags were seen to."""
    turn: int = 0
    """When a stretch of it was sent, in turns; 0: never."""
    heard: int = 0
    """At which call it was heard of last."""

    def take(
        self, stamps: NDArray[np.int64], values: FloatArray, scores: FloatArray, flagged: NDArray[np.bool_]
    ) -> None:
        """Appends points."""
        self.stamps, self.values = np.concatenate([self.stamps, stamps]), np.concatenate([self.values, values])
        self.scores, self.flagged = np.concatenate([self.scores, scores]), np.concatenate([self.flagged, flagged])
        self.unsent += len(stamps)

    def keep(self, points: int) -> None:
        """Forgets all but the newest."""
        if (gone := len(self.stamps) - points) > 0:
            self.stamps, self.values = self.stamps[gone:], self.values[gone:]
            self.scores, self.flagged = self.scores[gone:], self.flagged[gone:]
            self.told = max(self.told - gone, 0)


class FieldSink:
    """Takes the place of a history (`server.keeping.HistorySink`) on a device: points come by and few are sent on.

    Args:
        detector: Name of the detector.
        features: [F] names.
        warm_up_points: Of the version that serves.
        max_gap: Nanoseconds of silence after which a series begins anew; None: never.
        limits: Of the device.
        send: Takes what is to be sent.
        context: Gives the threshold and the counter of the release that scores.
        clock: Nanoseconds since the epoch.
    """

    def __init__(
        self,
        detector: str,
        features: tuple[str, ...],
        *,
        warm_up_points: int,
        max_gap: int | None,
        limits: Limits,
        send: Callable[[FieldPoints], None],
        context: Callable[[], tuple[float, int]],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._detector = detector
        self._features = features
        self._limits = limits
        self._send = send
        self._context = context
        self._clock = clock
        self._max_gap = max_gap
        self._before = warm_up_points
        self._stretch = warm_up_points + LEARNED_POINTS
        self._longest = max(self._stretch, warm_up_points + FLAGGED_POINTS + AFTER_POINTS)
        self._point_bytes = 4 * len(features) + 8 + 4 + 1
        self._room = max(MEMORY_BYTES // (self._longest * self._point_bytes), 1)
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._turn = self._calls = 0
        self._lock = threading.Lock()

    @property
    def rows(self) -> int:
        """Nothing is kept for training here."""
        return 0

    def append(
        self,
        series: Sequence[str],
        stamps: NDArray[np.int64],
        values: FloatArray,
        scores: FloatArray,
        flagged: NDArray[np.bool_],
    ) -> None:
        """Takes N points."""
        if not self._limits.wanted:
            self._recent.clear()
            return
        rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(series):
            rows_of.setdefault(name, []).append(row)
        with self._lock:
            self._calls += 1
            for name, listed in rows_of.items():
                rows = np.array(listed)
                gaps = np.flatnonzero(np.diff(stamps[rows]) > (self._max_gap or np.inf)) + 1
                for part in np.split(rows, gaps):
                    if (recent := self._followed(name, int(stamps[part[0]]))) is not None:
                        recent.take(stamps[part], values[part], scores[part], flagged[part])
                        self._send_windows(name, recent)
                        recent.keep(self._longest)
            self._send_stretches()

    def flush(self) -> None:
        """There is nothing to write."""

    def paths(self) -> list[Path]:
        """There is no file."""
        return []

    def add_points(self, stamps: NDArray[np.int64], values: FloatArray) -> Path:
        """A device learns from no file.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError

    def _followed(self, name: str, stamp: int) -> _Recent | None:
        """Where the points of a series go; None: there is no room to follow it."""
        recent = self._recent.get(name)
        if recent is not None and self._max_gap is not None and stamp - int(recent.stamps[-1]) > self._max_gap:
            self._close_window(name, recent)
            recent.keep(0)
            recent.unsent = 0
        if recent is None:
            if len(self._recent) >= self._room:
                oldest, its = next(iter(self._recent.items()))  # followed for longest
                if not its.turn and self._calls - its.heard < SILENT_CALLS:
                    return None  # it has not had its turn yet
                del self._recent[oldest]
            empty = np.empty(0, np.float32)
            recent = _Recent(
                np.empty(0, np.int64), np.empty((0, len(self._features)), np.float32), empty, np.empty(0, np.bool_)
            )
            self._recent[name] = recent
        recent.heard = self._calls
        return recent

    def _send_windows(self, name: str, recent: _Recent) -> None:
        """Sends windows that are over: enough points have come since the last flagged one, or they are too long."""
        while len(at := recent.told + np.flatnonzero(recent.flagged[recent.told :])):
            first = int(at[0])
            within = at[at <= first + FLAGGED_POINTS]
            gaps = np.flatnonzero(np.diff(within) > AFTER_POINTS)
            last = int(within[gaps[0]] if len(gaps) else within[-1])
            is_over = len(gaps) or len(at) > len(within)
            if not is_over and len(recent.stamps) - 1 - last < AFTER_POINTS:
                return
            self._send_window(name, recent, first, last)

    def _close_window(self, name: str, recent: _Recent) -> None:
        """Sends what there is of a window that nothing follows."""
        at = recent.told + np.flatnonzero(recent.flagged[recent.told :])
        if len(at):
            self._send_window(name, recent, int(at[0]), int(at[-1]))

    def _send_window(self, name: str, recent: _Recent, first: int, last: int) -> None:
        rows = slice(max(first - self._before, 0), min(last + AFTER_POINTS + 1, len(recent.stamps)))
        recent.told = last + 1
        recent.unsent = min(recent.unsent, len(recent.stamps) - last - 1)
        cost = (rows.stop - rows.start) * self._point_bytes
        limits = self._limits
        if limits.windows.has(1) and limits.bytes.has(cost):
            limits.windows.take(1)
            limits.bytes.take(cost)
            self._send_rows(name, recent, rows, flagged=True)

    def _send_stretches(self) -> None:
        """Sends stretches of normal points, of those series first whose turn was longest ago."""
        cost = self._stretch * self._point_bytes
        if not self._limits.bytes.has(cost):
            return
        ready = [it for it in self._recent.items() if it[1].unsent >= self._stretch]
        for name, recent in sorted(ready, key=lambda it: it[1].turn):
            rows = slice(len(recent.stamps) - self._stretch, len(recent.stamps))
            if np.count_nonzero(recent.flagged[rows]) or not self._limits.bytes.has(cost):
                continue
            self._limits.bytes.take(cost)
            self._turn += 1
            recent.turn, recent.unsent = self._turn, 0
            self._send_rows(name, recent, rows, flagged=False)

    def _send_rows(self, name: str, recent: _Recent, rows: slice, *, flagged: bool) -> None:
        threshold, counter = self._context()
        self._send(
            FieldPoints(
                detector=self._detector,
                series=name,
                stamps=recent.stamps[rows].copy(),
                values=recent.values[rows].copy(),
                scores=recent.scores[rows].copy(),
                threshold=threshold,
                counter=counter,
                flagged=flagged,
                features=self._features,
                time_ns=self._clock(),
            )
        )
