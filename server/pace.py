"""How much has passed since fits and cycles last began: seconds and points, over restarts and clock jumps.

Inside a process time is that of a clock that never jumps. Only from one process to the next the wall clock counts, and
never backwards.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from server.loop_settings import Every
from server.records import PaceRow

FIT = ""
"""Stands beside device classes, of which none is called so."""
COOL_DOWN = "cool down"
"""The same: the last cycle that something else than the schedule or a person began."""
LONG_AGO = 1e12
"""Seconds; more than any period."""
LATEST = 0.5
"""Of a period: what begins later than so long after it was due moves all that follow."""


def is_due(every: Every, row: PaceRow, jitter: float = 0.0) -> bool:
    """Whether a period has passed, or all of it but a share of at most `jitter`.

    >>> is_due(Every(points=100), PaceRow("pump", "hub", seconds=9, points=100))
    True
    """
    if row.due:
        return True
    early = 1.0 - jitter * _drawn(row)
    if every.points is not None:
        return row.points >= math.ceil(every.points * early)
    return every.seconds is not None and row.seconds >= every.seconds * early


def _drawn(row: PaceRow) -> float:
    """A number in [0, 1) for each beginning, the same after a restart, so that many detectors do not begin at once."""
    text = f"{row.detector}/{row.what}/{row.begun}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest()) / (1 << 32)


class Pace:
    """What has passed, by detector and by what begins: a fit (`FIT`), or cycles of a device class.

    Args:
        clock: Seconds since the epoch.
        monotonic: Seconds that only ever pass.
    """

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._rows: dict[tuple[str, str], PaceRow] = {}
        self._seen: dict[str, tuple[float, int]] = {}
        """Time and points when a detector was last looked at."""
        self._opened: set[str] = set()
        self._changed: set[tuple[str, str]] = set()

    def is_open(self, detector: str) -> bool:
        """Whether what the store knows of a detector is here."""
        return detector in self._opened

    def open(self, detector: str, rows: Iterable[PaceRow]) -> None:
        """Goes on from what was saved; what has begun in this process since counts more."""
        now = self._clock()
        for row in rows:
            passed = max(0.0, now - row.saved)
            self._rows.setdefault((detector, row.what), replace(row, seconds=row.seconds + passed))
        self._seen.setdefault(detector, (self._monotonic(), 0))
        self._opened.add(detector)

    def advance(self, detector: str, accepted: int) -> None:
        """Lets the time and the points pass that have passed.

        Args:
            detector: The detector.
            accepted: Points that it has taken in this process.
        """
        now = self._monotonic()
        then, before = self._seen.get(detector, (now, accepted))
        self._seen[detector] = (now, accepted)
        seconds, points = max(0.0, now - then), max(0, accepted - before)
        for key, row in self._rows.items():
            if key[0] == detector:
                self._rows[key] = replace(row, seconds=row.seconds + seconds, points=row.points + points)
                if points:
                    self._changed.add(key)

    def find(self, detector: str, what: str) -> PaceRow | None:
        """What has passed until the last `advance`; None: nothing is known."""
        return self._rows.get((detector, what))

    def put(self, row: PaceRow) -> None:
        """Says what has passed where nothing is known."""
        self._rows[row.detector, row.what] = row
        self._changed.add((row.detector, row.what))

    def begin(
        self, detector: str, what: str, accepted: int, *, every: Every | None = None, budget: str | None = None
    ) -> None:
        """Something begins now.

        Args:
            detector: The detector.
            what: `FIT`, a device class or `COOL_DOWN`.
            accepted: Points that the detector has taken in this process.
            every: The period that has passed. What begins a little early or late does not move what follows.
            budget: Of the device class, in words; None: it has not changed.
        """
        self.advance(detector, accepted)
        row = self._rows.get((detector, what), PaceRow(detector, what))
        seconds, points = (0.0, 0) if every is None or row.due else _left(every, row)
        kept = row.budget if budget is None else budget
        self.put(PaceRow(detector, what, seconds, points, row.begun + 1, budget=kept))

    def hurry(self, detector: str, device_classes: Iterable[str]) -> None:
        """Makes cycles due at once."""
        for device_class in device_classes:
            row = self._rows.get((detector, device_class), PaceRow(detector, device_class))
            self.put(replace(row, due=True))

    def take_changed(self) -> list[PaceRow]:
        """What has to be saved: rows of which more than the time has changed."""
        now, changed = self._clock(), self._changed
        self._changed = set()
        return [replace(self._rows[key], saved=now) for key in sorted(changed) if key in self._rows]

    def take_all(self) -> list[PaceRow]:
        """Every row, to be saved."""
        self._changed.update(self._rows)
        return self.take_changed()

    def forget(self, detector: str) -> None:
        """Drops what is known of a detector that was deleted."""
        self._rows = {key: row for key, row in self._rows.items() if key[0] != detector}
        self._changed = {key for key in self._changed if key[0] != detector}
        self._seen.pop(detector, None)
        self._opened.discard(detector)


def _left(every: Every, row: PaceRow) -> tuple[float, int]:
    """Seconds and points that belong to the next period already; negative where this one was not over."""
    if every.points is not None:
        late = row.points - every.points
        return 0.0, late if late <= LATEST * every.points else 0
    seconds = row.seconds - (every.seconds or 0.0)
    return seconds if seconds <= LATEST * (every.seconds or 0.0) else 0.0, 0
