"""Whether a version that came to serve is slower than the one before, or the machine was."""

from __future__ import annotations

import pytest
from graphs import ewma_bundle

from detectors.served import Served
from server.conduct import Race
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
