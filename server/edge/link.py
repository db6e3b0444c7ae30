"""The link of a device to its hub: it dials out, proves who it is, and keeps the link open as long as that goes."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from detectors.errors import PreconditionError
from prunewatch.credentials import Credentials
from prunewatch.errors import service_error
from prunewatch.v1 import devices_pb2 as pb
from prunewatch.v1.devices_pb2_grpc import DeviceServiceStub
from server.background import in_background
from server.edge.conditions import facts
from server.edge.delivery import STALL_SECONDS, LinkBrokenError
from server.edge.device import Device, FieldLimits
from server.edge.messages import (
    DEVICES,
    facts_message,
    limits_of,
    reports_message,
    signed_of,
    status_message,
)
from server.edge.outbox import Outbox
from server.edge.patience import Patience
from server.edge.reports import DeviceStatus
from server.releases import Signed

PROTOCOL = 1
SILENT_SECONDS = 45.0
"""After so long without a word the hub is asked whether it is there (`grpc.health.v1`) ..."""
ALIVE_SECONDS = 15.0
"""... and so long it may take to answer. A link that only looks open ends then. gRPC's own pings do not find that out:
whatever is written puts them off."""
ANSWER_SECONDS = 30.0
"""For each answer of the hub until the device is let in, and to reports."""
BATCH_BYTES = 256 << 10
"""Of reports in a message, which the hub keeps before the next is sent."""
MAX_MESSAGE_BYTES = 16 << 20
STATUS_SECONDS = (0.1, 3600.0)
LOOK_SECONDS = 1.0
"""How soon a report that was written is sent."""
PERMANENT = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED"}
PERMANENT |= {"FAILED_PRECONDITION", "UNIMPLEMENTED"}
"""Asking again does not help."""
Clock = Callable[[], float]
logger = logging.getLogger("prunewatch.edge.link")


@dataclass(frozen=True)
class Ears:
    """Who on the device hears what the hub says.

    Attributes:
        releases: All that it is to run.
        probe: Graphs to measure.
        field: What it may send of its points.
        status: Asked how the device is.
    """

    releases: Callable[[Sequence[Signed]], None]
    probe: Callable[[Signed], None]
    field: Callable[[FieldLimits], None]
    status: Callable[[], DeviceStatus]


@dataclass(frozen=True)
class Tempo:
    """How quickly a link finds out. Seconds.

    Attributes:
        silent: See `SILENT_SECONDS`.
        alive: See `ALIVE_SECONDS`.
        answer: See `ANSWER_SECONDS`.
        look: See `LOOK_SECONDS`.
        first: Before the second try at most.
        longest: Between two tries at most.
        again: Until a release that could not be had is tried again.
        stall: Without a byte of a file for so long it is asked for again.
    """

    silent: float = SILENT_SECONDS
    alive: float = ALIVE_SECONDS
    answer: float = ANSWER_SECONDS
    look: float = LOOK_SECONDS
    first: float = 1.0
    longest: float = 120.0
    again: float = 60.0
    stall: float = STALL_SECONDS


class NotLetInError(LinkBrokenError):
    """The hub does not know this device, or not with this key."""


def open_channel(hub: str, credentials: Credentials) -> grpc.aio.Channel:
    """A connection to the hub; the one place that says how it is secured. Files are read anew: they are replaced.

    Raises:
        LinkBrokenError: a file can not be read, or holds no certificate.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.use_local_subchannel_pool", 1),  # a new one does not wait because an older one has failed
    ]
    try:
        return credentials.channel(hub, options)
    except (OSError, ValueError) as error:
        raise LinkBrokenError(f"the certificates can not be used: {error}") from error


async def enrol(
    hub: str, device: Device, token: str, fingerprint: str, tempo: Tempo, credentials: Credentials | None = None
) -> None:
    """Makes the device known to the hub.

    Args:
        hub: `HOST:PORT`.
        device: Who it is to be.
        token: Whole.
        fingerprint: Of the hub's key.
        tempo: How long an answer may take.
        credentials: Of the connection; None: plain text.

    Raises:
        LinkBrokenError: the hub can not be reached.
        PreconditionError: it refuses.
    """
    identity = device.identity
    request = pb.EnrolDeviceRequest(
        name=f"{DEVICES}{identity.name}",
        device_class=identity.device_class,
        token=token,
        public_key=device.key.public,
    )
    async with open_channel(hub, credentials or Credentials()) as channel:
        try:
            response = await DeviceServiceStub(channel).EnrolDevice(request, timeout=tempo.answer)
        except grpc.aio.AioRpcError as error:
            told = service_error(error)
            if told.code in PERMANENT:
                raise PreconditionError(
                    f"the hub does not enrol this device: {told.problem}",
                    field="--token-file",
                    hint=told.hint or "Ask it for a new token: one is good for one device, once, and not for long.",
                ) from error
            raise LinkBrokenError(told.problem) from error
    _require_read(response)
    await in_background(device.enrolled, signed_of(response.keys), fingerprint)
    logger.info("enrolled as %s of class %s", identity.name, identity.device_class)


class Link:
    """The link.

    Args:
        hub: `HOST:PORT`.
        device: Who it is.
        outbox: What it has to say.
        token: With which it can enrol; None: it is enrolled already.
        clock: Seconds since the epoch.
        rng: Spreads the tries of many devices.
        sleep: Waits for seconds, before another try.
        tempo: How quickly it finds out.
        credentials: Of the connection; None: plain text.
    """

    def __init__(
        self,
        hub: str,
        device: Device,
        outbox: Outbox,
        *,
        token: tuple[str, str] | None = None,
        clock: Clock = time.time,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        tempo: Tempo | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.ears: Ears | None = None
        """Who hears what the hub says; to be set before it runs."""
        self._hub = hub
        self._credentials = credentials or Credentials()
        self._device = device
        self._outbox = outbox
        self._token = token
        self._clock = clock
        self._sleep = sleep
        self._tempo = tempo or Tempo()
        self._rng = rng or random.Random()  # noqa: S311  (spread, not secrecy)
        self._patience = self.patience()
        self._open = asyncio.Event()
        self._stub: DeviceServiceStub | None = None
        self._download_token = ""
        self._kept = asyncio.Event()
        self._anew = asyncio.Event()
        self._kept_upto = 0
        self._heard_at = 0
        """Words of the hub so far."""
        self.last_contact = 0.0
        """When the hub was last heard of, in seconds since the epoch; 0: never."""
        self.problem = ""
        """Why there is no link."""

    @property
    def _ears(self) -> Ears:
        assert self.ears is not None
        return self.ears

    @property
    def is_open(self) -> bool:
        """Whether the hub has let the device in and the link stands."""
        return self._open.is_set()

    def patience(self) -> Patience:
        """How long to wait between two tries of anything."""
        return Patience(self._rng, first=self._tempo.first, longest=self._tempo.longest)

    async def wait_open(self) -> None:
        """Waits for that."""
        await self._open.wait()

    async def run(self) -> None:
        """Keeps the link open until cancelled."""
        while True:
            try:
                await self.enrol()
                try:
                    await self._connect()
                except NotLetInError as error:  # it was removed there, or the hub is another one
                    self._note(str(error))
                    await self._enrol_again()
            except PreconditionError as error:
                self._note(str(error))
            except LinkBrokenError as error:
                self._note(str(error))
            except OSError as error:
                self._note(f"the store can not be written: {error.strerror or error}")
            except Exception:  # whatever comes over the wire: a device without a link is out of everybody's reach
                logger.exception("the link ended; it will be tried again")
            await self._sleep(self._patience.next())

    def begin_anew(self) -> None:
        """Ends the link where one stands: with the next one the hub says again all that it has to say."""
        self._anew.set()

    async def download(self, sha256: str, offset: int) -> AsyncGenerator[tuple[bytes, int], None]:
        """Bytes of a file from an offset on, each time with the length of the whole.

        Raises:
            LinkBrokenError: the hub can not be reached, or does not hand it out.
        """
        if self._stub is None:
            raise LinkBrokenError("there is no link")
        request = pb.DownloadFileRequest(download_token=self._download_token, sha256=sha256, offset=offset)
        call: Any = self._stub.DownloadFile(request)
        try:
            async for piece in call:
                _require_read(piece)
                self._hear()
                yield piece.content, piece.file_bytes
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:  # not with this token, however often it is shown
                self.begin_anew()
            raise LinkBrokenError(service_error(error).problem) from error
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise LinkBrokenError("the link ended") from None  # its channel was closed, nobody is cancelled
        finally:
            call.cancel()

    def _note(self, problem: str) -> None:
        if problem != self.problem:  # once, not with every try
            logger.warning("no link to %s: %s", self._hub, problem)
        self.problem = problem

    async def enrol(self) -> None:
        """Makes the device known to the hub, where it is not.

        Raises:
            LinkBrokenError: the hub can not be reached.
            PreconditionError: it refuses, or there is no token.
        """
        if self._device.is_enrolled:
            return
        if self._token is None:
            raise PreconditionError(
                "this device is not enrolled.", field="--token-file", hint="Ask the hub for a token, and name its file."
            )
        await enrol(self._hub, self._device, *self._token, self._tempo, self._credentials)

    async def _enrol_again(self) -> None:
        """With the token that it was given, once: what the hub says of it then is the same each time.

        Raises:
            LinkBrokenError: the hub can not be reached.
            PreconditionError: it refuses.
        """
        if self._token is not None:
            token, self._token = self._token, None
            await enrol(self._hub, self._device, *token, self._tempo, self._credentials)

    async def _connect(self) -> None:
        """One connection, from the first word to its end.

        Raises:
            LinkBrokenError: always, in the end.
            PreconditionError: the hub shows keys that no trusted key has signed.
        """
        channel = open_channel(self._hub, self._credentials)
        self._anew.clear()
        try:
            stub = DeviceServiceStub(channel)
            call = stub.Connect()
            welcome = await self._let_in(call)
            self._stub, self._download_token = stub, welcome.download_token
            self._kept_upto = welcome.kept_sequence
            self.problem = ""
            self._open.set()
            logger.info("linked to %s", self._hub)
            self._patience.reset()
            await self._talk(channel, call, welcome)
        except grpc.aio.AioRpcError as error:
            denied = error.code() is grpc.StatusCode.PERMISSION_DENIED
            raise (NotLetInError if denied else LinkBrokenError)(service_error(error).problem) from error
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:  # a write to a call that has ended
            raise LinkBrokenError("the link ended") from error
        finally:
            self._open.clear()
            self._stub = None
            await channel.close()

    async def _let_in(self, call: Any) -> pb.HubWelcome:
        name = self._device.identity.name or ""
        await self._say(call, pb.ConnectRequest(hello=pb.DeviceHello(name=f"{DEVICES}{name}", protocol=PROTOCOL)))
        nonce = (await self._heard(call)).challenge.nonce
        proof = pb.DeviceProof(
            signature=self._device.key.sign_bytes("device", name.encode() + nonce), facts=facts_message(facts())
        )
        await self._say(call, pb.ConnectRequest(proof=proof))
        message = await self._heard(call)
        if message.WhichOneof("message") != "welcome":
            raise LinkBrokenError("the hub did not welcome this device")
        welcome = message.welcome
        await in_background(self._device.follow, signed_of(welcome.keys))
        await in_background(self._outbox.begin_after, welcome.kept_sequence)
        await self._note_kept(welcome.kept_sequence)
        self._ears.field(limits_of(welcome.field))
        return welcome

    async def _say(self, call: Any, message: pb.ConnectRequest) -> None:
        """Writes; who can not get rid of it in time has no link."""
        try:
            async with asyncio.timeout(self._tempo.answer):  # `wait_for` may lose a cancellation up to Python 3.11
                await call.write(message)
        except TimeoutError as error:
            raise LinkBrokenError("the hub takes nothing any more") from error

    async def _heard(self, call: Any) -> pb.ConnectResponse:
        try:
            async with asyncio.timeout(self._tempo.answer):
                message = await call.read()
        except TimeoutError as error:
            raise LinkBrokenError("the hub does not answer") from error
        if message is grpc.aio.EOF:
            raise await _ended(call)
        _require_read(message)
        self._hear()
        heard: pb.ConnectResponse = message
        return heard

    async def _talk(self, channel: grpc.aio.Channel, call: Any, welcome: pb.HubWelcome) -> None:
        """Both sides say what they have to say, until one of them is gone."""
        writing = asyncio.Lock()

        async def say(message: pb.ConnectRequest) -> None:
            async with writing:
                await self._say(call, message)

        pause = min(max(welcome.status_seconds, STATUS_SECONDS[0]), STATUS_SECONDS[1])
        parts: list[Coroutine[Any, Any, None]] = [
            self._listen(call),
            self._until_anew(),
            self._ask_whether_alive(channel),
            self._say_how_it_is(say, pause),
            self._say_what_was_seen(say, welcome.kept_sequence),
        ]
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()

    async def _listen(self, call: Any) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            _require_read(message)
            self._hear()
            which = message.WhichOneof("message")
            if which == "releases":
                self._ears.releases([signed_of(it) for it in message.releases.releases])
            elif which == "probe":
                self._ears.probe(signed_of(message.probe))
            elif which == "kept":
                await self._note_kept(message.kept.sequence)
                self._kept_upto = max(self._kept_upto, message.kept.sequence)
                self._kept.set()
            elif which == "welcome":  # keys that were rotated while the link stood
                await in_background(self._device.follow, signed_of(message.welcome.keys))
                self._ears.field(limits_of(message.welcome.field))
        raise await _ended(call)

    async def _note_kept(self, sequence: int) -> None:
        """Lets go of what the hub has; on a full disk that is sent once more with the next link, and counts once."""
        try:
            await in_background(self._outbox.kept, sequence)
        except OSError as error:
            logger.warning("reports up to %d are kept, which can not be noted: %s", sequence, error.strerror or error)

    async def _until_anew(self) -> None:
        await self._anew.wait()
        raise LinkBrokenError("it is begun anew")

    async def _ask_whether_alive(self, channel: grpc.aio.Channel) -> None:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            heard = self._heard_at
            await asyncio.sleep(self._tempo.silent)
            if self._heard_at != heard:
                continue
            try:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=self._tempo.alive)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:  # that is an answer, too
                    raise LinkBrokenError("the hub does not answer any more") from error
            self._hear()

    def _hear(self) -> None:
        self.last_contact = self._clock()
        self._heard_at += 1

    async def _say_how_it_is(self, say: Callable[[pb.ConnectRequest], Awaitable[None]], pause: float) -> None:
        while True:
            await say(pb.ConnectRequest(status=status_message(self._ears.status())))
            await asyncio.sleep(pause)

    async def _say_what_was_seen(self, say: Callable[[pb.ConnectRequest], Awaitable[None]], sent: int) -> None:
        while True:
            waiting = await in_background(self._outbox.next, sent, BATCH_BYTES)
            if not waiting:
                await asyncio.sleep(self._tempo.look)
                continue
            await say(pb.ConnectRequest(reports=reports_message(waiting)))
            sent = waiting[-1].sequence
            while self._kept_upto < sent:
                self._kept.clear()
                try:
                    async with asyncio.timeout(self._tempo.answer):
                        await self._kept.wait()
                except TimeoutError as error:
                    raise LinkBrokenError("the hub does not keep reports") from error


def _require_read(message: object) -> None:
    """Refuses what could not be read: gRPC gives None for that.

    Raises:
        LinkBrokenError: this is that.
    """
    if message is None:
        raise LinkBrokenError("what came from the hub can not be read")


async def _ended(call: Any) -> LinkBrokenError:
    """Why the hub ended it."""
    with suppress(grpc.aio.AioRpcError):
        code, details = await call.code(), await call.details()
        told = f"the hub ended it ({code.name}{f': {details}' if details else ''})"
        return NotLetInError(told) if code is grpc.StatusCode.PERMISSION_DENIED else LinkBrokenError(told)
    return LinkBrokenError("the hub ended it")
