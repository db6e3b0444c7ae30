"""Bundles whose scores say which of them has scored: the distance to a running mean, times what the version is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.bundle import GRAPH, Bundle, Lineage, NetworkInfo, make_bundle

DETECTOR = "pump"
FEATURES = 4
WARM_UP = 3
ALPHA = 0.5
"""The mean moves by this share: after `FORGOTTEN` points nothing is left in it of what was before."""
FORGOTTEN = 24
BALLAST = 40_000
"""Numbers that make a graph as long as that of an LSTM of usual size, so that its delivery takes a while."""


def gain(version: int) -> float:
    """What the scores of a version are multiplied with; 1 % apart, and far from flooding with alarms."""
    return 1 + version / 100


def bundle(version: int) -> Bundle:
    """A whole bundle; its graph differs from that of every other version in more than a few bytes."""
    return make_bundle(
        {GRAPH: _graph(version)},
        detector=DETECTOR,
        version=version,
        device_class="parent",
        network=NetworkInfo(kind="lstm", units={"lstm0": FEATURES}, parameters=BALLAST, macs=FEATURES),
        features=[f"f{i + 1}" for i in range(FEATURES)],
        warm_up_points=WARM_UP,
        lineage=Lineage(cause="fit", seed=0, data_rows=100),
    )


class Distances:
    """What the scores of one series are, but for the factor of the version: the same arithmetic in plain numpy."""

    def __init__(self) -> None:
        self._mean = np.zeros(FEATURES, np.float32)

    def of(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of the next points [N, F]: [N]."""
        found = np.empty(len(values), np.float32)
        for i, point in enumerate(values):
            found[i] = np.abs(point - self._mean).mean()
            self._mean = self._mean + np.float32(ALPHA) * (point - self._mean)
        return found


def _graph(version: int) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ballast = np.random.default_rng(version).normal(size=BALLAST).astype(np.float32)
    constants = {
        "alpha": np.float32(ALPHA),
        "width": np.float32(FEATURES),
        "gain": np.float32(gain(version)),
        "nothing": np.float32(1e-30),
        "ballast": ballast,
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Sub", ["values", "state.mean"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Div", ["distance", "width"], ["contribution"]),
        helper.make_node("ReduceSum", ["contribution", "axis"], ["error"], keepdims=0),
        helper.make_node("ReduceMean", ["ballast"], ["weight"], keepdims=0),
        helper.make_node("Mul", ["weight", "nothing"], ["trace"]),
        helper.make_node("Mul", ["error", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "trace"], ["score"]),
        helper.make_node("Mul", ["difference", "alpha"], ["move"]),
        helper.make_node("Add", ["state.mean", "move"], ["state.mean.next"]),
    ]
    wide = [None, FEATURES]
    drawn = helper.make_graph(
        nodes,
        "distance",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, wide) for name in ("values", "state.mean")],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("contribution", TensorProto.FLOAT, wide),
            helper.make_tensor_value_info("state.mean.next", TensorProto.FLOAT, wide),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
