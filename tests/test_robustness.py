"""Every RPC, whatever bytes it gets: a proper status, and no words that were not meant for callers."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from conftest import NOW, eventually, publish
from devices import Device, event, operating, points
from fleet_hub import fleet_hub, offer
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from graphs import ewma_bundle
from inference_calls import infer_request

from detectors.stamps import Status
from prunewatch import inference
from prunewatch.v1 import detectors_pb2, devices_pb2, feedback_pb2, fleet_pb2, pruning_pb2, scoring_pb2
from server.app import Hub
from server.statuses import UNEXPECTED

SERVICES = [
    "prunewatch.v1.ScoringService",
    "prunewatch.v1.DetectorService",
    "prunewatch.v1.PruningService",
    "prunewatch.v1.FeedbackService",
    "prunewatch.v1.FleetService",
    "prunewatch.v1.DeviceService",
    "google.longrunning.Operations",
]
MUTATIONS = 25
NAMED = {"DeviceClass": "deviceClasses/hub", "Device": "devices/north", "Rollout": "rollouts/1"}
"""What a request names, by a word of its own name."""
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
        "CreateFeedbackRequest": feedback_pb2.CreateFeedbackRequest(
            parent="detectors/pump", feedback=feedback_pb2.Feedback(series="a", first_stamp=NOW, last_stamp=NOW + 1)
        ),
        "CreateMaintenanceWindowRequest": feedback_pb2.CreateMaintenanceWindowRequest(
            parent="detectors/pump",
            maintenance_window=feedback_pb2.MaintenanceWindow(first_stamp=NOW, last_stamp=NOW + 1),
        ),
        "CreateEnrolmentTokenRequest": fleet_pb2.CreateEnrolmentTokenRequest(device_class="hub", valid_seconds=60),
        "CreateDeviceClassRequest": fleet_pb2.CreateDeviceClassRequest(device_class_id="pi4"),
        "UpdateDeviceClassRequest": fleet_pb2.UpdateDeviceClassRequest(
            device_class=fleet_pb2.DeviceClass(name="deviceClasses/hub")
        ),
        "ListRolloutsRequest": fleet_pb2.ListRolloutsRequest(detector="detectors/pump", device_class="hub"),
        "ModelInferRequest": infer_request("pump", values=np.ones((2, 2), np.float32), series=["a", "b"], id="1"),
    }
    if (request := known.get(kind.DESCRIPTOR.name)) is not None:
        return request
    request = kind()
    about = kind.DESCRIPTOR.name
    named = next((prefix for word, prefix in NAMED.items() if word in about), "detectors/pump")
    for field in ("name", "parent"):
        if field in kind.DESCRIPTOR.fields_by_name:
            setattr(request, field, named)
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
    except asyncio.CancelledError:  # gRPC's own, of an upload that a status ends while it is being written
        return await running.code(), words + (await running.details() or "")
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


@pytest.mark.promise("I4")
async def test_damaged_words_of_a_proven_device_hurt_nobody(tmp_path: Path) -> None:
    """What a device says once it is trusted: kept, passed over, or the end of its link with a status that was meant."""
    rng = random.Random("link")
    async with fleet_hub(tmp_path) as hub, operating(hub) as operator:
        await offer(hub)
        (other,) = await operator.connected("other")
        device = await operator.enrolled("north")
        sound = words_of_devices()
        ends = [await said(operator.channel, device, mutated(rng.choice(sound), rng)) for _ in range(60)]
        await other.report(points(1, [1, 2], counter=1))
        await eventually(lambda: kept(other, 1))

    assert {code for code, _ in ends} <= EXPECTED | {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len({code for code, _ in ends}) > 1
    for _, words in ends:
        assert UNEXPECTED not in words
        assert not [it for it in (*FORBIDDEN, str(tmp_path)) if it in words]


def words_of_devices() -> list[bytes]:
    """A status and reports of every kind."""
    served = devices_pb2.ServedRelease(detector="detectors/pump", bundle_hash="00" * 32, counter=1, state=1)
    costs = [devices_pb2.GraphCost(sha256="00" * 32, p50_seconds=1e-4, p99_seconds=2e-4)]
    probed = devices_pb2.DeviceReport(sequence=3, probe=devices_pb2.ProbeResult(probe_id="1", batch=64, costs=costs))
    reports = [points(1, [1, 2], counter=1), event(2, "SERVING", 1), probed]
    return [
        devices_pb2.ConnectRequest(
            status=devices_pb2.DeviceStatus(served=[served], uptime_seconds=1)
        ).SerializeToString(),
        *(
            devices_pb2.ConnectRequest(reports=devices_pb2.DeviceReports(reports=[it])).SerializeToString()
            for it in reports
        ),
    ]


async def said(channel: grpc.aio.Channel, device: Device, raw: bytes) -> tuple[grpc.StatusCode, str]:
    """How a proven link ends on which one raw message was said; OK where it goes on."""
    link = channel.stream_stream("/prunewatch.v1.DeviceService/Connect")(timeout=20)
    await link.write(good_request(devices_pb2.ConnectRequest).SerializeToString())
    nonce = devices_pb2.ConnectResponse.FromString(await link.read()).challenge.nonce
    proof = devices_pb2.DeviceProof(signature=device.key.sign_bytes("device", device.name.encode() + nonce))
    await link.write(devices_pb2.ConnectRequest(proof=proof).SerializeToString())
    await link.read()  # the welcome
    try:
        await link.write(raw)
        await link.done_writing()
        while await link.read() is not grpc.aio.EOF:
            pass
        return await link.code(), await link.details()
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""


async def kept(device: Device, sequence: int) -> bool:
    """Whether the hub has a report of a device."""
    return device.kept >= sequence


def test_statuses_have_the_same_numbers_everywhere() -> None:
    """`detectors.stamps.Status` goes onto the wire as it is."""
    names = {f"POINT_STATUS_{status.name}": int(status) for status in Status}

    assert dict(scoring_pb2.PointStatus.items()) == names
