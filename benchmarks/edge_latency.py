"""What a step costs on a device: where the time of one goes at batch 1, and whether a class's table is honest.

The floor: an LSTM of two layers at one point a step, whole steps beside a graph that does nothing, and the operators'
own times as ONNX Runtime profiles them. The graphs: how small those are that devices measure, and whether they take
what the whole ones take, side by side; the tenth percentile of the steps is compared, since neighbours on a shared
machine move a median by a third (seen), and that is not what is asked. The class: devices are processes with the
device's own prober, one after the other on one core; the last shares it with a process that never rests. Each measures
the grid of an LSTM 2x64, and the table of the class is compared with that of the undisturbed devices alone.

Example:
  python benchmarks/edge_latency.py --quick
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import harness
import numpy as np
import onnxruntime as ort

sys.path.insert(0, str(harness.ROOT / "tests"))

WIDTHS = (128, 64, 32, 8)
FEATURES, BATCH = 8, 64
GRID_WIDTH = 64
DEVICES = 3
ONLY_SPIN = "while True: pass"
PI = {"device_class": "bench"}


def graph_of(width: int) -> bytes:
    """The step graph of an untrained LSTM of two layers with honest statistics."""
    from fits import untrained

    from detectors.training.export import step_graph

    return step_graph(untrained("lstm", FEATURES, width=width))


def nothing(graph: bytes) -> bytes:
    """A graph with the inputs and outputs of another one that only passes its state on."""
    import onnx
    from onnx import helper

    model = onnx.load_from_string(graph)
    states = [it.name for it in model.graph.input[1:]]
    nodes = [helper.make_node("Identity", ["values"], ["contribution"])]
    nodes += [helper.make_node("Identity", [name], [f"{name}.next"]) for name in states]
    nodes.append(helper.make_node("ReduceSum", ["values", "axis"], ["score"], keepdims=0))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    return bytes(model.SerializeToString())


def profiled(graph: bytes, steps: int) -> dict[str, tuple[float, float]]:
    """By operator: how often it runs in a step, and microseconds of a step that its kernels take."""
    from detectors.runtime import Runtime

    runtime = Runtime(graph)
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        values, state = np.zeros((1, FEATURES), np.float32), runtime.fresh(1)
        feed = dict(zip([it.name for it in session.get_inputs()], (values, *state), strict=True))
        for _ in range(steps):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]].append(event["dur"])
    return {name: (len(each) / steps, float(np.sum(each)) / steps) for name, each in times.items()}


def floor(rounds: int) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Whole steps at batch 1, and where the time of the narrowest goes."""
    from pruning.latency import measure

    graphs = {str(width): graph_of(width) for width in WIDTHS}
    graphs["nothing"] = nothing(graphs[str(WIDTHS[-1])])
    latencies = measure(list(graphs.values()), 1, rounds=rounds)
    took = {name: it.p50_seconds for name, it in zip(graphs, latencies, strict=True)}
    figures = {f"step_seconds_width_{name}": seconds for name, seconds in took.items()}
    ratios = {f"nothing_vs_width_{name}": took["nothing"] / took[name] for name in took if name != "nothing"}
    rows = [
        "| LSTM 2 x width, one point | p50 of a step, us | of that a graph that does nothing |",
        "| --- | --- | --- |",
    ]
    rows += [
        f"| {name} | {took[name] * 1e6:.1f} | {took['nothing'] / took[name]:.0%} |"
        for name in took
        if name != "nothing"
    ]
    rows += ["", "| operator, width 8 | in a step | of the operators' time | width 128 |", "| --- | --- | --- | --- |"]
    narrow, wide = (profiled(graphs[str(width)], 2000) for width in (WIDTHS[-1], WIDTHS[0]))
    whole = {"narrow": sum(it[1] for it in narrow.values()), "wide": sum(it[1] for it in wide.values())}
    for name, (count, spent) in sorted(narrow.items(), key=lambda it: -it[1][1]):
        share, other = spent / whole["narrow"], wide.get(name, (0, 0.0))[1] / whole["wide"]
        rows.append(f"| {name} | {count:.0f} | {share:.0%} | {other:.0%} |")
        ratios |= {f"{name}_share_width_8": share, f"{name}_share_width_128": other}
    nodes = sum(it[0] for it in narrow.values())
    figures["nodes"] = nodes
    figures["seconds_a_node"] = (took[str(WIDTHS[-1])] - took["nothing"]) / nodes
    rows.append(f"| all | {nodes:.0f} | 100% | 100% |")
    return figures, ratios, rows


def light(rounds: int) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Graphs without weights beside whole ones."""
    from fits import untrained

    from detectors.runtime import Runtime
    from detectors.timing import interleaved, stepping
    from detectors.training.light import light_graph
    from pruning.table import probe_grid

    figures, ratios = {}, {}
    rows = ["| LSTM 2 x width | batch | whole, bytes | without weights | time of that / of the whole |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for width in WIDTHS:
        whole = graph_of(width)
        small = light_graph(whole)
        for batch in (1, BATCH):
            times = interleaved([stepping(Runtime(it), batch) for it in (whole, small)], rounds=rounds)
            full, empty = (float(np.quantile(np.concatenate(it), 0.1)) for it in times)
            ratios[f"light_vs_whole_width_{width}_batch_{batch}"] = empty / full
            rows.append(f"| {width} | {batch} | {len(whole):,} | {len(small):,} | {empty / full:.3f} |")
    grid, graphs = probe_grid(untrained("lstm", 38, width=128), BATCH, PI)
    figures |= {
        "grid_graphs": len(graphs),
        "grid_bytes": sum(map(len, graphs.values())),
        "grid_bytes_whole": sum(grid.bytes.values()),
    }
    told = (
        f"The grid of an LSTM 2x128 over 38 sensors: {len(graphs)} graphs, {figures['grid_bytes'] / 1024:.0f} KiB; "
        f"whole {figures['grid_bytes_whole'] / (1 << 20):.0f} MiB."
    )
    rows += ["", told]
    return figures, ratios, rows


def device(folder: Path) -> None:
    """Measures the graphs of a folder as a device does; writes what it would report."""
    from server.edge.prober import Prober
    from server.releases import Probe

    probe = Probe.model_validate_json((folder / "probe.json").read_bytes())
    graphs = {path.stem: path.read_bytes() for path in folder.glob("*.onnx")}
    outcome = asyncio.run(Prober(lambda: False).measure(probe, graphs))
    print(json.dumps({"costs": outcome.costs, "conditions": outcome.conditions, "problem": outcome.problem}))


def answers(folder: Path, core: int) -> list[dict[str, Any]]:
    """What devices say, one after the other on one core; the last of them shares it with a process that never rests."""
    command = harness.pinned(core, [sys.executable, __file__, "--device", str(folder)])
    found = []
    for number in range(DEVICES + 1):
        harness.say(f"device {number + 1} of {DEVICES + 1}")
        with tempfile.TemporaryFile() as log:
            spinning = (
                subprocess.Popen(harness.pinned(core, [sys.executable, "-c", ONLY_SPIN]), stderr=log)
                if number == DEVICES
                else None
            )
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
            finally:
                if spinning is not None:
                    spinning.kill()
                    spinning.wait()
        found.append(json.loads(done.stdout))
    return found


def classes(rounds: int) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """The table of a class with a disturbed device beside that of the others."""
    from fits import untrained

    from pruning.table import probe_grid
    from server.fleet.tables import of_class
    from server.releases import Probe, ProbeGraph

    grid, graphs = probe_grid(untrained("lstm", FEATURES, width=GRID_WIDTH), BATCH, PI)
    named = [ProbeGraph(sha256=sha256, bytes=len(graphs[sha256])) for sha256 in grid.graphs]
    about = hashlib.sha256(repr(named).encode()).hexdigest()[:16]
    probe = Probe(id=about, device_class="bench", batch=BATCH, rounds=rounds, graphs=named, issued=0, expires=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "probe.json").write_bytes(probe.to_payload())
        for sha256, graph in graphs.items():
            (folder / f"{sha256}.onnx").write_bytes(graph)
        said = answers(folder, harness.cores()[-1])
    costs = [{sha256: (a, b) for sha256, (a, b) in it["costs"].items()} for it in said]
    quiet, slowed = costs[:-1], costs[-1]
    truth, table = of_class(quiet, grid.reference), of_class([*quiet[:2], slowed], grid.reference)

    def off(found: dict[str, tuple[float, float]], quantile: int) -> list[float]:
        """How far ratios to the reference are from those of undisturbed devices."""
        return [
            abs(found[it][quantile] / found[grid.reference][0] / (truth[it][quantile] / truth[grid.reference][0]) - 1)
            for it in grid.graphs
        ]

    shown = {
        "an undisturbed device": costs[0],
        "the disturbed device": slowed,
        "the class: two undisturbed and the disturbed": table,
    }
    figures = {f"seconds_device_{i + 1}": it["conditions"]["seconds"] for i, it in enumerate(said)}
    ratios: dict[str, float] = {}
    rows = [
        "| table of | dense p50, us | dense p99, us | ratios: median error, p50 | largest | median error, p99 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in shown.items():
        p50, p99 = found[grid.reference]
        errors, late = off(found, 0), off(found, 1)
        key = name.split(":")[0].replace(" ", "_")
        ratios |= {f"{key}_error_p50": float(np.median(errors)), f"{key}_error_p50_largest": max(errors)}
        ratios |= {f"{key}_error_p99": float(np.median(late)), f"{key}_dense_p50": p50 / truth[grid.reference][0]}
        rows.append(
            f"| {name} | {p50 * 1e6:.0f} | {p99 * 1e6:.0f} | {np.median(errors):.1%} | {max(errors):.1%} | "
            f"{np.median(late):.1%} |"
        )
    seconds = [it["conditions"]["seconds"] for it in said]
    told = f"a device took {seconds[0]:.0f} s for them, the disturbed one {seconds[-1]:.0f} s"
    rows += ["", f"{len(grid.graphs)} graphs at {BATCH} points a step; {told}."]
    return figures, ratios, rows


def run(*, quick: bool) -> harness.Result:
    """All three parts."""
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    rows: list[str] = []
    for part, rounds in ((floor, 9 if quick else 41), (light, 7 if quick else 31), (classes, 3 if quick else 9)):
        harness.say(part.__name__)
        found = part(rounds)
        figures |= found[0]
        ratios |= found[1]
        rows += [*found[2], ""]
    return harness.Result(figures, ratios, "\n".join(rows))


def main() -> None:
    """Runs as a script."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--device", type=Path, metavar="FOLDER", help="be a device: measure the graphs of a folder")
    args = parser.parse_args()
    if args.device:
        device(args.device)
        return
    harness.publish("edge_latency", run(quick=args.quick), args)


if __name__ == "__main__":
    main()
