"""The hub's side of the link, small and honest: real gRPC, real keys, and faults that can be switched on.

What it keeps of reports it keeps by their numbers, as a hub does: what comes twice counts once.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from conftest import eventually
from graphs import ewma_bundle

from detectors.bundle import GRAPH, MANIFEST, Bundle, write_bundle
from prunewatch.v1 import devices_pb2 as pb
from prunewatch.v1.devices_pb2_grpc import DeviceServiceServicer, add_DeviceServiceServicer_to_server
from server.releases import (
    KeySet,
    Probe,
    ProbeGraph,
    Release,
    ReleaseSettings,
    Signed,
    SigningKey,
    TrustedKey,
    verifies,
)

CLASS = "pi4"
DAY = 86400


def statement(signed: Signed) -> pb.Statement:
    """As it goes over the wire."""
    return pb.Statement(payload=signed.payload, key_id=signed.key_id, signature=signed.signature)


@dataclass
class Faults:
    """What goes wrong, where it is asked for."""

    chunk_bytes: int = 1 << 16
    corrupt: int = 0
    """Downloads of which a byte is changed."""
    endless: int = 0
    """Downloads that never end."""
    longer: int = 0
    """Downloads that say they are as long as nobody wants them."""
    chunk_seconds: float = 0.0
    forget_kept: bool = False
    """Reports are kept, and the device is never told."""


@dataclass
class DeviceHub(DeviceServiceServicer):
    """A hub for devices. Use as an asynchronous context manager."""

    key: SigningKey = field(default_factory=SigningKey.generate)
    faults: Faults = field(default_factory=Faults)
    limits: pb.FieldLimits = field(default_factory=pb.FieldLimits)
    status_seconds: float = 0.1
    address: str = "127.0.0.1:0"

    def __post_init__(self) -> None:
        self.key_set = self.keys(self.key)
        self.tokens: dict[str, str] = {}
        self.devices: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.releases: list[Signed] = []
        self.links: dict[str, Any] = {}
        self._writing = asyncio.Lock()
        self.connections = 0
        self.kept: dict[int, pb.DeviceReport] = {}
        self.received: list[int] = []
        """Numbers of reports as they came, also twice."""
        self.statuses: list[pb.DeviceStatus] = []
        self.facts: pb.DeviceFacts | None = None
        self.downloads: list[tuple[str, int]] = []
        self.counter = 0

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        add_DeviceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{self.port}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)

    # what an operator does

    def keys(self, signer: SigningKey, *others: SigningKey, counter: int = 1) -> Signed:
        """A set of keys, signed by the first."""
        keys = [TrustedKey(public_key=it.public.hex(), created=0) for it in (others or (signer,))]
        return signer.sign("keys", KeySet(counter=counter, keys=keys))

    def token(self, folder: Path, device_class: str = CLASS) -> Path:
        """A file with a token for one device."""
        token = f"{secrets.token_hex(16)}.{self.key.key_id}"
        self.tokens[token] = device_class
        path = folder / "token"
        path.write_text(f"{token}\n")
        return path

    def offer(self, bundle: Bundle, folder: Path) -> str:
        """Hands out a bundle's files; returns its hash."""
        write_bundle(bundle, folder / bundle.hash)
        for name in (MANIFEST, GRAPH):
            content = (folder / bundle.hash / name).read_bytes()
            self.files[hashlib.sha256(content).hexdigest()] = content
        return bundle.hash

    def release(self, bundle: str, *, key: SigningKey | None = None, **fields: Any) -> Signed:
        """A signed release of the pump, newer than those before."""
        self.counter = fields.pop("counter", self.counter + 1)
        now = int(time.time())
        given = {"detector": "pump", "device_class": CLASS, "bundle": bundle, "version": 1, "counter": self.counter}
        given |= {"issued": now, "expires": now + DAY, **fields}
        given.setdefault("settings", ReleaseSettings(false_alarm_rate=0.001, time="index"))
        return (key or self.key).sign("release", Release(**given))

    async def desire(self, *releases: Signed) -> None:
        """What devices are to run from now on."""
        self.releases = list(releases)
        for context in list(self.links.values()):
            await self._say(context, self._desired())

    async def probe(self, graphs: Sequence[bytes], **fields: Any) -> Probe:
        """Asks for a measurement."""
        entries = []
        for graph in graphs:
            sha256 = hashlib.sha256(graph).hexdigest()
            self.files[sha256] = graph
            entries.append(ProbeGraph(sha256=sha256, bytes=len(graph)))
        now = int(time.time())
        given = {"id": secrets.token_hex(8), "device_class": CLASS, "batch": 4, "rounds": 1, "graphs": entries}
        probe = Probe(**{**given, "issued": now, "expires": now + DAY, **fields})
        for context in list(self.links.values()):
            await self._say(context, pb.ConnectResponse(probe=statement(self.key.sign("probe", probe))))
        return probe

    # what is asked of it later

    async def state(self, *states: str, counter: int | None = None, seconds: float = 20) -> pb.ServedRelease:
        """Waits until the device says that the pump is in one of these states."""

        async def found() -> pb.ServedRelease | None:
            for served in self.statuses[-1].served if self.statuses else ():
                name = pb.ReleaseState.Name(served.state).removeprefix("RELEASE_STATE_")
                if name in states and counter in {None, served.asked_counter}:
                    return served
            return None

        result: pb.ServedRelease = await eventually(found, seconds)
        return result

    def events(self) -> list[tuple[int, str]]:
        """What became of releases, as it was told."""
        told = [it.release for _, it in sorted(self.kept.items()) if it.HasField("release")]
        return [(it.counter, pb.ReleaseState.Name(it.state).removeprefix("RELEASE_STATE_")) for it in told]

    # the service

    async def EnrolDevice(self, request: Any, context: Any) -> pb.EnrolDeviceResponse:  # noqa: N802
        """With a token, once; the same device may ask again."""
        known = self.devices.get(request.name) == request.public_key
        if not known and self.tokens.pop(request.token, None) != request.device_class:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "The token is not known.")
        self.devices[request.name] = request.public_key
        return pb.EnrolDeviceResponse(keys=statement(self.key_set))

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # noqa: ARG002, N802
        """The link."""
        self.connections += 1
        name = (await context.read()).hello.name
        nonce = secrets.token_bytes(32)
        await context.write(pb.ConnectResponse(challenge=pb.HubChallenge(nonce=nonce)))
        proof = (await context.read()).proof
        said = name.removeprefix("devices/").encode() + nonce
        if not verifies(self.devices.get(name, bytes(32)), "device", said, proof.signature):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The device is not known.")
        self.facts = proof.facts
        await context.write(pb.ConnectResponse(welcome=self._welcome()))
        await context.write(self._desired())
        self.links[name] = context
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                if message.HasField("status"):
                    self.statuses.append(message.status)
                for report in message.reports.reports:
                    self.received.append(report.sequence)
                    self.kept.setdefault(report.sequence, report)
                if message.HasField("reports") and not self.faults.forget_kept:
                    await self._say(context, pb.ConnectResponse(kept=pb.ReportsKept(sequence=max(self.kept))))
        finally:
            if self.links.get(name) is context:
                del self.links[name]

    async def DownloadFile(self, request: Any, context: Any) -> AsyncIterator[pb.DownloadFileResponse]:  # noqa: N802
        """Bytes, as the faults allow."""
        content, faults = self.files.get(request.sha256), self.faults
        self.downloads.append((request.sha256, request.offset))
        if request.download_token != "download":
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "It is not that of an open link.")
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such file.")
        if faults.longer:
            faults.longer -= 1
            yield pb.DownloadFileResponse(content=b"x", file_bytes=1 << 40)
            return
        if faults.endless:
            faults.endless -= 1
            while True:
                yield pb.DownloadFileResponse(content=bytes(1 << 16), file_bytes=len(content))
                await asyncio.sleep(0.001)
        if faults.corrupt:
            faults.corrupt -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        for at in range(request.offset, len(content), faults.chunk_bytes):
            yield pb.DownloadFileResponse(content=content[at : at + faults.chunk_bytes], file_bytes=len(content))
            await asyncio.sleep(faults.chunk_seconds)

    async def _say(self, context: Any, message: pb.ConnectResponse) -> None:
        """One message at a time: gRPC takes no two at once."""
        async with self._writing:
            await context.write(message)

    def _welcome(self) -> pb.HubWelcome:
        return pb.HubWelcome(
            download_token="download",
            keys=statement(self.key_set),
            status_seconds=self.status_seconds,
            kept_sequence=max(self.kept, default=0),
            field=self.limits,
            device_class=CLASS,
        )

    def _desired(self) -> pb.ConnectResponse:
        return pb.ConnectResponse(releases=pb.DesiredReleases(releases=[statement(it) for it in self.releases]))


def pump(version: int = 1, **fields: Any) -> Bundle:
    """A bundle of the pump for the class."""
    return ewma_bundle("pump", version, device_class=CLASS, **fields)
