"""DeviceService: what devices call. They are told nothing and asked nothing before they have proven who they are."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio

from detectors.errors import DeniedError, ExhaustedError, InvalidInputError
from prunewatch.v1 import devices_pb2 as pb
from prunewatch.v1.devices_pb2_grpc import DeviceServiceServicer
from server.background import in_background
from server.config import check_device_class
from server.fleet.links import NOT_READ, SILENT, Link, statement
from server.fleet.messages import facts_of_message, report_of_message, status_of_message
from server.fleet.records import Device
from server.interceptors import readable
from server.names import device_id, device_name
from server.releases import verifies

if TYPE_CHECKING:
    from server.fleet.fleet import Fleet

PROTOCOL = 1
INTRODUCTION_SECONDS = 10.0
NONCE_BYTES = 32
CHUNK_BYTES = 64 << 10
DOWNLOADS = 4
"""Of one device at once."""
END_SECONDS = 1.0
Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class DeviceServicer(DeviceServiceServicer):
    """Serves devices.

    Args:
        fleet: What is known of them.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def EnrolDevice(self, request: pb.EnrolDeviceRequest, context: Context) -> pb.EnrolDeviceResponse:
        """Makes a device known."""
        name = device_id(request.name)
        check_device_class(request.device_class)
        keys = await asyncio.to_thread(
            self._fleet.enrolment.enrol, name, request.device_class, request.token, request.public_key
        )
        await self._fleet.enrolled(name, request.device_class)
        return pb.EnrolDeviceResponse(keys=statement(keys))

    async def Connect(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Context
    ) -> None:
        """The link of a device."""
        device = await self._introduced(context)
        link = Link(device.name, device.device_class)
        with self._fleet.links.opened(link):
            try:
                await self._converse(link, device, context)
            except (grpc.aio.UsageError, asyncio.InvalidStateError):
                return  # it has hung up while something was written to it
            except asyncio.CancelledError:
                if link.why is not None:  # what it has not read may keep its end from it; nobody waits for that
                    with suppress(TimeoutError):
                        await asyncio.wait_for(context.abort(*link.why), END_SECONDS)
                raise

    async def DownloadFile(
        self, request: pb.DownloadFileRequest, context: Context
    ) -> AsyncIterator[pb.DownloadFileResponse]:
        """Bytes of a file, from an offset on."""
        link = self._fleet.links.of_token(request.download_token)
        if link is None:
            raise DeniedError(
                "it is not that of an open link.",
                field="download_token",
                hint="Connect, and take the one you are given.",
            )
        source = self._fleet.files.find(link.device_class, request.sha256)
        size = await in_background(lambda: source.size)
        if not 0 <= request.offset <= size:
            raise InvalidInputError(
                f"{request.offset} is not inside the file.", field="offset", hint=f"It has {size} bytes."
            )
        if len(link.downloads) >= DOWNLOADS:
            raise ExhaustedError(f"{DOWNLOADS} downloads of this device run.", hint="Wait until one of them has ended.")
        task = asyncio.current_task()
        assert task is not None
        link.downloads.add(task)
        try:
            offset = request.offset
            while True:
                content = await in_background(source.read, offset, CHUNK_BYTES)
                yield pb.DownloadFileResponse(content=content, file_bytes=size)
                offset += len(content)
                if offset >= size or not content:
                    return
                await self._fleet.brake.spend(len(content))
        finally:
            link.downloads.discard(task)

    # the link

    async def _introduced(self, context: Context) -> Device:
        """Who dials, once it has proven it.

        Raises:
            InvalidInputError: it does not begin as it must, or speaks another protocol.
            DeniedError: it is not known, or is somebody else.
        """
        hello = (await _soon(_read(context))).hello
        if hello.protocol != PROTOCOL:
            raise InvalidInputError(
                f"this hub speaks version {PROTOCOL} of the link, not {hello.protocol}.",
                field="hello.protocol",
                hint="Bring device and hub to versions that belong together.",
            )
        name, nonce = device_id(hello.name, "hello.name"), secrets.token_bytes(NONCE_BYTES)
        await context.write(pb.ConnectResponse(challenge=pb.HubChallenge(nonce=nonce)))
        proof = (await _soon(_read(context))).proof
        device = await asyncio.to_thread(self._fleet.book.find, name)
        signed = name.encode() + nonce
        if device is None or not verifies(bytes.fromhex(device.public_key), "device", signed, proof.signature):
            raise DeniedError(
                f"nobody has proven to be {device_name(name)}.",
                field="proof.signature",
                hint="Is the device enrolled with this key? Else enrol it again.",
            )
        await asyncio.to_thread(self._fleet.book.change, name, facts=facts_of_message(proof.facts))
        return device

    async def _converse(self, link: Link, device: Device, context: Context) -> None:
        trusted = self._fleet.keys.current.key_id
        welcome = pb.HubWelcome(
            download_token=link.token,
            keys=statement(self._fleet.keys.key_set(device.trusted_key)),
            status_seconds=self._fleet.settings.status_every,
            kept_sequence=device.kept_sequence,
            field=self._field_limits(),
            device_class=device.device_class,
        )
        await _soon(context.write(pb.ConnectResponse(welcome=welcome)))
        link.set_releases(self._fleet.desired.meant.of(device.name, device.device_class))
        reading = asyncio.create_task(self._hear(link, device, trusted, context))
        writing = asyncio.create_task(self._tell(link, context))
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, writing):
                if task.done():
                    task.result()
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _hear(self, link: Link, device: Device, trusted: str, context: Context) -> None:
        """Takes what the device says until it hangs up."""
        silence = 3 * self._fleet.settings.status_every
        while True:
            try:
                message = await asyncio.wait_for(context.read(), silence)
            except TimeoutError:
                link.end(SILENT)
                return
            if message is grpc.aio.EOF:
                return
            kind = readable(message).WhichOneof("message")
            if kind == "status":
                self._fleet.hear(device, status_of_message(message.status))
                if trusted != device.trusted_key:  # it has read the welcome, and with it the newest keys
                    await asyncio.to_thread(self._fleet.book.change, device.name, trusted_key=trusted)
                    device = await asyncio.to_thread(self._fleet.book.require, device.name)
            elif kind == "reports":
                reports = [report_of_message(device.name, it) for it in message.reports.reports]
                link.set_kept(await self._fleet.take(device, reports))
            else:
                raise InvalidInputError(
                    f"{kind or 'an empty message'} does not belong here.", hint="Send statuses and reports."
                )

    async def _tell(self, link: Link, context: Context) -> None:
        """Sends what there is to say; ends the link where nobody reads."""
        while True:
            message = await link.next()
            try:
                await asyncio.wait_for(context.write(message), self._fleet.slow_reader_seconds)
            except TimeoutError:
                link.end(NOT_READ)
                return

    def _field_limits(self) -> pb.FieldLimits:
        field = self._fleet.settings.field
        return pb.FieldLimits(
            wanted=field.wanted, bytes_per_hour=field.bytes_per_hour, windows_per_hour=field.windows_per_hour
        )


async def _read(context: Context) -> pb.ConnectRequest:
    message: Any = await context.read()
    if message is grpc.aio.EOF:
        raise InvalidInputError("the link ended too soon.", hint="Send hello, then the proof.")
    request: pb.ConnectRequest = readable(message)
    return request


async def _soon(step: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(step, INTRODUCTION_SECONDS)
    except TimeoutError:
        raise InvalidInputError(
            f"nothing came for {INTRODUCTION_SECONDS:g} s.", field="hello", hint="Send hello, then the proof."
        ) from None
