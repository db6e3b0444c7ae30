"""The windowed network as a model of Triton's Python backend."""

from __future__ import annotations

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils
from windowed import Windows, onnx_judge


class TritonPythonModel:
    """POINTS [n, B, F] in, ERRORS [B] out; the graph lies beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph."""
        parameters = json.loads(args["model_config"])["parameters"]
        shape = tuple(int(size) for size in parameters["shape"]["string_value"].split())
        self._windows = Windows(onnx_judge(str(Path(__file__).with_name("window.onnx"))), shape)

    def execute(self, requests: list) -> list:
        """One message each."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        points = pb_utils.get_input_tensor_by_name(request, "POINTS").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("ERRORS", self._windows(points))])
