"""From residuals to contributions: each form in numpy and in the graph, its statistics, and what it must never do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.runtime import VALUES, Runtime
from detectors.training.error_forms import (
    FORMS,
    POINT_CLIP,
    RESIDUAL_FLOOR,
    ErrorForm,
    Euclidean,
    Mahalanobis,
    Robust,
    Summed,
)
from detectors.training.graph import Graph


def drawn(form: ErrorForm, residual: np.ndarray) -> np.ndarray:
    """Contributions of residuals [N, R, F] by the form's graph."""
    n, positions, n_features = residual.shape
    graph = Graph(positions * n_features)
    center, inverse = (np.tile(each, positions) for each in form.normal)
    z = graph.op("Mul", graph.op("Sub", VALUES, graph.const(center)), graph.const(inverse))
    each = form.draw(graph, z, positions, n_features, None)
    wide = graph.op("MatMul", each, graph.const(np.eye(n_features, positions * n_features)))  # as wide as the input
    score = graph.op(
        "Squeeze", graph.op("ReduceSum", each, graph.const([1], np.int64), keepdims=1), graph.const([1], np.int64)
    )
    step = Runtime(graph.finish(score, wide)).step(residual.reshape(n, -1), ())
    return step.contribution[:, :n_features]


def made(name: str, n_features: int, rng: np.random.Generator, positions: int = 1) -> ErrorForm:
    """A form with fitted statistics."""
    rows = rng.normal(0.2, rng.uniform(0.1, 2, n_features), (200, n_features)).astype(np.float32)
    blank = {
        "robust": Robust.blank(n_features, positions=positions, half_life=2.0, aggregate="worst"),
        "summed": Summed(n_features, offset=-0.3),
        "euclidean": Euclidean(n_features),
        "mahalanobis": Mahalanobis(np.zeros(n_features, np.float32), np.eye(n_features, dtype=np.float32)),
    }
    return blank[name].refitted(rows, len(rows))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(FORMS)), st.integers(1, 20), st.sampled_from([1, 3]), st.integers(0, 10**6))
def test_graph_and_numpy_agree(name: str, n_features: int, positions: int, seed: int) -> None:
    """Every form, to a millionth of the largest contribution, also for residuals far beyond the clip."""
    rng = np.random.default_rng(seed)
    positions = 1 if name == "mahalanobis" else positions
    form = made(name, n_features, rng, positions)
    residual = rng.normal(0, 5, (7, positions, n_features)).astype(np.float32)

    wanted = form(residual)

    np.testing.assert_allclose(drawn(form, residual), wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_form_comes_back_from_its_arrays(name: str) -> None:
    """As weights.safetensors keeps it."""
    rng = np.random.default_rng(0)
    form = made(name, 3, rng)
    residual = rng.normal(0, 2, (5, 1, 3)).astype(np.float32)

    again = FORMS[name].of(form.arrays())

    np.testing.assert_array_equal(again(residual), form(residual))


def test_the_robust_scale_survives_outliers_and_has_a_floor() -> None:
    """One per cent of wild residuals hardly move it; perfectly predicted features do not divide by zero."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(0.3, 0.5, 5000), np.zeros(5000)], axis=1).astype(np.float32)
    rows[:50, 0] = 1e4

    form = Robust.blank(2).refitted(rows, 10**9)

    assert form.center[0] == pytest.approx(0.3, abs=0.05)
    assert form.scale[0] == pytest.approx(0.5, rel=0.15)
    assert form.scale[1] == pytest.approx(RESIDUAL_FLOOR, rel=1e-3)


def test_scales_from_few_points_are_drawn_together() -> None:
    """A thousand points: half way, on the logarithm, to the common scale; their product stays."""
    rows = np.random.default_rng(0).normal(0, [0.1, 1.6], (4000, 2)).astype(np.float32)

    none, half, full = (Robust.blank(2).refitted(rows, points).scale for points in (0, 1000, 10**9))

    assert none == pytest.approx([0.4, 0.4], rel=0.05)
    assert half == pytest.approx([0.2, 0.8], rel=0.05)
    assert full == pytest.approx([0.1, 1.6], rel=0.05)


def test_a_feature_that_mostly_stands_still_is_not_blown_up() -> None:
    """Its median deviation is zero; the deviation of what it does now and then is its scale."""
    rows = np.zeros((1000, 1), np.float32)
    rows[::20] = 1.0

    assert Robust.blank(1).refitted(rows, len(rows)).scale[0] > 0.15


def test_heavy_tails_are_clipped() -> None:
    """One dead sensor contributes a bounded error, however far it is."""
    form = Robust.blank(4)
    residual = np.zeros((1, 1, 4), np.float32)
    residual[0, 0, 2] = 1e6

    contribution = form(residual)

    assert contribution.sum() == pytest.approx(POINT_CLIP**2 / 4)
    assert contribution[0].tolist() == pytest.approx([0, 0, POINT_CLIP**2 / 4, 0])


@pytest.mark.parametrize(("n_features", "worst"), [(1, 1), (8, 8), (9, 8), (38, 10)])
def test_the_worst_few_make_the_error(n_features: int, worst: int) -> None:
    """The mean over a quarter of the features, at least eight; it is spread over all as they are wrong."""
    form = Robust.blank(n_features, aggregate="worst")
    residual = np.linspace(0.1, 1, n_features, dtype=np.float32)[None, None]

    contribution = form(residual)[0]

    assert (np.diff(contribution) > 0).all() or n_features == 1
    assert contribution.sum() == pytest.approx(np.square(residual[0, 0, -worst:]).mean())


def test_a_missing_value_contributes_nothing() -> None:
    """Whatever was carried in its place."""
    residual = np.full((1, 2, 3), 2.0, np.float32)
    known = np.ones_like(residual)
    known[:, :, 1] = 0

    for name in sorted(FORMS):
        if name != "mahalanobis":
            contribution = made(name, 3, np.random.default_rng(0), positions=2)
            with_offset = contribution(residual, known)[0, 1]
            assert with_offset == pytest.approx(-0.1 if name == "summed" else 0.0)


def test_mahalanobis_is_the_distance() -> None:
    """Distance d P d', as scipy has it, from the statistics of the residuals."""
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3))).astype(np.float32)
    form = Mahalanobis(np.zeros(3, np.float32), np.eye(3, dtype=np.float32)).refitted(rows, len(rows))
    away = rows[:10] - rows.mean(axis=0)
    wanted = np.einsum("nf,fg,ng->n", away, np.linalg.inv(np.cov(rows.T)), away)

    np.testing.assert_allclose(form(rows[:10, None]).sum(axis=1), wanted, rtol=1e-2)


def test_positions_of_a_window_count_half_after_a_half_life() -> None:
    """The newest most; all together once."""
    weights = Robust.blank(2, positions=12, half_life=4.0).weights

    assert weights.sum() == pytest.approx(1)
    assert weights[-5] == pytest.approx(weights[-1] / 2)
    assert Robust.blank(2, positions=4).weights.tolist() == [0.25] * 4


def test_clipped_features_are_still_told_apart() -> None:
    """Three sensors beyond the clip: the worst one has the largest share, in proportion to the squares."""
    residual = np.array([[[5.0, 10.0, 20.0, 0.0]]], np.float32)

    contribution = Robust.blank(4)(residual)[0]

    assert contribution.sum() == pytest.approx(3 * POINT_CLIP**2 / 4)
    assert contribution / contribution.sum() == pytest.approx(np.array([25, 100, 400, 0]) / 525)
