"""Calibration: a score of 2 means one normal point in a hundred, whatever the errors look like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.errors import InvalidInputError
from detectors.runtime import VALUES, Runtime
from detectors.training.calibrate import KNOTS, SHAPE_RANGE, Calibration, Scaler
from detectors.training.export import _score
from detectors.training.graph import Graph

WIDE = np.geomspace(1e-12, 1e12, 97)


def drawn_errors(seed: int, scale: float, spread: float, n: int) -> np.ndarray:
    """Lognormal errors."""
    return scale * np.random.default_rng(seed).lognormal(0, spread, n)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(-3, 4), st.integers(1, 20), st.integers(20, 2000))
def test_scores_grow_with_errors_over_24_decades(seed: int, power: int, spread: int, n: int) -> None:
    """Strictly: a larger error always has a larger score, from 1e-12 to 1e12, whatever was fitted."""
    calibration = Calibration.fit(drawn_errors(seed, 10.0**power, spread / 10, n))

    scores = calibration.score(WIDE)

    assert np.isfinite(scores).all()
    assert (np.diff(scores) > 0).all()
    assert (np.diff(calibration.knots) > 0).all()
    assert (np.diff(calibration.levels) > 0).all()
    assert SHAPE_RANGE[0] <= calibration.tail_shape <= SHAPE_RANGE[1]
    assert calibration.tail_scale > 0
    assert calibration.score(np.zeros(1))[0] == 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 1.0, 7.0, 1e6, 1e20]), min_size=20, max_size=300))
def test_any_errors_with_ties_give_a_usable_scale(errors: list[float]) -> None:
    """Never falling, finite, knots strictly increasing: also over heaps of equal errors and wild outliers."""
    calibration = Calibration.fit(np.array(errors))

    scores = calibration.score(np.sort(np.r_[0.0, WIDE, errors]))

    assert (np.diff(calibration.knots) > 0).all()
    assert np.isfinite(scores).all()
    assert (np.diff(scores) >= 0).all()


@pytest.mark.parametrize("n", [400, 4000, 20_000])
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_a_score_of_two_is_exceeded_by_one_fresh_point_in_a_hundred(family: str, n: int) -> None:
    """And 1 by one in ten, 3 by one in a thousand: averaged over fits, for light and for heavy tails."""
    rng = np.random.default_rng(4)

    def draws(size: int) -> np.ndarray:
        return rng.gamma(2.0, 1.5, size) if family == "gamma" else rng.lognormal(0.0, 0.8, size)

    shares = {1: [], 2: [], 3: []}
    for _ in range(max(3, 40_000 // n)):
        score = Calibration.fit(draws(n)).score(draws(60_000))
        for level, seen in shares.items():
            seen.append((score > level).mean())

    assert np.mean(shares[1]) == pytest.approx(0.1, rel=0.1)
    assert np.mean(shares[2]) == pytest.approx(0.01, rel=0.35 if n < 1000 else 0.1)  # twenty exceedances say little
    assert np.mean(shares[3]) == pytest.approx(0.001, abs=0.0015 if n < 1000 else 0.0005)


@pytest.mark.parametrize("value", [0.0, 1e-12, 0.7, 1e9])
def test_constant_errors_are_normal(value: float) -> None:
    """What always was scores low; ten times as much scores high."""
    calibration = Calibration.fit(np.full(500, value))

    usual, unusual = calibration.score(np.array([value, 10 * value + 1]))

    assert usual < 0.1
    assert unusual > 3


def test_errors_that_are_mostly_zero_keep_zero_normal() -> None:
    """A flat-lining sensor: ties at zero do not become an alarm."""
    errors = np.r_[np.zeros(950), np.random.default_rng(0).gamma(2, 1, 50)]

    calibration = Calibration.fit(errors)

    assert calibration.score(np.zeros(1))[0] == 0
    assert (calibration.score(errors) > 3).mean() < 0.01


def test_heavy_tails_stay_finite() -> None:
    """Errors without a mean: finite scores that still grow, shape at its upper bound."""
    errors = np.random.default_rng(1).pareto(0.4, 5000) ** 3

    calibration = Calibration.fit(errors)

    assert calibration.tail_shape == SHAPE_RANGE[1]
    assert np.isfinite(calibration.score(np.r_[errors, 1e30, 3e38])).all()


def test_an_exponential_tail_is_found_to_be_light() -> None:
    """Probability-weighted moments: shape near zero, scale near the mean excess."""
    calibration = Calibration.fit(np.random.default_rng(2).exponential(3.0, 200_000))

    assert calibration.tail_shape < 0.08
    assert calibration.tail_scale == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("shape", [0.2, 0.5])
def test_the_tail_of_a_generalised_pareto_distribution_is_found(shape: float) -> None:
    """Exceedances of such a distribution have the same shape, and scale grown by shape x threshold."""
    u = np.random.default_rng(3).random(200_000)
    errors = ((1 - u) ** -shape - 1) / shape

    calibration = Calibration.fit(errors)

    assert calibration.tail_shape == pytest.approx(shape, abs=0.06)
    assert calibration.tail_scale == pytest.approx(1 + shape * calibration.knots[-1], rel=0.12)


def test_missing_errors_do_not_count() -> None:
    """NaN of the warm-up and infinity are left out."""
    errors = drawn_errors(0, 1.0, 0.5, 300)

    with_holes = Calibration.fit(np.r_[np.full(50, np.nan), errors, np.inf])

    np.testing.assert_array_equal(with_holes.knots, Calibration.fit(errors).knots)


@pytest.mark.parametrize("errors", [np.ones(19), np.full(100, np.nan), np.empty(0)])
def test_too_few_errors_are_refused(errors: np.ndarray) -> None:
    """Nineteen errors have no tail."""
    with pytest.raises(InvalidInputError, match="too few"):
        Calibration.fit(errors)


def test_no_score_without_an_error() -> None:
    """NaN in, NaN out."""
    assert np.isnan(Calibration.fit(drawn_errors(0, 1.0, 0.5, 100)).score(np.array([np.nan]))).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(-3, 3), st.integers(1, 20), st.integers(20, 1000))
def test_the_graph_scores_as_numpy_does(seed: int, power: int, spread: int, n: int) -> None:
    """Float32 arithmetic of the graph against float64: the same scores to a thousandth, also far out in the tail."""
    errors = drawn_errors(seed, 10.0**power, spread / 10, n)
    calibration = Calibration.fit(errors)
    graph = Graph(1)
    runtime = Runtime(graph.finish(_score(graph, VALUES, calibration), graph.op("Identity", VALUES)))
    points = np.r_[0.0, errors[:200], calibration.knots, errors.max() * np.geomspace(1, 1e6, 20)].astype(np.float32)

    scores = runtime.step(points[:, None], ()).score

    np.testing.assert_allclose(scores, calibration.score(points), rtol=1e-3, atol=1e-4)


def test_the_graph_gives_no_score_without_an_error() -> None:
    """NaN in, NaN out, in the graph too: the cuts at both ends of a gap must not make a number of it."""
    calibration = Calibration.fit(drawn_errors(0, 1.0, 0.5, 100))
    graph = Graph(2)
    runtime = Runtime(graph.finish(_score(graph, VALUES, calibration), graph.op("Identity", VALUES)))

    scores = runtime.step(np.array([[np.nan, 1], [0, 1], [np.inf, 0]], np.float32), ()).score

    assert np.isnan(scores[0])
    assert np.isfinite(scores[1])
    assert np.isposinf(scores[2])


def test_levels_reach_from_nothing_to_the_tail() -> None:
    """The last knot is where a twentieth of the points lies beyond, more where points are few."""
    many, few = Calibration.fit(drawn_errors(0, 1, 1, 10_000)), Calibration.fit(drawn_errors(0, 1, 1, 50))

    assert len(many.knots) == KNOTS
    assert many.levels[[0, -1]] == pytest.approx([0, -np.log10(0.05)])
    assert few.levels[-1] == pytest.approx(-np.log10(0.4))


def test_a_scaler_gives_mean_zero_and_deviation_one_and_cuts_at_ten() -> None:
    """By feature; far-out values can not drown the others."""
    rows = np.random.default_rng(0).normal([5, -300], [2, 70], (1000, 2)).astype(np.float32)
    scaler = Scaler.fit(rows)

    scaled = scaler(rows)

    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-4)
    assert scaler(np.array([[1e30, -1e30]], np.float32)).tolist() == [[10.0, -10.0]]


@pytest.mark.parametrize(("value", "scale"), [(0.0, 1.0), (40.0, 4.0), (-40.0, 4.0), (1.7e9, 1.7e8)])
def test_a_constant_feature_gets_the_scale_of_its_own_size(value: float, scale: float) -> None:
    """A tenth of it, or 1 at zero: never a division by nothing, nor by rounding noise."""
    rows = np.full((100, 1), value, np.float32)
    rows[::2] *= np.float32(1 + 1e-7)

    assert Scaler.fit(rows).scale[0] == pytest.approx(scale, rel=1e-4)
