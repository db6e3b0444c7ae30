"""A version that follows the live points without serving: a candidate before it may, or the one before beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detectors.scorer import Scorer
from detectors.served import Served
from detectors.successor import Successor
from server.conduct import Race, misconduct
from server.loop_settings import Probation
from server.usage import Usage

LOOK_SECONDS = 0.1
MOMENT_SECONDS = 1.0
IDLE_SECONDS = 2.0
"""Without a live point for so long there is nothing to wait for."""


class Shadow:
    """One version on the live points of a scorer, off the scoring path: it reads what the rings hold.

    Args:
        scorer: The live one.
        served: What follows it.
        threshold: From which a score counts as flagged.
    """

    def __init__(self, scorer: Scorer, served: Served, threshold: float) -> None:
        self.usage = Usage()
        self.served = served
        self._successor = Successor(scorer.series, served)
        self._threshold = threshold
        self._caught_up = False

    async def follow(self) -> bool:
        """Scores what has arrived since the last call, for a moment at most; whether there was anything.

        What the rings held before it began is scored too, but not counted.
        """
        began, moved = time.monotonic(), False
        while time.monotonic() - began < MOMENT_SECONDS and (replay := self._successor.snapshot()) is not None:
            run = await asyncio.to_thread(self._successor.run, replay)
            self._successor.commit(replay)
            moved = True
            for seconds, size in zip(run.seconds, map(len, run.scores), strict=True):
                self.usage.time(seconds, size)
            if self._caught_up:
                self.usage.count(np.concatenate(run.scores)[np.concatenate(run.warm)], self._threshold)
            self._caught_up = self._caught_up or not self._successor.lag
        self._caught_up = self._caught_up or not moved
        return moved


@dataclass(frozen=True)
class Verdict:
    """What a candidate did beside what serves.

    Attributes:
        points: Live points that both scored.
        reason: Why it must not serve; empty: it may.
    """

    points: int
    reason: str = ""


async def compared(
    scorer: Scorer,
    candidate: Served,
    threshold: float,
    settings: Probation,
    false_alarm_rate: float,
    clock: Callable[[], float],
) -> Verdict:
    """Lets a candidate and what serves follow the live points side by side until there were enough.

    Args:
        scorer: The live one.
        candidate: What may come to serve.
        threshold: From which a score counts as flagged.
        settings: How many points, how long, and the limits.
        false_alarm_rate: Share of normal points that may be flagged.
        clock: Monotonic seconds.
    """
    new, old = Shadow(scorer, candidate, threshold), Shadow(scorer, scorer.served, threshold)
    race = Race(candidate, scorer.served, settings.slower)
    began = arrived = clock()
    while new.usage.points < settings.shadow_points:
        moved = await new.follow()
        await old.follow()
        reason = misconduct(new.usage, old.usage, settings, false_alarm_rate)
        if reason := reason or await asyncio.to_thread(race.lost, new.usage, old.usage):
            return Verdict(new.usage.points, reason)
        now = clock()
        arrived = now if moved else arrived
        if now - arrived >= IDLE_SECONDS or now - began >= settings.shadow_seconds:
            break
        await asyncio.sleep(LOOK_SECONDS)
    return Verdict(new.usage.points)
