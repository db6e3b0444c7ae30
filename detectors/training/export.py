"""A fitted detector as one step graph and as a bundle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from detectors.bundle import GRAPH, WEIGHTS, Bundle, Lineage, NetworkInfo, make_bundle
from detectors.runtime import VALUES
from detectors.training.calibrate import CLIP, Calibration
from detectors.training.fitted import Fitted, save
from detectors.training.graph import Graph
from detectors.training.networks.base import Normal


def step_graph(fitted: Fitted) -> bytes:
    """Raw values in, score and contributions out: scaling, network step, error and calibration in one ONNX graph.

    See `detectors.runtime` for the contract.
    """
    n_features = len(fitted.features)
    graph = Graph(n_features)
    centred = graph.op("Sub", VALUES, graph.const(fitted.scaler.center))
    point = graph.op(
        "Clip", graph.op("Mul", centred, graph.const(fitted.scaler.inverse)), graph.const(-CLIP), graph.const(CLIP)
    )
    share = np.float32(1 / math.sqrt(n_features))  # contributions add up to the mean over features
    normal = Normal(fitted.residual.center, fitted.residual.inverse * share)
    contribution = fitted.network.draw(graph, point, normal)
    error = graph.op("ReduceSum", contribution, graph.const([1], np.int64), keepdims=1)  # [B, 1]
    return graph.finish(_score(graph, error, fitted.calibration), contribution)


def _score(graph: Graph, error: str, calibration: Calibration) -> str:
    """Piecewise linear up to the last knot, generalised Pareto beyond: [B, 1] -> [B]."""
    gaps, rises = np.diff(calibration.knots), np.diff(calibration.levels)
    inside = graph.op("Sub", error, graph.const(calibration.knots[:-1]))
    share = graph.op("Clip", graph.op("Mul", inside, graph.const(1 / gaps)), graph.const(0), graph.const(1))  # [B, K-1]
    below = graph.op("MatMul", share, graph.const(rises[:, None]))
    over = graph.op("Relu", graph.op("Sub", error, graph.const(calibration.knots[-1])))
    grown = graph.op("Mul", over, graph.const(calibration.tail_shape / calibration.tail_scale))
    log = graph.op("Log", graph.op("Add", grown, graph.const(1)))
    tail = graph.op("Mul", log, graph.const(1 / (calibration.tail_shape * math.log(10))))
    return graph.op("Squeeze", graph.op("Add", below, tail), graph.const([1], np.int64))


def to_bundle(
    fitted: Fitted,
    *,
    detector: str,
    version: int,
    device_class: str,
    lineage: Lineage,
    gate: dict[str, Any] | None = None,
) -> Bundle:
    """The publishable form of a fitted detector."""
    network = fitted.network
    return make_bundle(
        {GRAPH: step_graph(fitted), WEIGHTS: save(fitted)},
        detector=detector,
        version=version,
        device_class=device_class,
        network=NetworkInfo(
            kind=network.kind,
            units=network.units,
            parameters=network.parameters_count,
            macs=network.macs,
            options=network.options,
        ),
        features=list(fitted.features),
        warm_up_points=network.warm_up_points,
        gate=gate,
        lineage=lineage,
    )
