"""Why a step graph draws its LSTM from plain operators: against ONNX's LSTM operator, one step, two layers.

Both graphs take a point and the state of both layers and give the next state; the weights are random, which time does
not depend on. One thread, turn by turn, medians. A bundle's step does more (scaling, error, score); this is the part
that the choice is about.

Example:
  python benchmarks/lstm_cell.py --quick
"""

from __future__ import annotations

import math
import time

import harness
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from window_graphs import Drawing, session

FEATURES, LAYERS = 8, 2
WIDTHS = (8, 16, 32, 64, 128)
BATCHES = (256, 1)


def by_operator(graph: Drawing, signal: str, h: str, c: str, width_in: int, width: int) -> tuple[str, str]:
    """One LSTM operator over a sequence of one point."""
    rng = np.random.default_rng(0)
    axis = graph.const([0], np.int64)
    weights = [
        graph.const(0.1 * rng.standard_normal(shape))
        for shape in ((1, 4 * width, width_in), (1, 4 * width, width), (1, 8 * width))
    ]
    state = [graph.op("Unsqueeze", name, axis) for name in (h, c)]
    inputs = (graph.op("Unsqueeze", signal, axis), *weights, "", *state)
    _, h_next, c_next = graph.ops("LSTM", *inputs, outputs=3, hidden_size=width)
    return graph.op("Squeeze", h_next, axis), graph.op("Squeeze", c_next, axis)


def by_gemm(graph: Drawing, signal: str, h: str, c: str, width_in: int, width: int) -> tuple[str, str]:
    """Each gate as a product over [x, h] with its activation, as `detectors.training.networks.lstm` draws them."""
    rng = np.random.default_rng(0)
    both = graph.op("Concat", signal, h, axis=1)

    def opened(activation: str) -> str:
        weight = graph.const(0.1 * rng.standard_normal((width_in + width, width)))
        return graph.op(activation, graph.op("Gemm", both, weight, graph.const(0.1 * rng.standard_normal(width))))

    i, f, o, offered = (opened(activation) for activation in ("Sigmoid", "Sigmoid", "Sigmoid", "Tanh"))
    cell = graph.op("Add", graph.op("Mul", f, c), graph.op("Mul", i, offered))
    return graph.op("Mul", o, graph.op("Tanh", cell)), cell


WAYS = {"operator": by_operator, "gemm": by_gemm}


def cell_session(way: str, width: int) -> ort.InferenceSession:
    """Point and state in, next state out."""
    graph, signal, width_in = Drawing(), "point", FEATURES
    inputs, outputs = [_tensor("point", FEATURES)], []
    for layer in range(LAYERS):
        names = (f"h{layer}", f"c{layer}")
        inputs += [_tensor(name, width) for name in names]
        made = WAYS[way](graph, signal, *names, width_in, width)
        outputs += [_tensor(name, width) for name in made]
        signal, width_in = made[0], width
    drawn = helper.make_graph(graph.nodes, way, inputs, outputs, graph.constants)
    model = helper.make_model(drawn, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    return session(model.SerializeToString())


def _tensor(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", width])


def seconds_a_step(width: int, batch: int, rounds: int, seconds: float) -> dict[str, float]:
    """Medians over rounds that alternate."""
    rng = np.random.default_rng(1)
    made = {way: cell_session(way, width) for way in WAYS}
    feed = {it.name: rng.standard_normal((batch, it.shape[1])).astype(np.float32) for it in made["gemm"].get_inputs()}
    repeats = {way: max(10, math.ceil(seconds / _each(it, feed, 20))) for way, it in made.items()}
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in sorted(WAYS, reverse=turn % 2 == 0):
            found[way].append(_each(made[way], feed, repeats[way]))
    return {way: float(np.median(times)) for way, times in found.items()}


def _each(made: ort.InferenceSession, feed: dict[str, np.ndarray], times: int) -> float:
    made.run(None, feed)
    began = time.perf_counter()
    for _ in range(times):
        made.run(None, feed)
    return (time.perf_counter() - began) / times


def run(*, quick: bool) -> harness.Result:
    """All widths at every batch."""
    figures, ratios, rows = {}, {}, ["| batch | width | operator, us | plain operators, us | operator / plain |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for batch in BATCHES:
        for width in WIDTHS:
            harness.say(f"batch {batch}, width {width}")
            took = seconds_a_step(width, batch, rounds=9 if quick else 25, seconds=0.02 if quick else 0.1)
            key = f"batch_{batch}_width_{width}"
            figures |= {f"{way}_seconds_{key}": value for way, value in took.items()}
            ratios[f"operator_vs_plain_{key}"] = took["operator"] / took["gemm"]
            cells = f"{took['operator'] * 1e6:.1f} | {took['gemm'] * 1e6:.1f}"
            rows.append(f"| {batch} | {width} | {cells} | {took['operator'] / took['gemm']:.2f} |")
    return harness.Result(figures, ratios, "\n".join(rows))


def main() -> None:
    """Runs as a script."""
    args = harness.parser(__doc__ or "").parse_args()
    harness.publish("lstm_cell", run(quick=args.quick), args)


if __name__ == "__main__":
    main()
