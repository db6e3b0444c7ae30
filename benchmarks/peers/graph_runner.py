"""Scores golden inputs with a runtime that is not ONNX Runtime, in that runtime's environment; prints JSON.

  python graph_runner.py openvino|litert FOLDER

FOLDER has NAME/step.onnx and NAME.npy, [T, F] of one series. Of each name the scores, or in words why there are none.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Named = dict[str, np.ndarray]


def openvino(graph: Path) -> tuple[dict[str, list[int]], Callable[[Named], Named]]:
    """Shapes of the states of one series, and a step."""
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    shapes = {it.any_name: [1, *(size.get_length() for size in list(it.partial_shape)[1:])] for it in model.inputs}

    def step(feed: Named) -> Named:
        return {node.any_name: value for node, value in model(feed).items()}

    return shapes, step


def litert(graph: Path) -> tuple[dict[str, list[int]], Callable[[Named], Named]]:
    """The same, after onnx2tf has made a LiteRT model of the graph."""
    from ai_edge_litert.interpreter import Interpreter

    out = graph.with_name("litert")
    convert = [
        str(Path(sys.executable).with_name("onnx2tf")),
        "-i",
        str(graph),
        "-o",
        str(out),
        "-b",
        "1",
        "-nuo",
        "-n",
    ]
    done = subprocess.run(convert, capture_output=True, text=True, check=False)
    model = out / f"{graph.stem}_float32.tflite"
    if not model.is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line or "not" in line]
        raise RuntimeError(f"onnx2tf does not convert it: {lines[-1] if lines else 'no reason given'}")
    run = Interpreter(str(model)).get_signature_runner()
    shapes = {name: it["shape"].tolist() for name, it in run.get_input_details().items()}
    return shapes, lambda feed: run(**feed)


def scored(runtime: str, graph: Path, points: np.ndarray) -> list[float]:
    """One score a point, warm-up included."""
    shapes, step = {"openvino": openvino, "litert": litert}[runtime](graph)
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name != "values"}
    scores = []
    for point in points:
        after = step({"values": point[None], **state})
        state = {name: after[f"{name}.next"] for name in state}
        scores.append(float(np.ravel(after["score"])[0]))
    return scores


def main(runtime: str, folder: Path) -> None:
    """Prints scores, or why there are none, by name."""
    found: dict[str, Any] = {}
    for inputs in sorted(folder.glob("*.npy")):
        try:
            found[inputs.stem] = scored(runtime, folder / inputs.stem / "step.onnx", np.load(inputs))
        except Exception as error:  # noqa: BLE001  (whatever a foreign runtime raises)
            found[inputs.stem] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
