"""What carrying state saves: one step a point, against running over the last 50 points again for each point.

The same LSTM 2x32 of 8 features, with the same weights, twice in ONNX Runtime on one thread:

  carried   the step graph that a bundle holds: state in, state out, one step a point, and the score
  operator  ONNX's LSTM operator over the last 50 points from a zero state, the newest one predicted from the 49 before
  unrolled  the same with 49 copies of the step graph's own cells in one graph, which is quicker for large batches

All are timed turn by turn, and the quicker form of the window counts. What favours the window is left in: building it
is not timed, and its graphs end at the error, without the calibrated score. The results for the same points are
compared by rank (Spearman), so that what is fast is also right.

Example:
  python benchmarks/carried_state.py --quick --json carried_state.json

Target at a batch of 256: at least 20 times the points a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import harness
import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from detectors.runtime import Runtime
from detectors.training.calibrate import CLIP
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, fit
from detectors.training.fitted import ErrorOptions, Fitted
from detectors.training.stretches import Stretches

WINDOW, FEATURES, WIDTH = 50, 8, 32
BATCHES = (256, 1)
TARGET = 20.0
FIT_POINTS, COMPARED_POINTS, COMPARED_SERIES = 4000, 300, 16
Array = NDArray[np.float32]


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


Top = Callable[[Drawing, Iterable[torch.nn.Module], str], str]
"""Draws layers over [T, B, F]; returns the name of the top layer's last h, [B, H]."""


def window_graph(fitted: Fitted, top: Top) -> bytes:
    """Raw points [50, B, F] in, normalised error [B] of the newest one out; the same statistics as the step graph.

    Args:
        fitted: The detector.
        top: Draws the layers.
    """
    graph, network = Drawing(), fitted.network
    centred = graph.op("Sub", "window", graph.const(fitted.scaler.center))
    scaled = graph.op("Mul", centred, graph.const(fitted.scaler.inverse))
    points = graph.op("Clip", scaled, graph.const(-CLIP), graph.const(CLIP))
    before, newest = graph.ops("Split", points, graph.const([WINDOW - 1, 1], np.int64), outputs=2, axis=0)
    head = (graph.const(network.head.weight.detach().numpy().T), graph.const(network.head.bias.detach().numpy()))
    predicted = graph.op("Gemm", top(graph, network.layers, before), *head)
    actual = graph.op("Squeeze", newest, graph.const([0], np.int64))
    form = fitted.views[0].form  # the mean over all features: there are no more than the worst few
    bound = form.clip / math.sqrt(FEATURES)
    residual = graph.op("Sub", graph.op("Sub", actual, predicted), graph.const(form.normal.center))
    scaled_residual = graph.op("Mul", residual, graph.const(form.normal.inverse))
    z = graph.op("Clip", scaled_residual, graph.const(-bound), graph.const(bound))
    total = [graph.op("Mul", z, z), graph.const([1], np.int64)]
    graph.nodes.append(helper.make_node("ReduceSum", total, ["error"], keepdims=0))
    drawn = helper.make_graph(
        graph.nodes,
        "window",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, [WINDOW, "B", FEATURES])],
        [helper.make_tensor_value_info("error", TensorProto.FLOAT, ["B"])],
        graph.constants,
    )
    model = helper.make_model(drawn, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def by_operator(graph: Drawing, layers: Iterable[torch.nn.Module], signal: str) -> str:
    """One LSTM operator a layer."""
    for layer in layers:
        w_in, w_h, b_in, b_h = (value[None] for value in _gates(layer, order=(0, 3, 1, 2)))  # ONNX: input, output, ...
        inputs = (graph.const(w_in), graph.const(w_h), graph.const(np.concatenate([b_in, b_h], axis=1)))
        every, last = graph.ops("LSTM", signal, *inputs, outputs=2, hidden_size=layer.hidden_size)
        signal = graph.op("Squeeze", every, graph.const([1], np.int64))
    return graph.op("Squeeze", last, graph.const([0], np.int64))


def unrolled(graph: Drawing, layers: Iterable[torch.nn.Module], signal: str) -> str:
    """The step graph's cells, once for each point; the first point meets a state of zeros."""
    axis = graph.const([0], np.int64)
    pieces = graph.ops("Split", signal, graph.const([1] * (WINDOW - 1), np.int64), outputs=WINDOW - 1, axis=0)
    signals = [graph.op("Squeeze", piece, axis) for piece in pieces]
    for layer in layers:
        width = layer.hidden_size
        w_in, w_h, b_in, b_h = _gates(layer, order=(0, 1, 3, 2))
        weight, bias = graph.const(np.concatenate([w_in, w_h], axis=1).T), graph.const(b_in + b_h)
        zero = graph.op("MatMul", signals[0], graph.const(np.zeros((w_in.shape[1], width))))
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


def _gates(layer: torch.nn.Module, order: tuple[int, ...]) -> list[Array]:
    """Input and recurrent weights and both biases; `order` picks from torch's gates: input, forget, cell, output."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    split = (np.split(getattr(layer, name).detach().numpy(), 4) for name in names)
    return [np.concatenate([gates[gate] for gate in order]) for gates in split]


def session(graph: bytes) -> ort.InferenceSession:
    """One thread and subnormals flushed, as `detectors.runtime` has it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


WINDOWS = {"operator": by_operator, "unrolled": unrolled}


def fitted_network(updates: int) -> Fitted:
    """An LSTM 2x32 of drawn data."""
    harness.say(f"fitting an LSTM 2x{WIDTH}")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    data = Stretches.of([harness.drawn(FIT_POINTS, 1, FEATURES, seed=2)[:, 0]])
    names = tuple(f"f{i + 1}" for i in range(FEATURES))
    options = {"layers": 2, "width": WIDTH}
    unsmoothed = ErrorOptions(half_life=0)  # a window that is run anew for each point has no error before to smooth
    return fit("lstm", data, names, seed=0, options=options, how=FitOptions(updates=updates), error=unsmoothed)


def agreement(runtime: Runtime, windows: Mapping[str, ort.InferenceSession]) -> dict[str, float]:
    """Rank correlation of carried scores and re-run errors, and the share of large ones that all find."""
    from scipy.stats import spearmanr

    points = harness.drawn(WINDOW + COMPARED_POINTS, COMPARED_SERIES, FEATURES, seed=3)
    rng = np.random.default_rng(3)
    odd = rng.random(points.shape[:2]) < 0.02  # so that there is something to find
    points[odd] += rng.normal(0, 2, (int(odd.sum()), FEATURES)).astype(np.float32)
    state, carried = runtime.fresh(COMPARED_SERIES), []
    for row in points:
        step = runtime.step(row, state)
        state = step.state
        carried.append(step.score)
    scores = np.concatenate(carried[WINDOW - 1 :])
    found = {}
    for name, window in windows.items():
        starts = range(len(points) - WINDOW + 1)
        errors = np.concatenate([window.run(None, {"window": points[t : t + WINDOW]})[0] for t in starts])
        top = len(scores) // 100
        both = np.intersect1d(np.argsort(scores)[-top:], np.argsort(errors)[-top:])
        found |= {f"spearman_{name}": float(spearmanr(scores, errors).statistic)}
        found |= {f"top_percent_in_both_{name}": len(both) / top}
    return found


def rates(
    runtime: Runtime, windows: Mapping[str, ort.InferenceSession], batch: int, rounds: int, seconds: float
) -> dict[str, float]:
    """Points a second of all, as medians over rounds that alternate."""
    points = harness.drawn(WINDOW, batch, FEATURES, seed=4)
    state = [runtime.fresh(batch)]

    def step() -> None:
        state[0] = runtime.step(points[0], state[0]).state

    ways: dict[str, Callable[[], object]] = {"carried": step}
    ways |= {name: partial(window.run, None, {"window": points}) for name, window in windows.items()}
    repeats = {name: max(5, math.ceil(seconds / _seconds_each(way, 10))) for name, way in ways.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in sorted(ways, reverse=turn % 2 == 0):
            found[name].append(batch / _seconds_each(ways[name], repeats[name]))
    return {name: float(np.median(values)) for name, values in found.items()}


def _seconds_each(way: Callable[[], object], times: int) -> float:
    way()
    began = time.perf_counter()
    for _ in range(times):
        way()
    return (time.perf_counter() - began) / times


def run(*, quick: bool) -> harness.Result:
    """All graphs at every batch."""
    fitted = fitted_network(updates=100 if quick else 400)
    runtime = Runtime(step_graph(fitted))
    windows = {name: session(window_graph(fitted, draw)) for name, draw in WINDOWS.items()}
    found = {}
    for batch in BATCHES:
        harness.say(f"timing a batch of {batch}")
        found[batch] = rates(runtime, windows, batch, rounds=7 if quick else 21, seconds=0.1 if quick else 0.3)
    agreed = agreement(runtime, windows)
    ratios = {
        f"carried_vs_window_batch_{batch}": it["carried"] / max(it[name] for name in windows)
        for batch, it in found.items()
    }
    rows = [
        "| batch | carried, points/s | operator, points/s | unrolled, points/s | carried / quicker window | target |"
    ]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for batch, it in found.items():
        ratio = ratios[f"carried_vs_window_batch_{batch}"]
        target = f">= {TARGET:.0f}: {harness.verdict(ratio >= TARGET)}" if batch == BATCHES[0] else ""
        cells = " | ".join(f"{it[name]:,.0f}" for name in ("carried", *windows))
        rows.append(f"| {batch} | {cells} | {ratio:.1f} | {target} |")
    shared = agreed["top_percent_in_both_operator"]
    rows.append(
        f"\nOn the same {COMPARED_POINTS * COMPARED_SERIES:,} points: Spearman {agreed['spearman_operator']:.4f} "
        f"between carried and window; {shared:.0%} of the highest percent are the same points."
    )
    figures = {
        f"{name}_points_per_second_batch_{batch}": rate for batch, it in found.items() for name, rate in it.items()
    }
    return harness.Result(figures, {**ratios, **agreed}, "\n".join(rows))


def main() -> None:
    """Runs as a script."""
    args = harness.parser(__doc__ or "").parse_args()
    harness.publish("carried_state", run(quick=args.quick), args)


if __name__ == "__main__":
    main()
