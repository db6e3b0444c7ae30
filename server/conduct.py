"""Whether a version behaves on live points, beside the one that it replaces."""

from __future__ import annotations

import math

import numpy as np

from detectors.served import Served
from detectors.timing import interleaved, stepping
from server.loop_settings import Probation
from server.usage import Usage

NORMAL_SCORE = 1 / math.log(10)
"""Mean score of normal points: what the tail probability of an error is on the average, -log10."""
NEWLY_FLAGGED = 0.1
"""Of the points that the version before does not flag, the part that may be flagged, however many both do."""
SURE = 4.0
"""Standard deviations that a count must be beyond what is allowed ..."""
FEW_ALARMS = 5
"""... and so many alarms on top: a handful is no flood."""
HIGHER = 1.75
"""A mean score so many times the other's means that its errors are up ..."""
ENOUGH_POINTS = 100
"""... once there are so many points."""
FEW_POINTS = 20
"""Of the version before, that its share of alarms is taken from."""
FEW_BROKEN = 3
"""Scores that are no numbers."""
TIMED_ROUNDS = 9
"""In which two versions are timed side by side."""


def misconduct(new: Usage, old: Usage, settings: Probation, false_alarm_rate: float) -> str:
    """Why a version must not serve, but for its speed (`Race`); empty: it behaves.

    Both have seen about the same points, so an incident floods either.

    Args:
        new: Of the version in question.
        old: Of the one before.
        settings: Limits.
        false_alarm_rate: Share of normal points that may be flagged.
    """
    if new.broken >= FEW_BROKEN and new.broken / new.points > 2 * old.broken / max(old.points, 1):
        return f"{new.broken} of {new.points} scores were no numbers"
    # What an incident has both flag excuses nothing that only one of them does.
    most = min(settings.alarm_flood * old.share, old.share + NEWLY_FLAGGED * (1 - old.share))
    expected = max(most, settings.alarm_flood * false_alarm_rate) * new.points
    if old.points >= FEW_POINTS and new.flagged > expected + SURE * math.sqrt(expected) + FEW_ALARMS:
        return (
            f"alarm flood: {new.flagged} of {new.points} points were flagged; the version before flagged "
            f"{old.flagged} of {old.points}"
        )
    if min(new.points, old.points) >= ENOUGH_POINTS:
        ratio = new.mean_score / max(old.mean_score, NORMAL_SCORE)
        if ratio > HIGHER:
            return f"error up: its mean score is {ratio:.1f} times that of the version before"
    return ""


class Race:
    """Whether the steps of a version take too long beside those of another.

    Steps in use only give rise to suspicion: what else the machine did in the meantime may be to blame. Then both are
    timed side by side, once, and that decides.

    Args:
        new: The version in question.
        old: The one before.
        slower: It may take so many times as long.
    """

    def __init__(self, new: Served, old: Served, slower: float) -> None:
        self._new = new
        self._old = old
        self._slower = slower
        self._is_run = False

    def lost(self, new: Usage, old: Usage) -> str:
        """Why it must not serve; empty: it is as fast as it should be. May time them, for a second; for a thread.

        Args:
            new: Of the version in question.
            old: Of the one before, maybe at another time.
        """
        seen = new.slower_than(old)
        if self._is_run or seen is None or seen <= self._slower:
            return ""
        self._is_run = True
        steps = [stepping(it.runtime, new.step_points) for it in (self._new, self._old)]
        mine, other = (np.median(np.concatenate(it)) for it in interleaved(steps, rounds=TIMED_ROUNDS))
        if mine <= self._slower * other:
            return ""
        return f"its steps take {mine / other:.1f} times as long as those of the version before"
