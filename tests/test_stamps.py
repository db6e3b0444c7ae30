"""Stamps: one function says which points are let in."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import detectors.stamps
import pruning.groups
from detectors.stamps import NO_STAMP, StampPolicy, Status, judge

SMALL = st.integers(-3, 12)


def judged(stamps, last, policy=None, now=None) -> list[Status]:
    """`judge` on lists."""
    status = judge(np.array(stamps, np.int64), np.array(last, np.int64), policy or StampPolicy(), now)
    return [Status(value) for value in status]


@pytest.mark.parametrize("module", [detectors.stamps, pruning.groups])
def test_the_examples_in_the_documentation_are_true(module) -> None:
    """Doctests run."""
    result = doctest.testmod(module, extraglobs={"np": np, "torch": getattr(module, "torch", None)})

    assert result.attempted
    assert not result.failed


def test_later_equal_and_earlier_stamps() -> None:
    """Only a later stamp is let in."""
    assert judged([6, 5, 4], [5, 5, 5]) == [Status.OK, Status.DUPLICATE, Status.LATE]


def test_sources_that_repeat_stamps_can_be_scored() -> None:
    """With `duplicate: score` an equal stamp is let in, an earlier one is not."""
    assert judged([5, 4], [5, 5], StampPolicy(duplicate="score")) == [Status.OK, Status.LATE]


def test_a_new_series_takes_any_stamp() -> None:
    """Also negative ones; only the value that stands for "none yet" is no stamp, or it could repeat for ever."""
    assert judged([0, -7, NO_STAMP + 1, NO_STAMP], [NO_STAMP] * 4) == [*[Status.OK] * 3, Status.LATE]


def test_stamps_beyond_the_clock_are_too_far() -> None:
    """More than `max_ahead` after now; exactly that much is let in; without a clock or a limit nothing is too far."""
    policy = StampPolicy(max_ahead=10)

    assert judged([110, 111], [0, 0], policy, now=100) == [Status.OK, Status.TOO_FAR]
    assert judged([2**62], [0], policy) == [Status.OK]
    assert judged([2**62], [0], StampPolicy(), now=100) == [Status.OK]


def test_the_end_of_time_does_not_overflow() -> None:
    """A limit past the largest int64 lets everything in."""
    assert judged([2**63 - 1], [0], StampPolicy(max_ahead=2**62), now=2**62 + 2**61) == [Status.OK]


def test_no_points_are_no_problem() -> None:
    """An empty batch has no statuses."""
    assert judged([], []) == []


@given(st.lists(st.tuples(SMALL, st.one_of(SMALL, st.just(NO_STAMP))), max_size=20), st.booleans(), SMALL)
def test_judging_a_batch_is_judging_each_point(points, repeat: bool, now: int) -> None:
    """The vectorised rules are those of a plain reading."""
    policy = StampPolicy(duplicate="score" if repeat else "reject", max_ahead=4)

    def plainly(stamp: int, last: int) -> Status:
        if stamp > now + 4:
            return Status.TOO_FAR
        if stamp < last:
            return Status.LATE
        return Status.DUPLICATE if stamp == last and not repeat else Status.OK

    got = judged([stamp for stamp, _ in points], [last for _, last in points], policy, now)

    assert got == [plainly(stamp, last) for stamp, last in points]
