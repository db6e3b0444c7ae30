"""One step of a batch against its bare matrix products: what the graph costs beyond what can not be saved."""

from __future__ import annotations

import math

import harness
import numpy as np
from scoring_models import FEATURES, SERIES
from scoring_report import Part, at_least, table, us
from window_graphs import Weights

from detectors.runtime import Runtime

TARGET = 0.35


def run(graph: bytes, *, quick: bool) -> Part:
    """Medians over rounds that alternate, on the core this process is on.

    Args:
        graph: A step graph of an LSTM.
        quick: Fewer rounds.
    """
    from threadpoolctl import threadpool_limits

    runtime, weights = Runtime(graph), Weights.read(graph)
    points, state = harness.drawn(1, SERIES, FEATURES, seed=4)[0], runtime.fresh(SERIES)
    rng = np.random.default_rng(0)
    matrices = [*(layer.matrix for layer in weights.layers), weights.head[0]]
    products = [
        (rng.standard_normal((SERIES, len(it))).astype(np.float32), np.ascontiguousarray(it), _blank(it))
        for it in matrices
    ]

    def multiply() -> None:
        for left, right, out in products:
            np.matmul(left, right, out=out)

    ways = {"step": lambda: runtime.step(points, state), "matmul": multiply}
    found: dict[str, list[float]] = {name: [] for name in ways}
    with threadpool_limits(1):
        repeats = {name: max(10, math.ceil(0.02 / harness.seconds_of(way))) for name, way in ways.items()}
        for turn in range(9 if quick else 51):
            for name in sorted(ways, reverse=turn % 2 == 0):
                way, n = ways[name], repeats[name]
                found[name].append(harness.seconds_of(lambda way=way, n=n: [way() for _ in range(n)]) / n)
    took = {name: float(np.median(times)) for name, times in found.items()}
    ratio = float(np.median(np.divide(found["matmul"], found["step"])))  # neighbours disturb both of a round alike
    figures = {f"{name}_seconds": seconds for name, seconds in took.items()} | {"rounds": len(found["step"])}
    row = [str(SERIES), us(took["matmul"]), us(took["step"]), f"{ratio:.2f}", at_least(ratio, TARGET)]
    heads = ["batch", "products alone", "step", "products / step", "target"]
    return Part(
        "A step against its matrix products, LSTM 2x32", figures, {"step_vs_matmul": ratio}, table(heads, [row])
    )


def _blank(matrix: np.ndarray) -> np.ndarray:
    return np.empty((SERIES, matrix.shape[1]), np.float32)
