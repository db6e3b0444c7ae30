"""The network of a published bundle as one that runs over the last 50 points again for each point.

Peers serve this: they have no state to carry. Weights come out of the bundle's own step graph, and what a peer answers
is compared with that graph: stepped through the same 50 points from a fresh state, it gives the same error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import onnx
import onnxruntime as ort
import torch
from carried_state import WINDOW, Drawing, Top, by_operator, session, unrolled
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from detectors.training.networks.lstm import GATES

TORCH_GATES = (0, 1, 3, 2)  # the step graph orders them input, forget, output, cell; torch: input, forget, cell, output
FORMS: dict[str, Top] = {"unrolled": unrolled, "operator": by_operator}
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """Everything between raw points and the error of the newest one.

    Attributes:
        center: [F] of the inputs; they are scaled by `inverse` [F] and cut at `clip`.
        inverse: See `center`.
        clip: See `center`.
        layers: For each layer the gates' matrix [in + H, 4 H] and bias [4 H].
        head: Matrix [H, F] and bias [F], already in units of the normalised error.
        scale: [F], brings the newest point into these units.
        bound: The normalised error of a feature is cut here.
    """

    center: Array
    inverse: Array
    clip: float
    layers: tuple[tuple[Array, Array], ...]
    head: tuple[Array, Array]
    scale: Array
    bound: float

    @classmethod
    def read(cls, graph: bytes) -> Weights:
        """Of a step graph of an LSTM, as `detectors.training.export` draws it."""
        drawn = onnx.load_from_string(graph).graph
        held = {it.name: numpy_helper.to_array(it) for it in drawn.initializer}
        made = {name: node for node in drawn.node for name in node.output}
        scaled, residual = [node for node in drawn.node if node.op_type == "Clip"][:2]
        inverse = made[scaled.input[0]]
        newest, head = (made[name] for name in made[residual.input[0]].input)
        gates = [node for node in drawn.node if node.op_type == "Gemm" and node.input[0] in made]
        return cls(
            center=held[made[inverse.input[0]].input[1]],
            inverse=held[inverse.input[1]],
            clip=float(held[scaled.input[2]][0]),
            layers=tuple((held[node.input[1]], held[node.input[2]]) for node in gates),
            head=(held[head.input[1]], held[head.input[2]]),
            scale=held[newest.input[1]],
            bound=float(held[residual.input[2]][0]),
        )

    @property
    def widths(self) -> list[int]:
        """Hidden units of each layer."""
        return [len(bias) // GATES for _, bias in self.layers]

    def modules(self) -> list[torch.nn.LSTM]:
        """The layers in torch."""
        return [_module(*layer) for layer in self.layers]

    def arrays(self) -> dict[str, Array]:
        """For `peers/window_service.py --with torch`."""
        held = {f"{i}.{name}": it.numpy() for i, m in enumerate(self.modules()) for name, it in m.state_dict().items()}
        matrix, bias = self.head
        numbers = {"clip": np.float32(self.clip), "bound": np.float32(self.bound)}
        columns = {"center": self.center, "inverse": self.inverse, "scale": self.scale}
        return {**held, **numbers, **columns, "head.weight": matrix.T, "head.bias": bias}


def _module(matrix: Array, bias: Array) -> torch.nn.LSTM:
    width = len(bias) // GATES
    layer = torch.nn.LSTM(len(matrix) - width, width)
    rows = np.concatenate([np.split(matrix, GATES, axis=1)[gate] for gate in TORCH_GATES], axis=1).T
    both = np.concatenate([np.split(bias, GATES)[gate] for gate in TORCH_GATES])
    weights = (rows[:, :-width], rows[:, -width:], both, np.zeros_like(both))
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(it)) for name, it in zip(names, weights, strict=True)}
    )
    return layer


def window_graph(weights: Weights, top: Top) -> bytes:
    """Raw points [50, B, F] in, error [B] of the newest one out.

    Args:
        weights: Of a bundle.
        top: Draws the layers.
    """
    graph = Drawing()
    centred = graph.op("Sub", "window", graph.const(weights.center))
    scaled = graph.op("Mul", centred, graph.const(weights.inverse))
    points = graph.op("Clip", scaled, graph.const(-weights.clip), graph.const(weights.clip))
    before, newest = graph.ops("Split", points, graph.const([WINDOW - 1, 1], np.int64), outputs=2, axis=0)
    predicted = graph.op("Gemm", top(graph, weights.modules(), before), *map(graph.const, weights.head))
    actual = graph.op("Squeeze", graph.op("Mul", newest, graph.const(weights.scale)), graph.const([0], np.int64))
    residual = graph.op("Sub", actual, predicted)
    z = graph.op("Clip", residual, graph.const(-weights.bound), graph.const(weights.bound))
    total = [graph.op("Mul", z, z), graph.const([1], np.int64)]
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


def quicker_graph(weights: Weights, windows: Array, repeats: int) -> tuple[str, bytes]:
    """The form that ONNX Runtime is quicker with here, and its name.

    Args:
        weights: Of a bundle.
        windows: [50, B, F] to time both with.
        repeats: Runs of each; the quickest counts.
    """
    graphs = {name: window_graph(weights, top) for name, top in FORMS.items()}
    sessions = {name: session(graph) for name, graph in graphs.items()}
    took = {name: min(_seconds(it, windows) for _ in range(repeats)) for name, it in sessions.items()}
    best = min(took, key=took.__getitem__)
    harness.say(", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in took.items()) + f": {best} is served")
    return best, graphs[best]


def _seconds(made: ort.InferenceSession, windows: Array) -> float:
    return harness.seconds_of(lambda: made.run(None, {"window": windows}))


def reference(graph: bytes) -> Callable[[Array], Array]:
    """Errors [B] of the newest of points [T, B, F]: the step graph from a fresh state, before it smooths the error."""
    model = onnx.load_from_string(graph)
    smoothing = next((node for node in model.graph.node if node.input and node.input[0] == "state.smooth"), None)
    name = "contribution"
    if smoothing is not None:
        name = smoothing.input[1]
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", None]))
    stepped = session(model.SerializeToString())
    values, *states = stepped.get_inputs()
    outputs = [name, *(f"{state.name}.next" for state in states)]

    def errors(points: Array) -> Array:
        carried = [np.zeros((points.shape[1], *state.shape[1:]), np.float32) for state in states]
        for row in points:
            feed = dict(zip([state.name for state in states], carried, strict=True))
            contribution, *carried = stepped.run(outputs, {values.name: row, **feed})
        return np.asarray(contribution.sum(axis=1))

    return errors


def lstmad(path: Path, train: Array, width: int) -> None:
    """Fits PyOD's LSTMAD for one epoch and keeps what it scores with: time does not depend on how good it is."""
    import json

    from pyod.models.ts_lstm import LSTMAD

    torch.manual_seed(0)
    detector = LSTMAD(window_size=WINDOW, hidden_size=width, n_layers=2, epochs=1)
    detector.fit(train)
    state = detector.model_._net.state_dict()  # noqa: SLF001  (PyOD has no way to save one without pickle)
    sizes = json.dumps({"window": WINDOW, "width": width, "features": train.shape[1]})
    network = {f"network.{name}": value.numpy() for name, value in state.items()}
    np.savez(path, sizes=sizes, mu=detector.error_mu_, cov_inv=detector.error_cov_inv_, **network)


def lstmad_reference(path: Path, points: Array) -> NDArray[np.float64]:
    """What LSTMAD should say of points [N, F] after 50 zeros: Malhotra's error by torch's own layers.

    Args:
        path: What `lstmad` has kept.
        points: Of one series.
    """
    held = dict(np.load(path, allow_pickle=False))
    names = [name for name in held if name.startswith("network.lstm.")]
    width, features = held["network.linear.weight"].shape[::-1]
    layers = torch.nn.LSTM(features, width, 2, batch_first=True)
    layers.load_state_dict({name[len("network.lstm.") :]: torch.from_numpy(held[name]) for name in names})
    rows = np.concatenate([np.zeros((WINDOW, features), np.float32), points])
    windows = np.lib.stride_tricks.sliding_window_view(rows, WINDOW, axis=0)[:-1].swapaxes(1, 2)  # [N, 50, F]
    with torch.inference_mode():
        h = layers(torch.from_numpy(windows.copy()))[0][:, -1].numpy()
    away = points - (h @ held["network.linear.weight"].T + held["network.linear.bias"]) - held["mu"]
    return np.einsum("ni,ij,nj->n", away, held["cov_inv"], away)
