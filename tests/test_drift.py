"""Drift of errors and inputs: found when it has come to stay, not where an incident passes or nothing changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.drift import Drift
from server.drift_files import read_drift, write_drift

WINDOW = 400
THRESHOLD = 3.0


def normal_points(n: int, seed: int, *, features: int = 3, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of calibrated errors, and values; the first feature is moved by `shift`."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, features)).astype(np.float32)
    values[:, 0] += shift
    return -np.log10(rng.uniform(size=n)).astype(np.float32), values


def feed(drift: Drift, scores: np.ndarray, values: np.ndarray, *, version: int = 1, request: int = 37) -> None:
    """As requests do it."""
    for start in range(0, len(scores), request):
        rows = slice(start, start + request)
        drift.take(version, scores[rows], scores[rows] >= THRESHOLD, values[rows])
        drift.work()


@pytest.mark.parametrize("seed", range(5))
def test_nothing_drifts_where_nothing_changes(seed: int) -> None:
    """Over 20,000 calibrated points there is no drift, and distances stay small."""
    drift = Drift(WINDOW)
    for part in range(20):
        feed(drift, *normal_points(1000, 100 * seed + part))
        assert not drift.drifts

    assert drift.cause == ""
    assert max(drift.errors.distance, drift.inputs.distance) < 0.15


def test_higher_errors_are_drift_after_some_windows() -> None:
    """Errors three times as frequent at every height are found within two windows, and the cause says so."""
    drift = Drift(WINDOW)
    feed(drift, *normal_points(2000, 1))
    scores, values = normal_points(2 * WINDOW, 2)
    feed(drift, np.minimum(scores + 1.0, 2.9), values)

    assert drift.drifts
    assert drift.cause.startswith("errors are higher than calibrated")
    assert not drift.inputs.drifts


def test_an_incident_that_passes_is_no_drift() -> None:
    """Flagged points over most of a window, and then normal ones again."""
    drift = Drift(WINDOW)
    feed(drift, *normal_points(2000, 1))
    scores, values = normal_points(WINDOW // 4, 2)
    feed(drift, scores + THRESHOLD, values)
    for part in range(10):
        feed(drift, *normal_points(WINDOW, 10 + part))
        assert not drift.drifts


def test_inputs_that_move_are_drift_although_errors_do_not() -> None:
    """One feature of three that moves by four standard deviations and stays is found; one that was constant, too."""
    for constant in (False, True):
        drift = Drift(WINDOW)
        for part in range(5):
            scores, values = normal_points(WINDOW, part)
            values[:, 1] = 7.0
            feed(drift, scores, values)
        scores, values = normal_points(3 * WINDOW, 77, shift=0.0 if constant else 4.0)
        values[:, 1] = 8.0 if constant else 7.0
        values[:, 2] += 0.0 if constant else 4.0
        if constant:
            values[:, [0, 2]] += 4.0
        feed(drift, scores, values)

        assert drift.drifts
        assert drift.cause.startswith("inputs have moved")


def test_drift_ends_when_it_is_over_and_with_another_version() -> None:
    """Below the lower limit there is none any more; a version that takes over has a reference of its own."""
    drift = Drift(WINDOW)
    scores, values = normal_points(2 * WINDOW, 1)
    feed(drift, scores + 1.0, values)
    assert drift.drifts
    feed(drift, *normal_points(2 * WINDOW, 2))
    assert not drift.drifts

    feed(drift, scores + 1.0, values)
    assert drift.drifts
    feed(drift, *normal_points(50, 3), version=2)
    assert not drift.drifts


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    """What was saved goes on where it was; other windows, damage and loss begin anew."""
    through, stopped = Drift(WINDOW), Drift(WINDOW)
    scores, values = normal_points(3000, 1, shift=1.0)
    feed(through, scores, values, request=100)
    feed(stopped, scores[:2200], values[:2200], request=100)

    write_drift(tmp_path, "pump", stopped)
    again = read_drift(tmp_path, "pump", WINDOW)
    feed(again, scores[2200:], values[2200:], request=100)

    assert again.to_json() == through.to_json()
    assert read_drift(tmp_path, "pump", 2 * WINDOW).version == 0
    assert read_drift(tmp_path, "fan", WINDOW).version == 0
    (tmp_path / "drift" / "pump.json").write_text('{"version": 1, "block_points": 100}')
    assert read_drift(tmp_path, "pump", WINDOW).version == 0


def test_points_of_another_width_begin_anew() -> None:
    """What was saved of a detector with other features does not stop the next one."""
    drift = Drift(WINDOW)
    feed(drift, *normal_points(2000, 1))
    feed(drift, *normal_points(2000, 2, features=2))

    assert drift.to_json()["cuts"] is not None
    assert len(drift.to_json()["cuts"]) == 2


def test_memory_is_bounded_whatever_comes() -> None:
    """Points that nobody works on are let go, the oldest first; of wide points some features are watched."""
    drift = Drift(WINDOW)
    for part in range(80):
        drift.take(1, *_flagged(normal_points(1000, part, features=2)))
    waiting = sum(len(it.scores) for it in drift._waiting)
    wide = Drift(WINDOW)
    feed(wide, *normal_points(1000, 1, features=300))

    assert waiting <= 50_000
    assert len(wide.to_json()["cuts"]) == 64


def _flagged(points: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, values = points
    return scores, scores >= THRESHOLD, values
