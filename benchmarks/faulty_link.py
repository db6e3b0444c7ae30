"""A TCP proxy between one device and its hub that does what bad links do: each kind of harm is one call.

Bytes pass in both directions until a call says otherwise. A stall holds bytes back and lets them go later; what is
half-open swallows them for good and says nothing, while new connections work, as after a router has forgotten one.
"""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

READ_BYTES = 16_384
RESTARTED_PORTS = range(20_000, 32_000)
"""Below those that systems give to whoever connects: a port stays free while who listens there is started again."""


def free_address() -> str:
    """`HOST:PORT` where nobody listens, for who will be ended and started again."""
    while True:
        port = random.SystemRandom().choice(RESTARTED_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"


@dataclass(eq=False)
class _Pair:
    """A connection of the device and the one to the hub that belongs to it."""

    device: asyncio.StreamWriter
    hub: asyncio.StreamWriter
    swallows: bool = False

    def abort(self) -> None:
        for writer in (self.device, self.hub):
            writer.transport.abort()


class FaultyLink:
    """Passes bytes on, or does worse.

    Args:
        target: `HOST:PORT` of the hub.

    Attributes:
        address: Where the device connects to.
        connections: Accepted so far.
        flipped: Bits that were changed so far.
    """

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut_in: int | None = None
        self._flips: list[random.Random] = []
        self.connections = 0
        self.flipped = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.heal()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self, in_bytes: int = 0) -> None:
        """Ends all connections with a reset: now, or after so many more bytes of the hub."""
        if in_bytes:
            self._cut_in = in_bytes
            return
        self._cut_in = None
        for pair in self._pairs:
            pair.abort()
        self._pairs.clear()

    def stall(self) -> None:
        """Holds all bytes back until `heal`."""
        self._flowing.clear()

    def half_open(self) -> None:
        """Whatever goes over the connections that stand now is gone; nobody is told. New ones work."""
        for pair in self._pairs:
            pair.swallows = True

    def flip(self, rng: random.Random) -> None:
        """Changes one bit of the next bytes that come, from whichever side; `rng` says which."""
        self._flips.append(rng)

    def heal(self) -> None:
        """Lets bytes pass again; connections that are half-open stay so."""
        self._flowing.set()
        self._cut_in = None
        self._flips.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            hub_reader, hub_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, hub_writer)
        self._pairs.add(pair)
        for source, is_hub in ((reader, False), (hub_reader, True)):
            task = asyncio.create_task(self._pass(pair, source, is_hub=is_hub))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, pair: _Pair, source: asyncio.StreamReader, *, is_hub: bool) -> None:
        target = pair.device if is_hub else pair.hub
        try:
            while data := await source.read(READ_BYTES):
                await self._flowing.wait()
                if pair.swallows:
                    continue
                target.write(self._harmed(data))
                if is_hub and self._is_due(len(data)):
                    self.cut()
                await target.drain()
        except OSError:
            pass
        finally:
            if not pair.swallows:  # the end of one side is swallowed, too
                pair.abort()
                self._pairs.discard(pair)

    def _is_due(self, passed: int) -> bool:
        if self._cut_in is None:
            return False
        self._cut_in -= passed
        return self._cut_in <= 0

    def _harmed(self, data: bytes) -> bytes:
        if not self._flips:
            return data
        rng = self._flips.pop()
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        self.flipped += 1
        return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
