"""Calls of the Open Inference Protocol with the messages of the product's private pool: no client library needed."""

from __future__ import annotations

from typing import Any

import grpc.aio
import numpy as np

from prunewatch import inference

DATATYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "int32": "INT32", "uint8": "UINT8"}
NUMPY = {"FP32": "<f4", "INT64": "<i8", "UINT8": "u1", "BOOL": "?"}
TYPED = {"FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}
METHODS = {method.name: method for method in inference.SERVICE.methods}


def path(method: str) -> str:
    """The full name of a method."""
    return f"/{inference.SERVICE_NAME}/{method}"


def infer_request(
    model: str,
    *,
    typed: bool = False,
    outputs: tuple[str, ...] = (),
    parameters: dict[str, Any] | None = None,
    version: str = "",
    id: str = "",  # noqa: A002  (the protocol's word)
    **inputs: Any,
) -> Any:
    """A ModelInferRequest; `inputs` are arrays, or lists of names."""
    request = inference.message("ModelInferRequest")(model_name=model, model_version=version, id=id)
    for name, given in inputs.items():
        names = isinstance(given, list)
        array = np.array([name.encode() for name in given], object) if names else given
        datatype = "BYTES" if names else DATATYPES[array.dtype.name]
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            getattr(tensor.contents, TYPED[datatype]).extend(array.ravel().tolist())
        elif names:
            request.raw_input_contents.append(b"".join(len(it).to_bytes(4, "little") + it for it in array))
        else:
            request.raw_input_contents.append(array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    for name, value in (parameters or {}).items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


def arrays(response: Any) -> dict[str, np.ndarray]:
    """The outputs of a ModelInferResponse, as tritonclient reads them."""
    assert len(response.outputs) == len(response.raw_output_contents)
    return {
        output.name: np.frombuffer(raw, NUMPY[output.datatype]).reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


class Caller:
    """A connection to one server; use it as an asynchronous context manager."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def ask(self, method: str, request: Any = None, **fields: Any) -> Any:
        """Calls a method that answers once."""
        kind, answer = METHODS[method].input_type.name, METHODS[method].output_type.name
        call = self.channel.unary_unary(
            path(method),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=inference.message(answer).FromString,
        )
        return await call(inference.message(kind)(**fields) if request is None else request)

    async def infer(self, model: str, **given: Any) -> dict[str, np.ndarray]:
        """The outputs for one message of points; arguments as of `infer_request`."""
        return arrays(await self.ask("ModelInfer", infer_request(model, **given)))

    async def stream(self, requests: list[Any]) -> list[Any]:
        """The answers to messages of one stream, each sent when the one before was answered; bytes go as they are."""
        call = self.channel.stream_stream(path("ModelStreamInfer"))()
        answers = []
        for request in requests:
            await call.write(request if isinstance(request, bytes) else request.SerializeToString())
            answers.append(inference.message("ModelStreamInferResponse").FromString(await call.read()))
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        return answers
