"""What serving peers are given of a published bundle, and what they should answer.

They run its network over the last 50 points again for each point, since they have no state to carry. What they answer
is compared with the bundle's own step graph: through the same 50 points from a fresh state, it gives the same error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from window_graphs import FORMS, TORCH_GATES, WINDOW, Array, Weights, session, window_graph


def torch_arrays(weights: Weights) -> dict[str, Array]:
    """For `peers/window_service.py --with torch`."""
    held: dict[str, Array] = {}
    for i, layer in enumerate(weights.layers):
        w_in, w_h, bias = layer.ordered(TORCH_GATES)
        named = {"weight_ih_l0": w_in, "weight_hh_l0": w_h, "bias_ih_l0": bias, "bias_hh_l0": np.zeros_like(bias)}
        held |= {f"{i}.{name}": value for name, value in named.items()}
    matrix, bias = weights.head
    numbers = {"clip": np.float32(weights.clip), "bound": np.float32(weights.bound)}
    columns = {"center": weights.center, "inverse": weights.inverse, "scale": weights.scale}
    every = {**held, **numbers, **columns, "head.weight": matrix.T, "head.bias": bias}
    return {name: np.ascontiguousarray(value) for name, value in every.items()}


def quicker_graph(weights: Weights, windows: Array, repeats: int) -> tuple[str, bytes]:
    """The form that ONNX Runtime is quicker with here, and its name.

    Args:
        weights: Of a bundle.
        windows: [50, B, F] to time both with.
        repeats: Runs of each; the quickest counts.
    """
    graphs = {name: window_graph(weights, form) for name, form in FORMS.items()}
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
        name = smoothing.input[-1]
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
