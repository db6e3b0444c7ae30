"""Bundles in runtimes that are not ONNX Runtime: do they give the same scores?

OpenVINO reads the graph as it is; for LiteRT (TensorFlow Lite) onnx2tf converts it first. Each has an environment of
its own, made once under benchmarks/cache/ (LiteRT's converter needs TensorFlow: two gigabytes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import edge_device
import harness
import numpy as np
from edge_arm64 import KINDS
from scoring_environments import Environment, variables
from scoring_models import CACHE
from scoring_report import Part, table

from detectors.embedded import Detector

POINTS = 200
RUNNER = Path(__file__).with_name("peers") / "graph_runner.py"
CONVERTER = ("onnx2tf", "onnx", "onnxsim", "onnx-graphsurgeon", "sng4onnx", "tensorflow-cpu", "tf-keras", "psutil")
RUNTIMES = {
    "openvino": Environment("openvino", ("openvino", "numpy")),
    "litert": Environment("litert", (*CONVERTER, "ai-edge-litert")),
}


def run(folder: Path, *, quick: bool, cache: Path = CACHE) -> Part:
    """Every kind of network in every runtime that can be had.

    Raises:
        harness.Skip: none can be had.
    """
    kinds = KINDS[:1] if quick else KINDS
    expected = {kind: _expected(folder, kind) for kind in kinds}
    found: dict[str, dict[str, Any]] = {}
    absent = {}
    for name, environment in RUNTIMES.items():
        try:
            place = environment.folder(cache, install=not quick)
        except harness.Skip as reason:
            absent[name] = str(reason)
            continue
        harness.say(f"scoring with {name}")
        found[name] = _scores(name, place, folder)
    if not found:
        raise harness.Skip(f"no other runtime: {absent}")
    figures = {
        name: {
            "version": found[name]["version"],
            **{kind: _difference(found[name][kind], expected[kind]) for kind in kinds},
        }
        for name in found
    }
    heads = ["network", *(f"{name} {found[name]['version']}" for name in found)]
    rows = [[f"`{kind}`", *(_cell(figures[name][kind]) for name in found)] for kind in kinds]
    title = f"Largest difference of {POINTS} scores from ONNX Runtime's"
    return Part(title, {**figures, "absent": absent}, {}, table(heads, rows))


def _expected(folder: Path, kind: str) -> np.ndarray:
    bundle = edge_device.packed_bundle(folder, kind)
    values = harness.drawn(POINTS, 1, edge_device.FEATURES, seed=5)[:, 0]
    values[-20:] *= np.float32(1.5)
    np.save(folder / f"{kind}.npy", values)
    return Detector.load(bundle).score(values).score


def _scores(name: str, place: Path, folder: Path) -> dict[str, Any]:
    python = str(place / "bin" / "python")
    package = {"openvino": "openvino", "litert": "ai-edge-litert"}[name]
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    environment = variables(place, os.environ)
    number = subprocess.run([python, "-c", ask], env=environment, capture_output=True, text=True, check=True).stdout
    command = [python, str(RUNNER), name, str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=True)
    return {"version": number.strip(), **json.loads(done.stdout.splitlines()[-1])}


def _difference(scores: Any, expected: np.ndarray) -> float | str:
    if isinstance(scores, str):
        return scores
    scored = np.isfinite(expected)
    return float(np.abs(np.array(scores)[scored] - expected[scored]).max())


def _cell(found: float | str) -> str:
    return f"{found:.1e}" if isinstance(found, float) else f"no ({found.partition(':')[0]})"
