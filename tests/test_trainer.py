"""The trainer's jobs, as far as no other test runs them whole."""

from __future__ import annotations

from fits import fitted, machine

from detectors.training.stretches import Stretches
from server.trainer import _held_out


def test_the_error_of_a_fit_is_of_points_that_it_was_not_trained_on() -> None:
    """The last quarter, after points to warm up on; all of them where a quarter is too few."""
    detector = fitted("lstm")
    warm, rows = detector.warm_up_points, machine(700)

    (judged,) = _held_out(detector, Stretches.of([rows])).parts
    (few,) = _held_out(detector, Stretches.of([rows[: warm + 20]])).parts

    assert (judged == rows[700 - 175 - warm :]).all()
    assert len(few) == warm + 20
