"""A TCP proxy whose faults are switched on and off: it cuts, stalls, and lets answers vanish."""

from __future__ import annotations

import asyncio
from typing import Self


class TcpProxy:
    """Passes bytes between clients and one server, until it is told to do worse.

    Args:
        target: `HOST:PORT` of the server.
    """

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        """Accepted so far."""
        self.deaf = False
        """Answers of the server vanish."""
        self.stalled = False
        """New bytes go nowhere, in both directions, and connections stay open."""
        self.refusing = False
        """New connections are closed at once."""
        self.flip = 0
        """In so many of the next pieces of answers a bit is changed."""
        self.swap: tuple[bytes, bytes] | None = None
        """The next time the first comes in an answer, the second takes its place."""
        self.cut_after: int | None = None
        """All connections are cut after so many more bytes of answers; None: they are not."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Ends all connections as a pulled cable does: with a reset."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def _harmed(self, data: bytes) -> bytes:
        """The bytes, with one changed where that is asked for: in the middle, where content is, not frames."""
        if self.swap is not None and self.swap[0] in data:
            data, self.swap = data.replace(*self.swap, 1), None
        if not self.flip or len(data) < 1000:
            return data
        self.flip -= 1
        at = len(data) // 2
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        try:
            upstream, up = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up}
        for pair, is_answer in (((reader, up), False), ((upstream, writer), True)):
            task = asyncio.create_task(self._pump(*pair, is_answer=is_answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if self.stalled or (is_answer and self.deaf):
                    continue
                if is_answer:
                    data = self._harmed(data)
                    if self.cut_after is not None and (left := self.cut_after - len(data)) < 0:
                        writer.write(data[:left])
                        self.cut_after = None
                        self.cut()
                        return
                    self.cut_after = None if self.cut_after is None else left
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
