"""Calls a server through the real tritonclient; runs in that library's own environment and knows nothing of ours.

Reads a JSON object a line from standard input and answers it with one: `address` is the server's, `do` one of the
functions below, the rest its arguments. Arrays travel as nested lists with a datatype, results as hexadecimal bytes, so
that a comparison is one of bits.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

NUMPY = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32, "BYTES": object}


def arguments(request: dict, module) -> dict:
    """Arguments of `infer` of a client of `module`."""
    inputs = []
    for name, (datatype, data) in request.pop("inputs").items():
        array = np.array(data, NUMPY[datatype])
        assert np_to_triton_dtype(array.dtype) == datatype
        inputs.append(module.InferInput(name, list(array.shape), datatype))
        inputs[-1].set_data_from_numpy(array)
    outputs = [module.InferRequestedOutput(name) for name in request.pop("outputs", [])]
    return {"inputs": inputs, "outputs": outputs or None, **request}


def told(result, error=None) -> dict:
    """A result, or an error, as JSON."""
    if error is not None:
        return {"error": error.message(), "status": error.status()}
    response = result.get_response()
    outputs = {output.name: result.as_numpy(output.name) for output in response.outputs}
    return {
        "id": response.id,
        "version": response.model_version,
        "outputs": {
            name: {"dtype": array.dtype.name, "shape": array.shape, "hex": array.tobytes().hex()}
            for name, array in outputs.items()
        },
    }


def ask(address: str, method: str, **given):
    """Any method of the client that answers with something JSON has."""
    with triton.InferenceServerClient(address) as client:
        return getattr(client, method)(**given)


def infer(address: str, **request) -> dict:
    """`infer`."""
    with triton.InferenceServerClient(address) as client:
        return told(client.infer(**arguments(request, triton)))


def async_infer(address: str, requests: list) -> list:
    """`async_infer` of many requests at once; results in the order of the requests."""
    ended: queue.Queue = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        for number, request in enumerate(requests):
            client.async_infer(
                **arguments(request, triton),
                callback=lambda result, error, number=number: ended.put((number, result, error)),
            )
        answers = [ended.get(timeout=30) for _ in requests]
    return [told(result, error) for _, result, error in sorted(answers, key=lambda it: it[0])]


def stream(address: str, requests: list) -> list:
    """`async_stream_infer` of all requests over one stream, without waiting in between; in the order of the answers."""
    answers: queue.Queue = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for request in requests:
            client.async_stream_infer(**arguments(request, triton))
        found = [told(*answers.get(timeout=30)) for _ in requests]
        client.stop_stream()
    return found


def aio(address: str, requests: list) -> list:
    """`infer` of the asyncio client, one after the other, then `stream_infer` of all of them."""

    async def both() -> list:
        async with triton_aio.InferenceServerClient(address) as client:
            found = [told(await client.infer(**arguments(dict(it), triton_aio))) for it in requests]

            async def messages():
                for it in requests:
                    yield arguments(dict(it), triton_aio)

            found += [told(*answer) async for answer in client.stream_infer(messages())]
        return found

    return asyncio.run(both())


def typed(address: str, model_name: str, values: list, **parameters) -> dict:
    """ModelInfer over the library's stubs with typed contents, as KServe's clients send them."""
    array = np.array(values, np.float32)
    request = service_pb2.ModelInferRequest(model_name=model_name)
    tensor = request.inputs.add(name="values", datatype="FP32", shape=array.shape)
    tensor.contents.fp32_contents.extend(array.ravel().tolist())
    for name, value in parameters.items():
        request.parameters[name].string_param = value
    with grpc.insecure_channel(address) as channel:
        return told(triton.InferResult(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)))


DOES = {function.__name__: function for function in (ask, infer, async_infer, stream, aio, typed)}


def main() -> None:
    """Answers line after line."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = DOES[request.pop("do")](**request)
        except InferenceServerException as error:
            answer = told(None, error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
