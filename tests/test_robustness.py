"""Every RPC, whatever bytes it gets: a proper status, and no words that were not meant for callers."""

from __future__ import annotations

import asyncio
import random

import grpc
import grpc.aio
import numpy as np
import pytest
from conftest import NOW, publish
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from graphs import ewma_bundle
from inference_calls import infer_request

from detectors.stamps import Status
from prunewatch import inference
from prunewatch.v1 import detectors_pb2, devices_pb2, pruning_pb2, scoring_pb2
from server.app import Hub
from server.statuses import UNEXPECTED

SERVICES = [
    "prunewatch.v1.ScoringService",
    "prunewatch.v1.DetectorService",
    "prunewatch.v1.PruningService",
    "prunewatch.v1.FleetService",
    "prunewatch.v1.DeviceService",
    "google.longrunning.Operations",
]
MUTATIONS = 25
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # Watch and WaitOperation of what goes on
}
FORBIDDEN = ("Traceback", "Error", "<class", "object at 0x", "google.protobuf", "site-packages", ".py")


def methods() -> list[tuple[str, object]]:
    """Path and descriptor of every RPC."""
    assert operations_pb2.Operation
    pool = descriptor_pool.Default()
    services = [*map(pool.FindServiceByName, SERVICES), inference.SERVICE]
    return [(f"/{service.full_name}/{it.name}", it) for service in services for it in service.methods]


def good_request(kind: type[Message]) -> Message:
    """Something that the method may accept."""
    points = detectors_pb2.PointColumns(stamps=[1, 2], packed_values=bytes(16))
    score = scoring_pb2.ScoreRequest(detector="detectors/pump", series=["a"], stamps=[NOW], packed_values=bytes(8))
    known: dict[str, Message] = {
        "ScoreRequest": score,
        "ScoreStreamRequest": scoring_pb2.ScoreStreamRequest(sequence=1, points=score),
        "FitDetectorFromUploadRequest": detectors_pb2.FitDetectorFromUploadRequest(points=points),
        "PruneFromUploadRequest": pruning_pb2.PruneFromUploadRequest(points=points),
        "CreateDetectorRequest": detectors_pb2.CreateDetectorRequest(detector_id="fan"),
        "ConnectRequest": devices_pb2.ConnectRequest(hello=devices_pb2.DeviceHello(name="devices/north", protocol=1)),
        "EnrolDeviceRequest": devices_pb2.EnrolDeviceRequest(
            name="devices/north", device_class="hub", token="a.b", public_key=bytes(32)
        ),
        "ModelInferRequest": infer_request("pump", values=np.ones((2, 2), np.float32), series=["a", "b"], id="1"),
    }
    if (request := known.get(kind.DESCRIPTOR.name)) is not None:
        return request
    request = kind()
    for field in ("name", "parent"):
        if field in kind.DESCRIPTOR.fields_by_name:
            setattr(request, field, "detectors/pump")
    return request


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """The bytes with something wrong with them."""
    content = bytearray(raw)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(content) + 1)
        if rng.random() < 0.5 and at < len(content):
            content[at] = rng.randrange(256)
        elif rng.random() < 0.5:
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            del content[at : at + rng.randrange(1, 9)]
    return bytes(content)


async def call(channel: grpc.aio.Channel, path: str, method, raw: bytes) -> tuple[grpc.StatusCode, str]:
    """How a call with one raw message ends, and the words of its error; for streams also those of their messages."""
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    request = iter([raw]) if method.client_streaming else raw
    running = getattr(channel, kind)(path)(request, timeout=0.5)
    words = ""
    try:
        if method.server_streaming:
            async for answer in running:
                words += answer.decode("latin-1").replace("google.rpc.ErrorInfo", "")
        else:
            await running
    except grpc.aio.AioRpcError as error:
        return error.code(), words + (error.details() or "")
    return grpc.StatusCode.OK, words


@pytest.mark.promise("I4")
@pytest.mark.parametrize(("path", "method"), methods(), ids=lambda it: it if isinstance(it, str) else "")
async def test_mutated_bytes_never_crash_or_leak(hub: Hub, path: str, method) -> None:
    """Random and damaged messages end in a status that was meant, without paths or class names; scoring goes on."""
    await publish(hub, ewma_bundle("pump"))
    rng = random.Random(path)
    raw = good_request(GetMessageClass(method.input_type)).SerializeToString()

    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        messages = [b"", raw, *(mutated(raw, rng) for _ in range(MUTATIONS))]
        ends = await asyncio.gather(*(call(channel, path, method, message) for message in messages))

    for code, words in ends:
        assert code in EXPECTED, (code, words)
        assert UNEXPECTED not in words
        assert not [it for it in (*FORBIDDEN, str(hub.store.root)) if it in words]


def test_statuses_have_the_same_numbers_everywhere() -> None:
    """`detectors.stamps.Status` goes onto the wire as it is."""
    names = {f"POINT_STATUS_{status.name}": int(status) for status in Status}

    assert dict(scoring_pb2.PointStatus.items()) == names
