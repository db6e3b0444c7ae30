"""The builder of step graphs: what it draws differently for narrow and wide signals is the same arithmetic."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from detectors.runtime import VALUES, Runtime
from detectors.training.graph import NARROW, Graph

WIDTHS = (1, 8, NARROW, NARROW + 1, 60)
RNG = np.random.default_rng(3)


def kinds(graph: bytes) -> list[str]:
    """Operations of a graph, in order."""
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


@pytest.mark.parametrize("n_features", WIDTHS)
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_mixed_is_a_scaled_sum(n_features: int, share: float) -> None:
    """Signal * scale + share * added to float32's last bits; narrow ones as one operation."""
    points, scale = RNG.normal(size=(5, n_features)).astype(np.float32), RNG.normal(size=n_features).astype(np.float32)
    graph = Graph(n_features)
    doubled = graph.op("Add", VALUES, VALUES)
    drawn = graph.mixed(VALUES, scale, doubled, share=share)
    made = graph.finish(graph.op("ReduceSum", drawn, graph.const([1], np.int64), keepdims=0), drawn)

    found = Runtime(made).step(points, ()).contribution

    np.testing.assert_allclose(found, points * scale + share * 2 * points, rtol=1e-6, atol=1e-6)
    assert kinds(made)[1:-1] == ["Gemm"] or n_features > NARROW


@pytest.mark.parametrize("n_features", WIDTHS)
def test_total_sums_up_columns(n_features: int) -> None:
    """The sum of a row, wherever it is broadcast."""
    points = RNG.normal(size=(5, n_features)).astype(np.float32)
    graph = Graph(n_features)
    shares = graph.op("Sub", VALUES, graph.total(VALUES, n_features, n_features))
    made = graph.finish(graph.op("ReduceSum", shares, graph.const([1], np.int64), keepdims=0), shares)

    found = Runtime(made).step(points, ()).contribution

    np.testing.assert_allclose(found, points - points.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-5)


def test_a_number_fits_every_signal() -> None:
    """Beside [B, 1] and [B, F] alike, and the shape stays."""
    graph = Graph(3)
    one = graph.op("ReduceSum", VALUES, graph.const([1], np.int64), keepdims=1)
    limited = graph.op("Max", VALUES, graph.number(0.5))
    score = graph.op("Squeeze", graph.op("Mul", one, graph.number(2)), graph.const([1], np.int64))
    points = RNG.normal(size=(4, 3)).astype(np.float32)

    step = Runtime(graph.finish(score, limited)).step(points, ())

    np.testing.assert_allclose(step.score, 2 * points.sum(axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(step.contribution, np.maximum(points, 0.5))
