"""The links that devices keep open: at most one of each, each with a small box of what is still to be sent.

What a device is to run is a state, not a queue: where it changes faster than a device reads, only the last is sent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc

from prunewatch.v1 import devices_pb2 as pb
from server.releases import Signed

PROBES_WAITING = 8
"""Of one device; the oldest go."""
TOKEN_BYTES = 24
Reason = tuple[grpc.StatusCode, str]
REPLACED: Reason = (grpc.StatusCode.ABORTED, "Another link of this device has taken over.")
SILENT: Reason = (grpc.StatusCode.DEADLINE_EXCEEDED, "Nothing was heard for too long. Open the link again.")
NOT_READ: Reason = (grpc.StatusCode.RESOURCE_EXHAUSTED, "What was sent was not read. Open the link again.")
REMOVED: Reason = (grpc.StatusCode.PERMISSION_DENIED, "This device was removed.")
KEYS_CHANGED: Reason = (grpc.StatusCode.UNAVAILABLE, "The signing keys have changed. Open the link again.")
ENDING: Reason = (grpc.StatusCode.UNAVAILABLE, "The server ends. Open the link again.")


class Link:
    """One device that is connected.

    Attributes:
        device: Its name.
        device_class: Its class.
        token: For its downloads.
        why: Why it is to end; None: it is not.
        downloads: That run.
    """

    def __init__(self, device: str, device_class: str) -> None:
        self.device = device
        self.device_class = device_class
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.why: Reason | None = None
        self.downloads: set[asyncio.Task[object]] = set()
        self._task = asyncio.current_task()
        self._releases: tuple[Signed, ...] | None = None
        self._sent: tuple[Signed, ...] | None = None
        self._probes: deque[Signed] = deque(maxlen=PROBES_WAITING)
        self._kept: int | None = None
        self._filled = asyncio.Event()

    def set_releases(self, releases: Sequence[Signed]) -> None:
        """Says what the device is to run; nothing is sent where it has been told already."""
        self._releases = tuple(releases)
        self._filled.set()

    def add_probe(self, signed: Signed) -> None:
        """Asks the device to measure."""
        self._probes.append(signed)
        self._filled.set()

    def set_kept(self, sequence: int) -> None:
        """Says which reports are kept."""
        self._kept = sequence
        self._filled.set()

    async def next(self) -> pb.ConnectResponse:
        """What is to be sent next."""
        while True:
            self._filled.clear()
            if self._kept is not None:
                kept, self._kept = self._kept, None
                return pb.ConnectResponse(kept=pb.ReportsKept(sequence=kept))
            if self._releases is not None and self._releases != self._sent:
                self._sent = self._releases
                statements = map(statement, self._releases)
                return pb.ConnectResponse(releases=pb.DesiredReleases(releases=statements))
            if self._probes:
                return pb.ConnectResponse(probe=statement(self._probes.popleft()))
            await self._filled.wait()

    def end(self, why: Reason) -> None:
        """Ends it, and its downloads."""
        if self.why is None:
            self.why = why
            if self._task is not None:
                self._task.cancel()
        self.end_downloads()

    def end_downloads(self) -> None:
        """Ends what it fetches: its token is good for nothing any more."""
        for download in list(self.downloads):
            download.cancel()


class Links:
    """All open links."""

    def __init__(self) -> None:
        self._open: dict[str, Link] = {}
        self._tokens: dict[str, Link] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._open.values()))

    def connected(self, device_class: str = "") -> list[str]:
        """Devices whose link is open, by name; of one class, or of all."""
        return sorted(it.device for it in self._open.values() if device_class in {"", it.device_class})

    def is_connected(self, device: str) -> bool:
        """Whether the link of a device is open."""
        return device in self._open

    def of_token(self, token: str) -> Link | None:
        """The link that a download token was given to, while it is open."""
        return self._tokens.get(token)

    def send_probe(self, device_class: str, signed: Signed, devices: Sequence[str]) -> int:
        """Asks devices of a class to measure; returns how many of them are connected."""
        asked = [it for name in devices if (it := self._open.get(name)) and it.device_class == device_class]
        for link in asked:
            link.add_probe(signed)
        return len(asked)

    def end(self, device: str, why: Reason) -> None:
        """Ends the link of a device, if it is open."""
        if (link := self._open.get(device)) is not None:
            link.end(why)

    def end_all(self, why: Reason) -> None:
        """Ends all links."""
        for link in self:
            link.end(why)

    def close(self) -> None:
        """Ends all links, for good."""
        self._closed = True
        self.end_all(ENDING)

    @contextmanager
    def opened(self, link: Link) -> Iterator[None]:
        """While a link is open, from its own task; an older one of the same device ends."""
        if (older := self._open.get(link.device)) is not None:
            older.end(REPLACED)
        self._open[link.device] = self._tokens[link.token] = link
        try:
            if self._closed:
                link.end(ENDING)
            yield
        finally:
            self._tokens.pop(link.token, None)
            if self._open.get(link.device) is link:
                del self._open[link.device]
            link.end_downloads()


def statement(signed: Signed) -> pb.Statement:
    """What was signed, as a message."""
    return pb.Statement(payload=signed.payload, key_id=signed.key_id, signature=signed.signature)
