"""Periods in seconds and points: as many cycles as were asked for, whatever the clocks do, also over restarts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.loop_settings import Every
from server.pace import FIT, Pace, is_due
from server.records import PaceRow

PERIOD = 3600.0
HOURLY = Every(seconds=PERIOD)
JITTER = 0.1
START = 1_700_000_000.0
JUMPS = st.sampled_from([-86_400.0, -3600.0, -1.0, 0.0, 1.0, 3600.0, 86_400.0])


class Clocks:
    """A wall clock that jumps and one that does not."""

    def __init__(self) -> None:
        self.wall = START
        self.steady = 0.0

    def pass_by(self, seconds: float) -> None:
        """Lets time pass."""
        self.wall += seconds
        self.steady += seconds


def opened(clocks: Clocks, rows: list[PaceRow]) -> Pace:
    """What a process that starts now knows."""
    pace = Pace(lambda: clocks.wall, lambda: clocks.steady)
    pace.open("pump", rows)
    return pace


def begun(pace: Pace, every: Every, accepted: int, jitter: float = JITTER) -> bool:
    """Looks as the scheduler does; whether a cycle began."""
    pace.advance("pump", accepted)
    row = pace.find("pump", "hub")
    assert row is not None
    if not is_due(every, row, jitter):
        return False
    pace.begin("pump", "hub", accepted, every=every)
    return True


@pytest.mark.promise("R8")
@given(steps=st.lists(st.tuples(st.floats(0.1, 300.0), JUMPS), min_size=1, max_size=400))
def test_jumps_of_the_clock_neither_double_nor_skip_a_cycle(steps: list[tuple[float, float]]) -> None:
    """In a span there is one cycle for each period, at most one more begun early; none comes before its period."""
    clocks = Clocks()
    pace = opened(clocks, [PaceRow("pump", "hub", saved=clocks.wall)])
    began = []
    for seconds, jump in steps:
        clocks.pass_by(seconds)
        clocks.wall += jump
        if begun(pace, HOURLY, 0):
            began.append(clocks.steady)

    asked = int(clocks.steady // PERIOD)
    assert asked <= len(began) <= asked + 1
    for cycle, at in enumerate(began):
        assert (cycle + 1 - JITTER) * PERIOD <= at + 1e-6 <= (cycle + 1) * PERIOD + 300.0 + 1e-6


@pytest.mark.promise("R8")
@given(
    steps=st.lists(st.tuples(st.floats(0.1, 300.0), JUMPS, st.booleans()), min_size=1, max_size=200),
    jitter=st.sampled_from([0.0, JITTER, 0.25]),
)
def test_a_restart_after_a_jump_makes_at_most_one_cycle_early(
    steps: list[tuple[float, float, bool]], jitter: float
) -> None:
    """Restarts with a clock set forwards may each hasten one cycle; set backwards they never hold one up."""
    clocks = Clocks()
    pace = opened(clocks, [PaceRow("pump", "hub", saved=clocks.wall)])
    cycles = forwards = 0
    for seconds, jump, restarts in steps:
        clocks.pass_by(seconds)
        cycles += begun(pace, HOURLY, 0, jitter)
        if restarts:
            saved = pace.take_all()
            clocks.wall += jump
            forwards += jump > 0
            pace = opened(clocks, saved)

    asked = int(clocks.steady // PERIOD)
    assert asked - 1 <= cycles <= asked + 1 + forwards


@given(
    batches=st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=300),
    every=st.integers(100, 400),
)
def test_every_so_many_points_over_restarts(batches: list[tuple[int, bool]], every: int) -> None:
    """Points count over restarts: one cycle for each period of them, whatever was saved in between."""
    clocks = Clocks()
    pace = opened(clocks, [PaceRow("pump", "hub")])
    cycles = total = accepted = 0
    for points, restarts in batches:
        total, accepted = total + points, accepted + points
        cycles += begun(pace, Every(points=every), accepted)
        if restarts:
            changed = pace.take_changed()
            pace, accepted = opened(clocks, changed or pace.take_all()), 0

    assert total // every <= cycles <= total // every + 1


def test_what_begins_late_does_not_begin_twice() -> None:
    """After a detector was frozen for periods one cycle begins, and the next a whole period later."""
    clocks = Clocks()
    pace = opened(clocks, [PaceRow("pump", "hub", saved=clocks.wall)])
    clocks.pass_by(5.7 * PERIOD)

    began = [begun(pace, HOURLY, 0, 0.0)]
    for _ in range(4):
        clocks.pass_by(PERIOD / 4)
        began.append(begun(pace, HOURLY, 0, 0.0))

    assert began == [True, False, False, False, True]


def test_detectors_that_are_alike_do_not_begin_together() -> None:
    """A hundred detectors created at once begin over a tenth of their period, the same after a restart."""
    rows = [PaceRow(f"pump{number}", "hub", points=0) for number in range(100)]
    every = Every(points=10_000)

    def begins(row: PaceRow) -> int:
        return next(
            points
            for points in range(8_990, 10_001)
            if is_due(every, PaceRow(row.detector, row.what, points=points, begun=row.begun), JITTER)
        )

    first = [begins(row) for row in rows]

    assert first == [begins(row) for row in rows]
    assert min(first) >= 9_000
    assert max(first) <= 10_000
    assert len(set(first)) > 80
    assert max(first.count(points) for points in first) <= 3


def test_what_somebody_asks_for_begins_the_period_anew() -> None:
    """After a manual cycle the next of the schedule is a whole period away; what is hurried is due at once."""
    clocks = Clocks()
    pace = opened(clocks, [PaceRow("pump", "hub", saved=clocks.wall)])
    clocks.pass_by(0.8 * PERIOD)
    pace.begin("pump", "hub", 0)
    clocks.pass_by(0.8 * PERIOD)

    assert not begun(pace, HOURLY, 0)
    pace.hurry("pump", ["hub"])
    assert begun(pace, HOURLY, 0)
    assert not begun(pace, HOURLY, 0)


def test_a_detector_that_is_deleted_leaves_nothing() -> None:
    """One that takes its name later begins from nothing."""
    clocks = Clocks()
    pace = opened(clocks, [PaceRow("pump", "hub"), PaceRow("pump", FIT)])
    pace.forget("pump")

    assert (pace.find("pump", "hub"), pace.is_open("pump"), pace.take_all()) == (None, False, [])
