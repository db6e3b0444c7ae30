"""The network of a step graph as one that runs over the last 50 points again for each point, in ONNX.

Weights come out of the step graph itself, so both have the same arithmetic. `carried_state.py` times the two against
each other, `scoring.py` has peers serve them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in `detectors.runtime`: before the import

import onnxruntime as ort

WINDOW = 50
GATES = 4  # a step graph orders them input, forget, output, cell
ONNX_GATES = (0, 2, 1, 3)  # input, output, forget, cell
TORCH_GATES = (0, 1, 3, 2)  # input, forget, cell, output
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One LSTM layer.

    Attributes:
        matrix: [in + H, 4 H], the gates over [x, h].
        bias: [4 H].
    """

    matrix: Array
    bias: Array

    @property
    def width(self) -> int:
        """Hidden units."""
        return len(self.bias) // GATES

    def ordered(self, gates: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """Input weights [4 H, in], recurrent weights [4 H, H] and bias [4 H], gates in another order."""
        rows = np.concatenate([np.split(self.matrix, GATES, axis=1)[gate] for gate in gates], axis=1).T
        bias = np.concatenate([np.split(self.bias, GATES)[gate] for gate in gates])
        return rows[:, : -self.width], rows[:, -self.width :], bias


@dataclass(frozen=True)
class Weights:
    """Everything between raw points and the error of the newest one.

    Attributes:
        center: [F] of the inputs; they are scaled by `inverse` [F] and cut at `clip`.
        inverse: See `center`.
        clip: See `center`.
        layers: Bottom first.
        head: Matrix [H, F] and bias [F], already in units of the normalised error.
        scale: [F], brings the newest point into these units.
        bound: The normalised error of a feature is cut here.
    """

    center: Array
    inverse: Array
    clip: float
    layers: tuple[Layer, ...]
    head: tuple[Array, Array]
    scale: Array
    bound: float

    @classmethod
    def read(cls, graph: bytes) -> Weights:
        """Of the step graph of an LSTM with at most eight features, as `detectors.training.export` draws it."""
        drawn = onnx.load_from_string(graph).graph
        held = {it.name: numpy_helper.to_array(it) for it in drawn.initializer}
        made = {name: node for node in drawn.node for name in node.output}
        scaled, residual = [node for node in drawn.node if node.op_type == "Clip"][:2]
        inverse = made[scaled.input[0]]
        newest = made[residual.input[0]]  # the point on a diagonal, plus the prediction with its sign changed
        head = made[newest.input[2]]
        layers = []
        for both in [node for node in drawn.node if node.op_type == "Concat"]:
            gates = [node for node in drawn.node if node.op_type == "Gemm" and node.input[0] == both.output[0]]
            weights, biases = ([held[node.input[i]] for node in gates] for i in (1, 2))
            layers.append(Layer(np.concatenate(weights, axis=1), np.concatenate(biases)))
        return cls(
            center=held[made[inverse.input[0]].input[1]],
            inverse=held[inverse.input[1]],
            clip=float(held[scaled.input[2]][0]),
            layers=tuple(layers),
            head=(-held[head.input[1]], -held[head.input[2]]),
            scale=np.diagonal(held[newest.input[1]]),
            bound=float(held[residual.input[2]][0]),
        )

    @property
    def widths(self) -> list[int]:
        """Hidden units of each layer."""
        return [layer.width for layer in self.layers]


class Drawing:
    """Nodes and constants of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, value: object, dtype: type = np.float32) -> str:
        """A constant tensor."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value, dtype), f"const_{len(self.constants)}")
        self.constants.append(tensor)
        return tensor.name

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: object) -> list[str]:
        """An operation with several outputs."""
        names = [f"{kind.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """An operation with one output."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]


def by_operator(graph: Drawing, layers: tuple[Layer, ...], signal: str) -> str:
    """One LSTM operator a layer."""
    for layer in layers:
        w_in, w_h, bias = (value[None] for value in layer.ordered(ONNX_GATES))
        inputs = (graph.const(w_in), graph.const(w_h), graph.const(np.concatenate([bias, 0 * bias], axis=1)))
        every, last = graph.ops("LSTM", signal, *inputs, outputs=2, hidden_size=layer.width)
        signal = graph.op("Squeeze", every, graph.const([1], np.int64))
    return graph.op("Squeeze", last, graph.const([0], np.int64))


def unrolled(graph: Drawing, layers: tuple[Layer, ...], signal: str) -> str:
    """The step graph's cells, once for each point; the first point meets a state of zeros."""
    axis = graph.const([0], np.int64)
    pieces = graph.ops("Split", signal, graph.const([1] * (WINDOW - 1), np.int64), outputs=WINDOW - 1, axis=0)
    signals = [graph.op("Squeeze", piece, axis) for piece in pieces]
    for layer in layers:
        width = layer.width
        weight, bias = graph.const(layer.matrix), graph.const(layer.bias)
        zero = graph.op("MatMul", signals[0], graph.const(np.zeros((len(layer.matrix) - width, width))))
        thirds, gates = graph.const([width] * 3, np.int64), graph.const([3 * width, width], np.int64)
        h = cell = zero
        for t, point in enumerate(signals):
            raw = graph.op("Gemm", graph.op("Concat", point, h, axis=1), weight, bias)
            raw_sigmoid, raw_cell = graph.ops("Split", raw, gates, outputs=2, axis=1)
            i, f, o = graph.ops("Split", graph.op("Sigmoid", raw_sigmoid), thirds, outputs=3, axis=1)
            new = graph.op("Mul", i, graph.op("Tanh", raw_cell))
            cell = graph.op("Add", graph.op("Mul", f, cell), new)
            h = signals[t] = graph.op("Mul", o, graph.op("Tanh", cell))
    return signals[-1]


Form = Callable[[Drawing, tuple[Layer, ...], str], str]
"""Draws layers over [49, B, F]; returns the name of the top layer's last h, [B, H]."""
FORMS: dict[str, Form] = {"operator": by_operator, "unrolled": unrolled}


def window_graph(weights: Weights, form: Form) -> bytes:
    """Raw points [50, B, F] in, error [B] of the newest one out, which is predicted from the 49 before.

    Args:
        weights: Of a step graph.
        form: Draws the layers.
    """
    graph = Drawing()
    centred = graph.op("Sub", "window", graph.const(weights.center))
    scaled = graph.op("Mul", centred, graph.const(weights.inverse))
    points = graph.op("Clip", scaled, graph.const(-weights.clip), graph.const(weights.clip))
    before, newest = graph.ops("Split", points, graph.const([WINDOW - 1, 1], np.int64), outputs=2, axis=0)
    predicted = graph.op("Gemm", form(graph, weights.layers, before), *map(graph.const, weights.head))
    actual = graph.op("Squeeze", graph.op("Mul", newest, graph.const(weights.scale)), graph.const([0], np.int64))
    residual = graph.op("Sub", actual, predicted)
    z = graph.op("Clip", residual, graph.const(-weights.bound), graph.const(weights.bound))
    total = [graph.op("Mul", z, z), graph.const([1], np.int64)]  # the mean over all features is in the weights
    graph.nodes.append(helper.make_node("ReduceSum", total, ["error"], keepdims=0))
    drawn = helper.make_graph(
        graph.nodes,
        "window",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, [WINDOW, "B", len(weights.center)])],
        [helper.make_tensor_value_info("error", TensorProto.FLOAT, ["B"])],
        graph.constants,
    )
    model = helper.make_model(drawn, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def session(graph: bytes) -> ort.InferenceSession:
    """One thread and subnormals flushed, as `detectors.runtime` has it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
