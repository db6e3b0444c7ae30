"""The windowed network as a custom runtime of MLServer, as its documentation shows them."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from windowed import Windows, onnx_judge


class Windowed(MLModel):
    """POINTS [n, B, F] in, ERRORS [B] out; the graph's path and the shape of windows are parameters of the model."""

    async def load(self) -> bool:
        """Opens the graph."""
        parameters = self._settings.parameters
        self._windows = Windows(onnx_judge(parameters.uri), tuple(parameters.extra["shape"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One message."""
        errors = self._windows(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("ERRORS", errors)])
