"""Whether a version that came to serve is slower than the one before, or the machine was."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import ewma_bundle

from detectors.served import Served
from server.conduct import Race, misconduct
from server.loop_settings import Probation
from server.usage import Usage

POINTS = 4


def steps(seconds: float) -> Usage:
    """Enough steps that each took so long."""
    usage = Usage()
    for _ in range(50):
        usage.time(seconds, POINTS)
    return usage


def version(number: int, wasted: int = 0) -> Served:
    """One whose steps waste some time."""
    return Served.load(ewma_bundle("pump", number, 2, wasted=wasted))


def flagging(points: int, flagged: int) -> Usage:
    """A version that has flagged so many of so many points."""
    usage = Usage()
    usage.count(np.r_[np.full(flagged, 4.0), np.zeros(points - flagged)].astype(np.float32), 3.0)
    return usage


@pytest.mark.parametrize(
    ("new", "old", "floods"),
    [
        (4, 0, False),  # a handful
        (30, 0, True),
        (30, 10, False),  # three times as many
        (130, 10, True),
        (560, 400, True),  # an incident that both flag excuses nothing that only the new one flags
        (420, 400, False),
        (500, 0, True),
    ],
)
def test_a_version_that_floods_is_told_from_one_in_an_incident(new: int, old: int, floods: bool) -> None:
    """Of 800 points; the false alarm rate is one in a thousand."""
    reason = misconduct(flagging(800, new), flagging(800, old), Probation(), 0.001)
    assert reason.startswith("alarm flood") is floods


def test_more_than_the_false_alarm_rate_allows_is_a_flood_only_in_multiples() -> None:
    """Where one point in twenty may be flagged a tenth of them is none."""
    assert misconduct(flagging(800, 100), flagging(800, 0), Probation(), 0.05) == ""


def test_a_machine_that_was_busy_is_not_held_against_a_version() -> None:
    """Its steps in use took ten times as long; side by side the two take the same."""
    race = Race(version(2), version(1), slower=2.0)

    assert race.lost(steps(1e-3), steps(1e-4)) == ""
    assert race.lost(steps(1e-3), steps(1e-4)) == ""


def test_a_version_that_is_slower_loses() -> None:
    """In use and side by side."""
    reason = Race(version(2, wasted=40), version(1), slower=2.0).lost(steps(1e-3), steps(1e-4))

    assert "times as long" in reason


@pytest.mark.parametrize("points", [1, 100])
def test_steps_of_other_sizes_are_no_suspicion(points: int) -> None:
    """Nor are too few of them."""
    other, few = Usage(), Usage()
    for _ in range(50):
        other.time(1e-4, points)
    few.time(1e-4, POINTS)
    race = Race(version(2, wasted=40), version(1), slower=2.0)

    assert race.lost(steps(1e-3), other) == ""
    assert race.lost(steps(1e-3), few) == ""
