"""A device that speaks the real protocol with a real key, and tells a test all it was told. It scores nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from conftest import Hub, eventually

from prunewatch.v1 import devices_pb2 as pb
from prunewatch.v1 import devices_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from server.releases import Release, Signed, SigningKey, Trust, first_trust


def signed(statement: pb.Statement) -> Signed:
    """A statement as `server.releases` reads it."""
    return Signed(statement.payload, statement.key_id, statement.signature)


class Device:
    """One device.

    Attributes:
        trust: Whom it trusts; follows the welcome.
        releases: What it is to run by detector, verified; None: it was not told yet.
        kept: The last report that the hub has kept.
        probes: That it was asked to measure, verified.
        welcomes: All of this device's.
        fetched: Bytes by SHA-256.
    """

    def __init__(self, channel: grpc.aio.Channel, name: str, device_class: str = "pi4") -> None:
        self.name = name
        self.device_class = device_class
        self.key = SigningKey.generate()
        self.stub: Any = devices_pb2_grpc.DeviceServiceStub(channel)
        self.trust: Trust | None = None
        self.releases: dict[str, Release] | None = None
        self.told = 0
        self.kept = 0
        self.probes: list[Any] = []
        self.welcomes: list[pb.HubWelcome] = []
        self._call: Any = None
        self._listening: asyncio.Task[None] | None = None

    async def enrol(self, token: str) -> Self:
        """Makes itself known."""
        request = pb.EnrolDeviceRequest(
            name=f"devices/{self.name}",
            device_class=self.device_class,
            token=token,
            public_key=self.key.public,
        )
        keys = (await self.stub.EnrolDevice(request)).keys
        self.trust = first_trust(signed(keys), token.rpartition(".")[2])
        return self

    async def introduce(
        self, name: str | None = None, key: SigningKey | None = None, nonce: bytes | None = None
    ) -> Any:
        """Opens the link and answers the challenge; as another device, with another key, or to another nonce."""
        name, key = name or self.name, key or self.key
        call = self.stub.Connect()
        await call.write(pb.ConnectRequest(hello=pb.DeviceHello(name=f"devices/{name}", protocol=1)))
        challenge = (await call.read()).challenge.nonce
        signature = key.sign_bytes("device", name.encode() + (nonce or challenge))
        facts = pb.DeviceFacts(architecture="aarch64", cores=4)
        await call.write(pb.ConnectRequest(proof=pb.DeviceProof(signature=signature, facts=facts)))
        return call, challenge

    async def connect(self) -> Self:
        """Opens the link and listens until `hang_up`."""
        self._call, _ = await self.introduce()
        first = await self._call.read()
        assert first is not grpc.aio.EOF, await self._call.details()
        self._hear(first)
        self._listening = asyncio.create_task(self._listen())
        await eventually(self.was_told)
        return self

    async def hang_up(self) -> None:
        """Ends the link."""
        if self._call is not None:
            self._call.cancel()
        if self._listening is not None:
            await asyncio.wait({self._listening})

    async def code(self) -> grpc.StatusCode:
        """How the link ended."""
        return await asyncio.wait_for(self._call.code(), 10)

    async def was_told(self) -> bool:
        """Whether it knows what to run."""
        return self.releases is not None

    async def _listen(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self._hear(message)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return

    def _hear(self, message: pb.ConnectResponse) -> None:
        kind = message.WhichOneof("message")
        assert self.trust is not None
        if kind == "welcome":
            self.welcomes.append(message.welcome)
            self.trust = self.trust.followed(signed(message.welcome.keys))
            self.kept = message.welcome.kept_sequence
        elif kind == "releases":
            verified = [self.trust.release(signed(it)) for it in message.releases.releases]
            self.releases, self.told = {it.detector: it for it in verified}, self.told + 1
        elif kind == "probe":
            self.probes.append(self.trust.probe(signed(message.probe)))
        elif kind == "kept":
            self.kept = message.kept.sequence

    async def say(self, detector: str = "pump", state: str = "SERVING", **fields: Any) -> None:
        """A status: it stands there with what it was asked to take; where it failed, the bundle is another one."""
        release = (self.releases or {})[detector]
        given = {
            "bundle_hash": release.bundle if state in {"SERVING", "TRYING"} else "00" * 32,
            "counter": release.counter,
            "asked_counter": release.counter,
            "step_p50_seconds": 1e-4,
            "step_p99_seconds": 2e-4,
            **fields,
        }
        served = pb.ServedRelease(
            detector=f"detectors/{detector}", state=pb.ReleaseState.Value(f"RELEASE_STATE_{state}"), **given
        )
        await self._call.write(pb.ConnectRequest(status=pb.DeviceStatus(served=[served], uptime_seconds=1)))

    async def report(self, *reports: pb.DeviceReport) -> None:
        """Sends reports."""
        await self._call.write(pb.ConnectRequest(reports=pb.DeviceReports(reports=reports)))

    async def download(
        self, sha256: str, offset: int = 0, token: str | None = None, chunks: int | None = None
    ) -> bytes:
        """Bytes of a file from an offset on; stops after some chunks."""
        request = pb.DownloadFileRequest(
            download_token=self.welcomes[-1].download_token if token is None else token, sha256=sha256, offset=offset
        )
        call, content = self.stub.DownloadFile(request), b""
        async for response in call:
            content += response.content
            if chunks is not None and (chunks := chunks - 1) == 0:
                call.cancel()
                break
        return content

    async def fetch(self, detector: str = "pump") -> dict[str, bytes]:
        """The verified files of what it is to run."""
        assert self.releases is not None
        wanted = self.releases[detector].bundle
        manifest = await self.download(wanted)
        assert hashlib.sha256(manifest).hexdigest() == wanted
        return {wanted: manifest}


def points(
    sequence: int,
    stamps: Any,
    scores: Any = None,
    *,
    values: Any = None,
    flagged: bool = False,
    series: str = "a",
    detector: str = "pump",
    counter: int = 0,
    features: tuple[str, ...] = ("f1", "f2"),
) -> pb.DeviceReport:
    """A report of points."""
    stamps = np.asarray(stamps, np.int64)
    values = np.zeros((len(stamps), 2)) if values is None else values
    scores = np.zeros(len(stamps)) if scores is None else scores
    field = pb.FieldPoints(
        detector=f"detectors/{detector}",
        series=series,
        stamps=stamps.tolist(),
        packed_values=np.asarray(values, "<f4").tobytes(),
        packed_scores=np.asarray(scores, "<f4").tobytes(),
        threshold=3.0,
        counter=counter,
        flagged=flagged,
        features=features,
    )
    return pb.DeviceReport(sequence=sequence, time=int(stamps[-1]), points=field)


def event(sequence: int, state: str, counter: int, detector: str = "pump") -> pb.DeviceReport:
    """A report of what became of a release."""
    number = pb.ReleaseState.Value(f"RELEASE_STATE_{state}")
    said = pb.ReleaseEvent(detector=f"detectors/{detector}", counter=counter, state=number, reason="too slow")
    return pb.DeviceReport(sequence=sequence, release=said)


class Operator:
    """Calls FleetService, and makes devices."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        self.devices: list[Device] = []

    async def token(self, device_class: str = "pi4", device: str = "", valid_seconds: float = 0) -> str:
        """An enrolment token."""
        request = fleet_pb2.CreateEnrolmentTokenRequest(
            device_class=device_class, device=f"devices/{device}" if device else "", valid_seconds=valid_seconds
        )
        return (await self.stub.CreateEnrolmentToken(request)).token

    async def enrolled(self, name: str = "north", device_class: str = "pi4") -> Device:
        """A device that is enrolled."""
        device = await Device(self.channel, name, device_class).enrol(await self.token(device_class))
        self.devices.append(device)
        return device

    async def connected(self, *names: str) -> list[Device]:
        """Devices that are enrolled and connected."""
        return [await (await self.enrolled(name)).connect() for name in names]

    async def rollouts(self) -> list[fleet_pb2.Rollout]:
        """All of them, newest first."""
        return list((await self.stub.ListRollouts(fleet_pb2.ListRolloutsRequest())).rollouts)


@asynccontextmanager
async def operating(hub: Hub) -> AsyncIterator[Operator]:
    """An operator of a hub; devices hang up afterwards."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        operator = Operator(channel)
        try:
            yield operator
        finally:
            for device in operator.devices:
                await device.hang_up()


async def refused(call: Any) -> grpc.StatusCode:
    """The code of a call that must fail."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    raise AssertionError("it was not refused")
