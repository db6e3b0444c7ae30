"""A fitted detector as one step graph and as a bundle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from detectors.bundle import GRAPH, WEIGHTS, Bundle, Lineage, NetworkInfo, make_bundle
from detectors.runtime import MISSING_STATE, VALUES
from detectors.training.calibrate import Calibration, Scaler
from detectors.training.fitted import Fitted, View, kept, save
from detectors.training.graph import Graph
from detectors.training.networks import Network


def step_graph(fitted: Fitted) -> bytes:
    """Raw values in, score and contributions out: everything in one ONNX graph.

    Scaling, missing values, the network's step, its error, smoothing and calibration; for an ensemble those of each
    member, then the mean of their scores and its calibration. See `detectors.runtime` for the contract.
    """
    network = fitted.network
    graph = Graph(len(fitted.features), network.stride)
    point, missing = _point(graph, fitted.scaler, network.stride, carry=fitted.how.missing == "carry")
    drawn = []
    for (name, member), view in zip(network.members.items(), fitted.views, strict=True):
        graph.prefix = f"{name}." if name else ""
        drawn.append(_contribution(graph, fitted, member, view, point, missing))
    graph.prefix = ""
    if fitted.combined is None:
        contribution = drawn[0]
        return graph.finish(_score(graph, contribution, fitted.views[0].calibration), contribution)
    shares = [
        _shared(graph, each, view.calibration, len(drawn)) for each, view in zip(drawn, fitted.views, strict=True)
    ]
    contribution = shares[0]
    for share in shares[1:]:
        contribution = graph.op("Add", contribution, share)
    return graph.finish(_score(graph, contribution, fitted.combined), contribution)


def _point(graph: Graph, scaler: Scaler, stride: int, *, carry: bool) -> tuple[str, str | None]:
    """The scaled point, [B, F] ([B, stride * F]), and 1 where a value was missing; None: none can be."""
    n_features = graph.n_features
    values = VALUES
    if stride > 1:
        values = graph.op("Reshape", values, graph.const([-1, stride * n_features], np.int64))
    center, inverse = np.tile(scaler.center, stride), np.tile(scaler.inverse, stride)
    scaled = graph.op("Mul", graph.op("Sub", values, graph.const(center)), graph.const(inverse))
    if scaler.clip is not None:
        scaled = graph.op("Clip", scaled, graph.const(-scaler.clip), graph.const(scaler.clip))
    if not carry:
        return scaled, None
    gone = graph.op("IsNaN", values)
    last = graph.state(MISSING_STATE, (n_features,))
    steps = []
    before = last
    for i in range(stride):  # the last value is carried from point to point
        here = [graph.const([at], np.int64) for at in (i * n_features, (i + 1) * n_features, 1)]
        before = graph.op("Where", graph.op("Slice", gone, *here), before, graph.op("Slice", scaled, *here))
        steps.append(before)
    graph.carry(last, before)
    point = steps[0] if stride == 1 else graph.op("Concat", *steps, axis=1)
    return point, graph.op("Cast", gone, to=1)  # 1: float


def _contribution(graph: Graph, fitted: Fitted, member: Network, view: View, point: str, missing: str | None) -> str:
    """What each feature contributes to a member's smoothed error, [B, F]."""
    n_features = graph.n_features
    known = None
    if missing is not None:
        window = member.draw_window(graph, missing, "missing") if member.positions > 1 else _newest(graph, missing)
        known = graph.op("Sub", graph.number(1), window)
    z = member.draw(graph, point, view.form.normal)
    each = view.form.draw(graph, z, member.positions, n_features, known)
    keep = kept(member, fitted.how)
    if not keep:
        return each
    smooth = graph.state("smooth", (n_features,))
    now = graph.mixed(smooth, np.full(n_features, keep, np.float32), each, share=1 - keep)
    graph.carry(smooth, now)
    return now


def _newest(graph: Graph, points: str) -> str:
    """The last of the points of a step, [B, F]."""
    if graph.stride == 1:
        return points
    first, last = (graph.stride - 1) * graph.n_features, graph.stride * graph.n_features
    return graph.op("Slice", points, *(graph.const([at], np.int64) for at in (first, last, 1)))


def _shared(graph: Graph, contribution: str, calibration: Calibration, members: int) -> str:
    """A member's part of the mean score, spread over features as they contribute to its error: [B, F]."""
    error = graph.op("ReduceSum", contribution, graph.const([1], np.int64), keepdims=1)  # [B, 1]
    score = graph.op("Mul", _calibrated(graph, error, 1, calibration), graph.number(1 / members))
    return graph.op("Mul", contribution, graph.op("Div", score, graph.op("Max", error, graph.number(1e-12))))


def _score(graph: Graph, contribution: str, calibration: Calibration) -> str:
    score = _calibrated(graph, contribution, graph.n_features, calibration)
    return graph.op("Squeeze", score, graph.const([1], np.int64))  # [B]


def _calibrated(graph: Graph, parts: str, n_parts: int, calibration: Calibration) -> str:
    """Piecewise linear up to the last knot, generalised Pareto beyond: parts of the error [B, n_parts] -> [B, 1].

    Products with the parts sum them up, move and scale them at once: the share of each gap that lies below the error,
    and what it is beyond the last knot.
    """
    gaps, rises = np.diff(calibration.knots), np.diff(calibration.levels)
    inside = graph.affine(parts, np.tile(1 / gaps, (n_parts, 1)), -calibration.knots[:-1] / gaps)
    share = graph.op("HardSigmoid", inside, alpha=1.0, beta=0.0)  # [B, K-1], cut to 0 ... 1
    steep = calibration.tail_shape / calibration.tail_scale
    grown = graph.affine(parts, np.full((n_parts, 1), steep), [1 - steep * calibration.knots[-1]])
    log = graph.op("Log", graph.op("Max", grown, graph.number(1)))
    tail = 1 / (calibration.tail_shape * math.log(10))
    return graph.op("Gemm", share, graph.const(rises[:, None]), log, beta=tail)


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
        warm_up_points=fitted.warm_up_points,
        gate=gate,
        lineage=lineage,
    )
