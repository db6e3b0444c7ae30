"""Tiny step graphs that follow the contract of `detectors.runtime`, so that service tests need no training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from detectors.bundle import GRAPH, Bundle, Lineage, NetworkInfo, make_bundle


def ewma_graph(n_features: int, alpha: float = 0.1, gain: float = 1.0, wasted: int = 0) -> bytes:
    """Score = gain * mean |x - carried mean|; contribution = |x - mean| / F; the mean moves by alpha.

    A step also multiplies matrices `wasted` times, to no effect but that it takes long.
    """
    constants = {"alpha": alpha, "gain": gain, "width": float(n_features)}
    nodes = [
        helper.make_node("Sub", ["values", "state.mean"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Div", ["distance", "width"], ["contribution"]),
        helper.make_node("ReduceSum", ["contribution", "axis"], ["error"], keepdims=0),
        helper.make_node("Mul", ["error", "gain"], ["score"]),
        helper.make_node("Mul", ["difference", "alpha"], ["move"]),
        helper.make_node("Add", ["state.mean", "move"], ["state.mean.next"]),
    ]
    if wasted:
        nodes[4].output[0] = "sound"
        nodes += [
            helper.make_node("ReduceMean", ["values"], ["heat0"], keepdims=0),
            helper.make_node("Mul", ["heat0", "matrix"], ["turn0"]),
            *(helper.make_node("MatMul", [f"turn{i}", "matrix"], [f"turn{i + 1}"]) for i in range(wasted)),
            helper.make_node("ReduceMean", [f"turn{wasted}"], ["heat"], keepdims=0),
            helper.make_node("Mul", ["heat", "nothing"], ["effect"]),
            helper.make_node("Add", ["sound", "effect"], ["score"]),
        ]
    wide = [None, n_features]
    graph = helper.make_graph(
        nodes,
        "ewma",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, wide) for name in ("values", "state.mean")],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("contribution", TensorProto.FLOAT, wide),
            helper.make_tensor_value_info("state.mean.next", TensorProto.FLOAT, wide),
        ],
        [
            *(numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()),
            numpy_helper.from_array(np.array([1]), "axis"),
            *([numpy_helper.from_array(np.full((200, 200), 1 / 200, np.float32), "matrix")] if wasted else []),
            *([numpy_helper.from_array(np.float32(1e-30), "nothing")] if wasted else []),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def ewma_bundle(
    detector: str,
    version: int = 1,
    n_features: int = 2,
    *,
    alpha: float = 0.1,
    gain: float = 1.0,
    wasted: int = 0,
    warm_up_points: int = 3,
    device_class: str = "parent",
    features: Sequence[str] | None = None,
) -> Bundle:
    """A whole bundle around `ewma_graph`."""
    return make_bundle(
        {GRAPH: ewma_graph(n_features, alpha, gain, wasted)},
        detector=detector,
        version=version,
        device_class=device_class,
        network=NetworkInfo(kind="lstm", units={"lstm0": n_features}, parameters=3, macs=n_features),
        features=list(features or (f"f{i + 1}" for i in range(n_features))),
        warm_up_points=warm_up_points,
        lineage=Lineage(cause="fit", seed=0, data_rows=100),
    )


def ewma_scores(values: np.ndarray, alpha: float = 0.1, gain: float = 1.0, warm_up_points: int = 3) -> np.ndarray:
    """What `ewma_graph` gives one series, in plain numpy; NaN while warming up."""
    mean = np.zeros(values.shape[1], np.float32)
    scores = []
    for point in values.astype(np.float32):
        scores.append(gain * np.abs(point - mean).mean())
        mean = mean + np.float32(alpha) * (point - mean)
    scores[:warm_up_points] = [np.nan] * min(warm_up_points, len(scores))
    return np.array(scores, np.float32)
