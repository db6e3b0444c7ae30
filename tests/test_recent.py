"""The ring of newest scores: bounded, cheap, and honest about what has no score."""

from __future__ import annotations

import numpy as np

from server.recent import TICKS, Recent, Tick, rate

SECOND = 10**9


def test_points_of_one_second_share_a_tick_with_the_highest_score() -> None:
    """A tick has the maximum, the number of points and of anomalies; the next second has its own."""
    recent = Recent()
    recent.take(0, np.array([1.0, 3.0], np.float32), 1)
    recent.take(SECOND // 2, np.array([2.0], np.float32), 0)
    recent.take(SECOND, np.array([0.5], np.float32), 0)

    assert recent.newest() == [Tick(0.0, 3.0, 3, 1), Tick(1.0, 0.5, 1, 0)]
    assert (recent.points, recent.flagged) == (4, 1)


def test_points_without_a_score_count_and_draw_nothing() -> None:
    """NaN (warming up) is not a score; a request without points changes none."""
    recent = Recent()
    recent.take(0, np.array([np.nan, np.nan], np.float32), 0)
    recent.take(1, np.array([], np.float32), 0)
    recent.take(SECOND, np.array([np.nan, 0.25], np.float32), 0)

    assert [it.score for it in recent.newest()] == [-np.inf, 0.25]
    assert [it.points for it in recent.newest()] == [2, 2]


def test_the_ring_is_bounded_and_the_oldest_go() -> None:
    """Whatever comes, no more than `TICKS` are held, and what `newest` gave stays as it was."""
    recent = Recent()
    for second in range(2 * TICKS):
        recent.take(second * SECOND, np.ones(1, np.float32), 0)
    given = recent.newest(3)
    recent.take((2 * TICKS - 1) * SECOND, np.ones(9, np.float32), 0)

    assert [it.points for it in given] == [1, 1, 1]
    assert [it.began for it in given] == [2 * TICKS - 3, 2 * TICKS - 2, 2 * TICKS - 1]
    assert len(recent.newest()) == TICKS
    assert recent.newest()[-1].points == 10


def test_a_clock_that_is_set_back_begins_a_new_tick() -> None:
    """Points never go into a tick that lies in their future."""
    recent = Recent()
    recent.take(100 * SECOND, np.ones(1, np.float32), 0)
    recent.take(50 * SECOND, np.ones(1, np.float32), 0)

    assert [it.began for it in recent.newest()] == [100.0, 50.0]


def test_the_rate_is_of_the_shortest_span_that_says_something() -> None:
    """Ten seconds where points come that often, an hour where they are rare, 0 where there are none."""
    busy = [Tick(float(second), 0.0, 7, 0) for second in range(100)]

    assert rate(busy, 99.0) == 7 * 11 / 10
    assert rate([Tick(0.0, 0.0, 36, 0)], 3000.0) == 0.01
    assert rate([Tick(0.0, 0.0, 36, 0)], 9000.0) == 0.0
    assert rate([], 0.0) == 0.0
