"""Whether a version behaves on live points, beside the one that it replaces."""

from __future__ import annotations

import math

from server.loop_settings import Probation
from server.usage import Usage

NORMAL_SCORE = 1 / math.log(10)
"""Mean score of normal points: what the tail probability of an error is on the average, -log10."""
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


def misconduct(
    new: Usage, old: Usage, settings: Probation, false_alarm_rate: float, before: Usage | None = None
) -> str:
    """Why a version must not serve; empty: it behaves.

    Both have seen about the same points, so an incident floods either.

    Args:
        new: Of the version in question.
        old: Of the one before.
        settings: Limits.
        false_alarm_rate: Share of normal points that may be flagged.
        before: Whose step times are compared with those of `new`; None: those of `old`.
    """
    if new.broken >= FEW_BROKEN and new.broken / new.points > 2 * old.broken / max(old.points, 1):
        return f"{new.broken} of {new.points} scores were no numbers"
    expected = settings.alarm_flood * max(old.share, false_alarm_rate) * new.points
    if old.points >= FEW_POINTS and new.flagged > expected + SURE * math.sqrt(expected) + FEW_ALARMS:
        return (
            f"alarm flood: {new.flagged} of {new.points} points were flagged; the version before flagged "
            f"{old.flagged} of {old.points}"
        )
    slower = new.slower_than(before or old)
    if slower is not None and slower > settings.slower:
        return f"its steps take {slower:.1f} times as long as those of the version before"
    if min(new.points, old.points) >= ENOUGH_POINTS:
        ratio = new.mean_score / max(old.mean_score, NORMAL_SCORE)
        if ratio > HIGHER:
            return f"error up: its mean score is {ratio:.1f} times that of the version before"
    return ""
